"""The files of `magicfuse fuse`: pictures in, results out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from magicfuse_ros.runtime.contract import UInt8

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv")
EXACT_OUTPUTS = ("mask", "confidence")
"""Outputs whose numbers mean something: they go into lossless files only."""

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_CODECS = {".mp4": "mp4v", ".m4v": "mp4v", ".mov": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
"""Containers to write, each with a codec that every OpenCV wheel has."""


class FileError(Exception):
    """The input cannot be read or the output not written; the message says what to do."""


class Picture(NamedTuple):
    """One picture of the input: its name, and its pixels (H, W, 3) RGB; None if unreadable."""

    name: str
    frame: UInt8 | None


@dataclass(frozen=True)
class Source:
    """What there is to fuse.

    Attributes
    ----------
    kind
        `image`, `folder` or `video`.
    pictures
        Reads them one by one.
    count
        How many there are: for a video what its container says, 0 when it says nothing.
    rate
        Frames a second of a video, else 0.
    """

    kind: str
    pictures: Callable[[], Iterator[Picture]]
    count: int
    rate: float = 0.0


def open_source(path: Path) -> Source:
    """Find out what `path` is; raises `FileError` where nothing in it can be read."""
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise FileError(
            f"INPUT {path} does not exist; give an image, a folder of images or a video"
        )
    suffix = path.suffix.lower()
    # OpenCV opens some images as one-frame videos, so the name decides first.
    if suffix not in VIDEO_SUFFIXES and _read_image(path) is not None:
        return Source("image", lambda: iter([Picture(path.stem, _read_image(path))]), 1)
    if suffix in IMAGE_SUFFIXES:
        raise FileError(f"INPUT {path} cannot be read as an image; it is damaged or empty")
    with _opened_video(path) as video:
        if not video.read()[0]:
            raise FileError(
                f"INPUT {path} cannot be read as an image or a video; it is damaged, or of a kind "
                f"that is not known ({' '.join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)})"
            )
        count = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        rate = video.get(cv2.CAP_PROP_FPS)
    return Source(
        "video", lambda: _video_frames(path), count, rate if 0.0 < rate <= 1000.0 else 30.0
    )


def _folder(path: Path) -> Source:
    files = sorted(
        file for file in path.iterdir() if file.is_file() and file.suffix.lower() in IMAGE_SUFFIXES
    )
    if not files:
        raise FileError(
            f"folder {path} holds no images ({' '.join(IMAGE_SUFFIXES)}); subfolders are not "
            "searched: give the one that holds the images"
        )
    stems = Counter(file.stem for file in files)
    # a.jpg and a.png must not write to the same file.
    names = [file.stem if stems[file.stem] == 1 else file.name for file in files]
    pairs = list(zip(names, files, strict=True))
    return Source(
        "folder", lambda: (Picture(name, _read_image(file)) for name, file in pairs), len(files)
    )


def _read_image(path: Path) -> UInt8 | None:
    try:
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    except cv2.error:  # a header that promises an absurd size
        return None
    return None if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _video_frames(path: Path) -> Iterator[Picture]:
    with _opened_video(path) as video:
        index = 0
        while True:
            read, bgr = video.read()
            if not read:
                return
            frame = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)
            yield Picture(f"{index:06d}", frame)
            index += 1


@contextmanager
def _opened_video(path: Path) -> Iterator[cv2.VideoCapture]:
    video = cv2.VideoCapture(str(path))
    try:
        yield video
    finally:
        video.release()


class Target(AbstractContextManager["Target"]):
    """Where results go: a folder, or a file for the first output with the others beside it.

    Parameters
    ----------
    path
        OUTPUT as the user gave it.
    source, source_path
        What is read, which must not be written over.
    outputs
        What will be written, the first one first.

    Raises
    ------
    FileError
        `path` is a file of a kind that cannot take these results.
    """

    def __init__(
        self, path: Path, source: Source, source_path: Path, outputs: tuple[str, ...]
    ) -> None:
        self._path, self._rate, self._first = path, source.rate, outputs[0]
        self._videos: dict[Path, cv2.VideoWriter] = {}
        suffix = path.suffix.lower()
        self._is_file = suffix in IMAGE_SUFFIXES + VIDEO_SUFFIXES and not path.is_dir()
        if self._is_file:
            self._check_file(suffix, source.kind)
        for output in outputs:
            place = self._place(output, source_path.stem)
            written = place.parent if source.kind == "folder" else place
            if written.resolve() == source_path.resolve():
                raise FileError(f"OUTPUT {path} would write over INPUT {source_path}; give another")

    def write(self, output: str, name: str, picture: UInt8) -> None:
        """Write one result, RGB or grey, of the picture called `name`; raises `FileError`."""
        place = self._place(output, name)
        colors = picture.ndim == 3
        bgr = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), np.uint8) if colors else picture
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.suffix.lower() in VIDEO_SUFFIXES:
                self._write_frame(place, bgr)
            elif not cv2.imwrite(str(place), bgr):
                raise FileError(f"{place} cannot be written; check the disk and its permissions")
        except (OSError, cv2.error) as error:
            raise FileError(f"{place} cannot be written: {' '.join(str(error).split())}") from error

    def __exit__(self, *exception: object) -> None:
        """Finish the videos, so that what is there can be played."""
        for video in self._videos.values():
            video.release()

    def _place(self, output: str, name: str) -> Path:
        """Where an output of one picture goes; all frames of a video may have one place."""
        path = self._path
        if not self._is_file:
            return path / output / f"{name}.png"
        if output == self._first:
            return path
        beside = f"{path.stem}_{output}"
        if output not in EXACT_OUTPUTS:
            return path.with_name(beside + path.suffix)
        if path.suffix.lower() in VIDEO_SUFFIXES:
            return path.with_name(beside) / f"{name}.png"
        return path.with_name(f"{beside}.png")

    def _check_file(self, suffix: str, kind: str) -> None:
        accepted = {"image": IMAGE_SUFFIXES, "video": tuple(_CODECS), "folder": ()}[kind]
        if suffix not in accepted:
            also = f", or a file ending in {' '.join(accepted)}" if accepted else ""
            raise FileError(
                f"OUTPUT {self._path} ends in {suffix}, but INPUT is of the kind {kind}; "
                f"accepted: a folder{also}"
            )
        if self._first in EXACT_OUTPUTS and suffix not in _LOSSLESS:
            raise FileError(
                f"OUTPUT {self._path} cannot take {self._first} first: {suffix} changes its "
                "numbers; give a folder, or a .png for an image"
            )

    def _write_frame(self, place: Path, bgr: UInt8) -> None:
        if bgr.ndim == 2:
            bgr = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_GRAY2BGR), np.uint8)
        if place not in self._videos:
            codec = cv2.VideoWriter.fourcc(*_CODECS[place.suffix.lower()])
            size = (bgr.shape[1], bgr.shape[0])
            self._videos[place] = cv2.VideoWriter(str(place), codec, self._rate, size)
            if not self._videos[place].isOpened():
                raise FileError(
                    f"{place} cannot be written as a video of {size[0]}x{size[1]}; check the disk "
                    "and its permissions, or give a folder"
                )
        self._videos[place].write(bgr)
