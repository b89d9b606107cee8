"""Opens a picture, a folder of pictures or a video as one kind of source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.sources.frame import Frame, Frames, SourceError
from magicfuse_ros.sources.picture_errors import PictureError
from magicfuse_ros.sources.pictures import PICTURE_SUFFIXES, picture_files, read_picture, to_rgb8
from magicfuse_ros.sources.videos import VIDEO_SUFFIXES, Video

FOLDER_RATE = 10.0
"""Frames a second that a folder of pictures is assumed to have."""


@dataclass(frozen=True)
class Source:
    """Frames of a picture, a folder of pictures or a video.

    Attributes
    ----------
    kind
        `image`, `folder` or `video`.
    frames
        Reads them one by one, from the first one or a given time on.
    count
        Number of frames; for a video, the number that its file announces, or 0 if it has none.
    rate
        Average number of frames per second.
    names
        Names of the frames, if they are known beforehand; empty for a video.
    """

    kind: str
    frames: Frames
    count: int
    rate: float
    names: tuple[str, ...] = ()

    @property
    def duration_s(self) -> float:
        """Seconds from the first frame to the last; 0 for one picture, or where nobody knows."""
        return max(self.count - 1, 0) / self.rate

    def at_rate(self, rate: float) -> Source:
        """Return the same source at a constant rate, in frames a second.

        A video keeps its speed: frames are left out or repeated. Pictures of a folder, which have
        no times of their own, all stay.
        """
        if not 0 < rate <= 1000:  # what is no number compares false
            raise ValueError(f"fps {rate}: accepted are numbers above 0, up to 1000")
        if self.kind == "video":
            count, timed = round(self.count * rate / self.rate), _at_rate
        else:
            count, timed = self.count, _timed

        def frames(start_ns: int = 0) -> Iterator[Frame]:
            return (frame for frame in timed(self, rate) if frame.time_ns >= start_ns)

        return replace(self, frames=frames, count=count, rate=rate)

    def of_size(self, size: tuple[int, int]) -> Source:
        """Return the same source with every frame scaled to (width, height) pixels."""
        if not all(1 <= side <= 16384 for side in size):
            raise ValueError(f"size {size}: accepted are 1 to 16384 pixels a side")

        def frames(start_ns: int = 0) -> Iterator[Frame]:
            return (_scaled(frame, size) for frame in self.frames(start_ns))

        return replace(self, frames=frames)


def open_source(path: Path) -> Source:
    """Find out what `path` is, by its content.

    Raises
    ------
    SourceError
        Nothing in it can be read; the text names the file and what is accepted.

    Examples
    --------
    >>> from magicfuse_ros.resources import sample_video
    >>> source = open_source(sample_video())
    >>> source.kind, source.count, source.rate
    ('video', 250, 25.0)
    >>> frame = next(source.frames())
    >>> frame.name, frame.time_ns, frame.rgb.shape
    ('000000', 0, (272, 640, 3))
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        what = "is no file" if path.exists() else "does not exist"
        raise SourceError(f"{path} {what}; give a picture, a folder of pictures or a video")
    no_video = ""
    if path.suffix.lower() not in PICTURE_SUFFIXES:
        try:
            video = Video(path)
        except SourceError as error:
            # It may be a picture of another name; what is named as a video is not.
            if path.suffix.lower() in VIDEO_SUFFIXES:
                raise
            no_video = f"{error}; "
        else:
            return Source("video", video.frames, video.count, video.rate)
    picture = _read(path, path.stem)
    if picture.rgb is None:
        accepted = " ".join(PICTURE_SUFFIXES + VIDEO_SUFFIXES)
        raise SourceError(f"{no_video}{picture.fault}; accepted: {accepted}")
    return Source("image", lambda _start_ns=0: iter([picture]), 1, FOLDER_RATE, (path.stem,))


def _folder(path: Path) -> Source:
    try:
        files = picture_files(path)
    except PictureError as error:
        raise SourceError(str(error)) from None
    names = result_names(files)

    def frames(start_ns: int = 0) -> Iterator[Frame]:
        for index, (file, name) in enumerate(zip(files, names, strict=True)):
            time_ns = round(index * 1e9 / FOLDER_RATE)
            if time_ns >= start_ns:
                yield _read(file, name, time_ns)

    return Source("folder", frames, len(files), FOLDER_RATE, tuple(names))


def result_names(files: list[Path]) -> list[str]:
    """Name the pictures of one folder so that no two share a name.

    A picture gets its file's name without the suffix; or with it, if another picture would get the
    same name. Names that differ only in capital letters count as the same, as on some disks.

    Examples
    --------
    >>> result_names([Path("a.jpg"), Path("a.png"), Path("a.jpg.png"), Path("b.jpg")])
    ['a.jpg', 'a.png', 'a.jpg.png', 'b']
    """
    names = [file.stem for file in files]
    while True:
        used = Counter(name.casefold() for name in names)
        longer = [
            file.name if used[name.casefold()] > 1 else name
            for file, name in zip(files, names, strict=True)
        ]
        if longer == names:
            return names
        names = longer


def _read(file: Path, name: str, time_ns: int = 0) -> Frame:
    try:
        return Frame(name, time_ns, _upright(file, to_rgb8(read_picture(file))))
    except PictureError as error:
        return Frame(name, time_ns, None, str(error))


def _upright(file: Path, rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn a photo as its orientation tag says, because its results have no such tag."""
    with file.open("rb") as stream:
        if b"Exif\0\0" not in stream.read(65536):
            return rgb
    bgr = cv2.imread(str(file), cv2.IMREAD_COLOR)  # applies the tag
    return rgb if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _at_rate(source: Source, rate: float) -> Iterator[Frame]:
    """Yield at each multiple of 1 / rate the frame that is shown then, until the last one ends."""
    given, shown = 0, None
    usual_ns = 1e9 / source.rate
    # Many files round their times to 1 ms.
    rounding_ns = min(1e6, 0.25e9 / rate)
    for frame in source.frames():
        if frame.rgb is None:
            yield frame
            continue
        if shown is not None:
            usual_ns = frame.time_ns - shown.time_ns
            while given * 1e9 / rate + rounding_ns < frame.time_ns:
                yield shown._replace(time_ns=round(given * 1e9 / rate))
                given += 1
        shown = frame
    while shown is not None and given * 1e9 / rate + rounding_ns < shown.time_ns + usual_ns:
        yield shown._replace(time_ns=round(given * 1e9 / rate))
        given += 1


def _timed(source: Source, rate: float) -> Iterator[Frame]:
    """Yield every frame, at an even rate."""
    for index, frame in enumerate(source.frames()):
        yield frame._replace(time_ns=round(index * 1e9 / rate))


def _scaled(frame: Frame, size: tuple[int, int]) -> Frame:
    if frame.rgb is None or (frame.rgb.shape[1], frame.rgb.shape[0]) == size:
        return frame
    shrinks = size[0] * size[1] < frame.rgb.shape[0] * frame.rgb.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return frame._replace(rgb=np.asarray(cv2.resize(frame.rgb, size, interpolation=kind), np.uint8))
