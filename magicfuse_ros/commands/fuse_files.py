"""The files that `magicfuse fuse` writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import cv2
import numpy as np

from magicfuse_ros.commands.video_writer import FORMATS, VideoError, VideoWriter
from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.sources.frame import Frame
from magicfuse_ros.sources.pictures import PICTURE_SUFFIXES
from magicfuse_ros.sources.source import Source
from magicfuse_ros.sources.videos import VIDEO_SUFFIXES
from magicfuse_ros.whole_files import check_writable, write_whole

EXACT_OUTPUTS = ("mask", "confidence")
"""Outputs whose numbers have a meaning, so they go into lossless files only."""

_LOSSLESS = (".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


class OutputError(Exception):
    """The results cannot be written; the message says what to do."""


class Target(AbstractContextManager["Target"]):
    """Where results go: a folder, or a file for the first output with the others next to it.

    Everything that can be checked before the first picture is fused is checked here.

    `path` is OUTPUT as the user gave it; if it is a file, the first of `outputs` goes there. The
    source is never written over, and results that are there already only with `overwrite`.

    Raises OutputError if `path` is a file of a kind that cannot take these results, something is
    there already, or the disk cannot be written to.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        source_path: Path,
        outputs: tuple[str, ...],
        *,
        overwrite: bool = False,
    ) -> None:
        self._path, self._source, self._first = path, source, outputs[0]
        self._videos: dict[Path, VideoWriter] = {}
        suffix = path.suffix.lower()
        self._is_file = suffix in PICTURE_SUFFIXES + VIDEO_SUFFIXES and not path.is_dir()
        if self._is_file:
            self._check_file(suffix)
        names = source.names or ("000000",)
        places = [self._place(output, name) for output in outputs for name in names]
        for place in places:
            written = place.parent if source.kind == "folder" else place
            if written.resolve() == source_path.resolve():
                raise OutputError(
                    f"OUTPUT {path} would write over INPUT {source_path}; give another"
                )
        there = next(self._there(places), None)
        if there is not None and not overwrite:
            raise OutputError(f"{there} exists; give another OUTPUT, or --overwrite to replace it")
        for folder in dict.fromkeys(place.parent for place in places):
            # Folders are made when there is something to put into them.
            nearest = next(each for each in (folder, *folder.absolute().parents) if each.exists())
            try:
                check_writable(nearest)
            except OSError as error:
                raise OutputError(_sentence(folder, error)) from error

    def write(self, output: str, frame: Frame, picture: UInt8) -> None:
        """Write one result, RGB or grey, of `frame`; raises `OutputError`."""
        place = self._place(output, frame.name)
        try:
            if place.suffix.lower() in VIDEO_SUFFIXES:
                self._write_frame(place, frame, picture)
            else:
                write_whole(place, _encoded(place.suffix, picture))
        except (OSError, cv2.error) as error:
            raise OutputError(_sentence(place, error)) from error

    def close(self, *, whole: bool = True) -> None:
        """Finish the videos, which get their names if they are `whole`; raises `OutputError`."""
        failed = []
        for video in self._videos.values():
            try:
                video.close(whole=whole)
            except OSError as error:
                failed.append(str(error))
        self._videos.clear()
        if failed:
            raise OutputError("; ".join(failed))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        """Finish the videos, so that they can be played; an earlier error takes precedence.

        A video that the user stopped counts as whole; one that an error ended keeps `.partial` in
        its name.
        """
        try:
            self.close(whole=kind is None or issubclass(kind, KeyboardInterrupt))
        except OutputError:
            if error is None:
                raise

    def _place(self, output: str, name: str) -> Path:
        """Return the file for an output of one picture; all frames of a video may share one."""
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

    def _there(self, places: list[Path]) -> Iterator[Path]:
        """Yield the files that exist already; a video's number of frames is not known."""
        for place in places:
            if self._source.kind == "video" and place.suffix == ".png":
                yield from place.parent.glob("*.png")
            elif place.exists():
                yield place

    def _check_file(self, suffix: str) -> None:
        kind = self._source.kind
        accepted = {"image": PICTURE_SUFFIXES, "video": tuple(FORMATS), "folder": ()}[kind]
        if suffix not in accepted:
            also = f", or a file ending in {' '.join(accepted)}" if accepted else ""
            raise OutputError(
                f"OUTPUT {self._path} ends in {suffix}, but INPUT is of the kind {kind}; "
                f"accepted: a folder{also}"
            )
        if self._first in EXACT_OUTPUTS and suffix not in _LOSSLESS:
            raise OutputError(
                f"OUTPUT {self._path} cannot take {self._first} first: {suffix} changes its "
                "numbers; give a folder, or a .png for an image"
            )

    def _write_frame(self, place: Path, frame: Frame, picture: UInt8) -> None:
        if place not in self._videos:
            place.parent.mkdir(parents=True, exist_ok=True)
            size = (picture.shape[1], picture.shape[0])
            self._videos[place] = VideoWriter(place, self._source.rate, size)
        self._videos[place].write(picture, frame.time_ns)


def _encoded(suffix: str, picture: UInt8) -> bytes:
    colors = picture.ndim == 3
    bgr = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), np.uint8) if colors else picture
    done, content = cv2.imencode(suffix, bgr)
    if not done:
        raise OSError(f"this OpenCV cannot write {suffix}")
    return content.tobytes()


def _sentence(place: Path, error: Exception) -> str:
    if isinstance(error, VideoError):
        return str(error)
    why = getattr(error, "strerror", None) or one_line(error)
    return f"{place} cannot be written: {why}; check the disk and its permissions"
