"""What a dataset is made of: frames, which name their files, and the items decoded from these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.sources.picture_errors import PictureError
from magicfuse_ros.sources.pictures import read_picture, to_rgb8

U8: TypeAlias = NDArray[np.uint8]
Rgb: TypeAlias = NDArray[np.uint8]

# Mean luminance, 0 to 255, below which a frame counts as dark whatever its name says.
_DARK = 50.0
# Mean difference of an infrared picture's channels, in grey levels, that JPEG alone does not make.
_FALSE_COLOURS = 8.0


class DatasetError(ValueError):
    """A file of a dataset is missing, unreadable, misaligned or wrong; the message names it."""


@dataclass(frozen=True)
class Box:
    """An annotated object: class name and corners relative to the image, 0 to 1."""

    kind: str
    x0: float
    y0: float
    x1: float
    y1: float

    def pixels(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Return its corners (x0, y0, x1, y1) in whole pixels of an image of this size.

        They lie inside the image and at least one pixel apart.
        """
        x0 = min(max(round(self.x0 * width), 0), width - 1)
        y0 = min(max(round(self.y0 * height), 0), height - 1)
        x1 = min(max(round(self.x1 * width), x0 + 1), width)
        y1 = min(max(round(self.y1 * height), y0 + 1), height)
        return x0, y0, x1, y1


@dataclass(frozen=True)
class Frame:
    """Where one item comes from."""

    name: str  # unique within its source
    # Image files, or videos where `video_frame` is set. MFNet keeps infrared as the alpha channel
    # of the visible file; then both are the same path.
    visible: Path
    infrared: Path | None = None
    labels: Path | None = None
    video_frame: int | None = None  # frame number within the videos, from 0
    # Objects; None where the dataset has no boxes (an empty tuple means: nothing there).
    boxes: tuple[Box, ...] | None = None
    # Frames of one group (a video) share one infrared scale; empty for a still image.
    group: str = ""
    # The dataset says the frame was taken at night; None where it does not say.
    night: bool | None = None
    # Whether the visible image can serve as the target of restoration; smoke cannot.
    clean: bool = True
    pseudo: bool = False  # whether networks made the labels, not people

    def paths(self) -> list[Path]:
        """Return every file that the frame is read from."""
        return [p for p in (self.visible, self.infrared, self.labels) if p is not None]


@dataclass(frozen=True)
class Item:
    """A decoded frame."""

    frame: Frame
    visible: U8  # (H, W, 3) uint8 RGB
    infrared: U8 | None  # (H, W) uint8 as recorded (not yet on the common scale), or None
    labels: U8 | None  # (H, W) uint8 ids of the source's own classes, or None
    night: bool  # as the dataset says, else measured


@dataclass(frozen=True)
class Source:
    """One dataset split: its frames, and how its label ids read."""

    name: str  # for reports; unique among the sources trained on together
    frames: tuple[Frame, ...]  # in a fixed order; those of a video are consecutive and ascending
    # Source label id -> canonical class name (see `label_maps`); empty without labels.
    classes: dict[int, str] = field(default_factory=dict)

    def items(self) -> Iterator[Item]:
        """Decode every frame in order.

        Raises
        ------
        DatasetError
            At the first file that is unreadable, differs in size from its visible image, has more
            than 8 bits a channel, or holds label ids that are none of the dataset's.
        """
        videos = _Videos()
        for frame in self.frames:
            yield _decode(frame, self.classes, videos)


