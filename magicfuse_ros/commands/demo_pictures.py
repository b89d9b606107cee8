"""Side-by-side pictures of the demo: input | MagImg | semantics | enhanced | infrared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from magicfuse_ros.bags.image_topics import decode
from magicfuse_ros.bags.reader import BagReader, Topic
from magicfuse_ros.commands.node_session import COLOR, ENHANCED, INFRARED, MAGIMG
from magicfuse_ros.commands.video_writer import VideoWriter
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.stamps import read_stamp
from magicfuse_ros.sources.picture_errors import PictureError
from magicfuse_ros.whole_files import write_whole

Picture = NDArray[np.uint8]

COLUMNS, ROWS = 3, 2
PICTURE_CELL, VIDEO_CELL = 640, 416  # pixels
BACKGROUND, TEXT, MUTED, ALARM = (17, 19, 24), (236, 238, 242), (150, 156, 168), (196, 48, 43)
UNTRAINED = "UNTRAINED WEIGHTS: this shows that the pipeline runs, not what the model can do"


@dataclass(frozen=True)
class Texts:
    """What is written on a sheet."""

    input_topic: str  # of the first picture
    input_caption: str
    facts: Sequence[str] = ()  # lines above the legend
    labels: LabelSet | None = None  # classes for the legend; None leaves it out
    trained: bool = True  # if not, a banner on top says that the weights are untrained


def matched(bag: BagReader, input_topic: str) -> Iterator[dict[str, Picture]]:
    """Yield each input of a recorded bag with all results that have its stamp, in their order.

    They are (H, W, 3) RGB pictures by topic. An input that lacks a result is left out.
    """
    names = (input_topic, ENHANCED, INFRARED, MAGIMG, COLOR)
    waiting: dict[int, dict[str, tuple[Topic, bytes]]] = {}
    for message in bag.messages(names):
        stamp_ns = read_stamp(message.data)
        parts = waiting.setdefault(stamp_ns, {})
        parts[message.topic.name] = (message.topic, message.data)
        if len(parts) < len(names):
            continue
        # Outputs come in order: an older incomplete set belongs to a frame that was dropped.
        for old in [each for each in waiting if each <= stamp_ns]:
            del waiting[old]
        with suppress(PictureError):  # the node refused this input as well, and counted it
            yield {name: decode(*part) for name, part in parts.items()}


def structure(picture: Picture) -> float:
    """Measure how much can be made out in an RGB picture (H, W, 3): the mean slope of brightness.

    It is measured at half the size, which averages fine noise away.
    """
    grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
    half = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    return float(sum(np.abs(cv2.Sobel(half, cv2.CV_32F, *way)).mean() for way in ((1, 0), (0, 1))))


class Sheet:
    """The canvas of one clip: captions, facts and legend are drawn once, then `fill` adds pictures.

    Parameters
    ----------
    size
        (width, height) of the pictures; pictures of other sizes are scaled to fit.
    cell_width
        Width in pixels of each picture on the sheet.
    texts
        What is written on it.
    """

    def __init__(self, size: tuple[int, int], cell_width: int, texts: Texts) -> None:
        self._unit = unit = cell_width / 640
        self._cell = (cell_width, max(round(cell_width * size[1] / size[0]), 1))
        self._gap, self._strip = round(12 * unit), round(34 * unit)
        self._top = round(40 * unit) if not texts.trained else 0
        width = COLUMNS * (cell_width + self._gap) + self._gap
        height = self._top + ROWS * (self._cell[1] + self._strip) + 2 * self._gap
        # Video codecs want even sides.
        image = Image.new("RGB", (width + width % 2, height + height % 2), BACKGROUND)
        draw = ImageDraw.Draw(image)
        if not texts.trained:
            draw.rectangle((0, 0, image.width, self._top - 1), fill=ALARM)
            font = self._font(22)
            left = (image.width - draw.textlength(UNTRAINED, font)) / 2
            draw.text((left, self._top / 2), UNTRAINED, TEXT, font, anchor="lm")
        captions = {
            texts.input_topic: f"Input: {texts.input_caption}",
            MAGIMG: "MagImg, both fused",
            COLOR: "Semantics",
            ENHANCED: "Enhanced",
            INFRARED: "Infrared, imagined",
        }
        self._order = tuple(captions)
        for index, caption in enumerate(captions.values()):
            x, y = self._corner(index)
            draw.text((x, y - self._strip * 0.45), caption, TEXT, self._font(21), anchor="lm")
        self._draw_facts(draw, texts.facts, texts.labels)
        self._canvas = np.array(image)

    def fill(self, pictures: Mapping[str, Picture]) -> Picture:
        """Return the sheet, (H, W, 3) RGB, with these pictures."""
        sheet: Picture = self._canvas.copy()
        width, height = self._cell
        for index, name in enumerate(self._order):
            x, y = self._corner(index)
            picture = pictures[name]
            if picture.shape[:2] != (height, width):
                shrinks = picture.shape[1] > width
                kind = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
                picture = np.asarray(cv2.resize(picture, self._cell, interpolation=kind), np.uint8)
            sheet[y : y + height, x : x + width] = picture
        return sheet

    def _corner(self, index: int) -> tuple[int, int]:
        row, column = divmod(index, COLUMNS)
        x = self._gap + column * (self._cell[0] + self._gap)
        y = self._top + (row + 1) * self._strip + row * self._cell[1] + (self._gap // 2) * (row + 1)
        return x, y

    def _draw_facts(
        self, draw: ImageDraw.ImageDraw, facts: Sequence[str], labels: LabelSet | None
    ) -> None:
        x, y = self._corner(len(self._order))
        draw.text((x, y - self._strip * 0.45), "MagicFuse", TEXT, self._font(21), anchor="lm")
        line = self._unit * 25
        at = y + line * 0.4
        for fact in facts:
            draw.text((x, at), fact, MUTED, self._font(18), anchor="lm")
            at += line
        if labels is None:
            return
        at += line * 0.4
        columns = 3
        rows = -(-len(labels) // columns)
        # Long label sets get a tighter legend rather than one that runs off the sheet.
        step = min(line, (y + self._cell[1] - at) / max(rows, 1))
        swatch = step * 0.62
        for index, label in enumerate(labels.labels):
            column, row = divmod(index, rows)
            left = x + column * self._cell[0] / columns
            top = at + row * step
            box = (left, top - swatch / 2, left + swatch * 1.4, top + swatch / 2)
            draw.rectangle(box, fill=label.color, outline=MUTED)
            name_at = (left + swatch * 1.4 + step * 0.4, top)
            draw.text(name_at, label.name, TEXT, self._font(18 * step / line), anchor="lm")

    def _font(self, size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
        return ImageFont.load_default(max(size * self._unit, 8.0))


def write_pictures(
    bag: BagReader, stem: Path, texts: Texts, fps: float, progress: Callable[[int], None]
) -> list[Path]:
    """Write ``<stem>.png`` of one frame and a video of all; return what was written.

    The picture is of the frame in which MagImg shows most that cannot be made out in the input. The
    video has the rate of the fused frames, `fps`, so that it plays in real time. `progress` is
    called with the number of frames done; if it raises, the writing ends.
    """
    png, rate = stem.with_suffix(".png"), min(max(fps, 1.0), 60.0)
    video: VideoWriter | None = None
    sheets: dict[int, Sheet] = {}
    shown, most, written = None, -np.inf, 0
    with ExitStack() as stack:
        for pictures in matched(bag, texts.input_topic):
            if not sheets:
                height, width = pictures[MAGIMG].shape[:2]
                sheets = {
                    cell_width: Sheet((width, height), cell_width, texts)
                    for cell_width in (VIDEO_CELL, PICTURE_CELL)
                }
            gain = structure(pictures[MAGIMG]) - structure(pictures[texts.input_topic])
            if gain > most:
                shown, most = pictures, gain
            sheet = sheets[VIDEO_CELL].fill(pictures)
            if video is None:
                size = (sheet.shape[1], sheet.shape[0])
                video = VideoWriter(stem.with_suffix(".mp4"), rate, size)
                stack.callback(video.close)
            video.write(sheet, round(written * 1e9 / rate))
            written += 1
            progress(written)
    if shown is None:
        return []
    sheet = sheets[PICTURE_CELL].fill(shown)
    write_whole(png, cv2.imencode(".png", sheet[..., ::-1])[1].tobytes())
    return [png, stem.with_suffix(".mp4")]