class _Videos:
    """The videos being read; frames are asked for in ascending order, so nothing is sought."""

    def __init__(self) -> None:
        self._open: dict[Path, tuple[cv2.VideoCapture, int]] = {}

    def read(self, path: Path, number: int) -> U8:
        """Return frame `number`, (H, W, 3) RGB, as stored: one half of a pair is not turned."""
        if path not in self._open:
            if len(self._open) >= 2:  # a visible and an infrared one at a time
                self._open.clear()
            capture = cv2.VideoCapture(str(path))
            capture.set(cv2.CAP_PROP_ORIENTATION_AUTO, 0)
            self._open[path] = (capture, 0)
        capture, position = self._open[path]
        while position < number and capture.grab():
            position += 1
        done, image = capture.read()
        if not done or position != number:
            raise DatasetError(
                f"{path} has no frame {number}; it is shorter than its pair or damaged"
            )
        self._open[path] = (capture, number + 1)
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def _decode(frame: Frame, classes: Mapping[int, str], videos: _Videos) -> Item:
    infrared: U8 | None = None
    if frame.video_frame is not None:
        visible = videos.read(frame.visible, frame.video_frame)
        if frame.infrared is not None:
            infrared = _heat(videos.read(frame.infrared, frame.video_frame), frame.infrared)
    elif frame.infrared == frame.visible:
        both = read_image(frame.visible)
        if both.ndim != 3 or both.shape[2] != 4:
            raise DatasetError(
                f"{frame.visible} has shape {both.shape}; MFNet images have 4 channels, RGB + heat"
            )
        visible, infrared = to_rgb8(both), np.ascontiguousarray(both[..., 3])
    else:
        visible = to_rgb8(read_image(frame.visible))
        if frame.infrared is not None:
            infrared = _heat(read_image(frame.infrared), frame.infrared)
    labels = None if frame.labels is None else _read_labels(frame.labels, classes)
    for other, path in ((infrared, frame.infrared), (labels, frame.labels)):
        if other is not None and other.shape[:2] != visible.shape[:2]:
            raise DatasetError(
                f"{path} is {other.shape[1]}x{other.shape[0]} but {frame.visible} is "
                f"{visible.shape[1]}x{visible.shape[0]}; paired files must be pixel-aligned"
            )
    night = frame.night
    if night is None or not night:  # some daytime frames are darker than night ones
        grey = cv2.cvtColor(np.ascontiguousarray(visible[::4, ::4]), cv2.COLOR_RGB2GRAY)
        night = float(grey.mean()) < _DARK
    return Item(frame, visible, infrared, labels, night)


def _heat(image: U8, path: Path) -> U8:
    """Return the one channel (H, W) of an infrared picture, stored as grey or as grey in colour."""
    if image.ndim == 2:
        return image
    colours = image[..., :3]
    if float(np.ptp(colours[::4, ::4].astype(np.int16), axis=2).mean()) > _FALSE_COLOURS:
        raise DatasetError(
            f"{path} shows heat in false colours; use grey pictures, whose brightness is the heat"
        )
    return np.ascontiguousarray(colours[..., 1])


def _read_labels(path: Path, classes: Mapping[int, str]) -> U8:
    if path.suffix.lower() in {".jpg", ".jpeg"}:
        raise DatasetError(f"{path} is a JPEG, which changes class ids; use PNG for label images")
    labels = read_image(path)
    if labels.ndim != 2:
        raise DatasetError(
            f"{path} has shape {labels.shape}; label images have one channel, which holds class "
            "ids, and no palette"
        )
    known = set(classes) | getattr(classes, "unlabeled", frozenset({UNKNOWN}))
    wrong = set(np.unique(labels).tolist()) - known
    if classes and wrong:
        raise DatasetError(
            f"{path} holds the ids {sorted(wrong)[:8]}; accepted: {sorted(known)}. It may be of "
            "another dataset, of colours, or stored with loss"
        )
    return labels


def read_image(path: Path) -> U8:
    """Read an 8-bit image file as it is stored: strictly, and not turned by an orientation tag.

    Returns
    -------
    (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA.

    Raises
    ------
    DatasetError
        If the file is missing, damaged or no image, or has more than 8 bits a channel.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing")
    try:
        image = read_picture(path)
    except PictureError as error:
        raise DatasetError(str(error)) from error
    if image.dtype != np.uint8:
        raise DatasetError(
            f"{path} has {8 * image.itemsize} bits a channel; convert it to 8: map the range that "
            "the camera uses to 0 to 255, the same way for all its pictures"
        )
    return image
