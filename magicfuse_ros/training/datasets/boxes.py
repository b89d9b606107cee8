"""Box annotations beside pictures: YOLO's text lines and VOC's XML, every value checked."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from xml.etree import ElementTree as ET

from magicfuse_ros.training.datasets.frames import Box, DatasetError

_YOLO_CLASSES = ("person", "bike", "car")
_VOC_KINDS = {"person": "person", "bike": "bike", "bicycle": "bike", "car": "car"}
# A picture's annotations take some kilobytes.
_LARGEST_XML = 1 << 20


def read_yolo(path: Path) -> tuple[Box, ...]:
    """Read lines `class cx cy w h`: classes 0 to 2, the rest relative to the picture.

    Raises
    ------
    DatasetError
        The file is missing or not UTF-8, or a line's values are not as above; names the line.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing; an image without objects has an empty file")
    boxes = []
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            boxes.append(_yolo_box(line))
        except (ValueError, IndexError) as error:
            raise DatasetError(
                f"{path} line {number} is {line!r}; use `class cx cy w h` with class 0 to "
                f"{len(_YOLO_CLASSES) - 1}, and centre, width and height as shares of the picture, "
                "0 to 1"
            ) from error
    return tuple(boxes)


def read_voc(path: Path) -> tuple[Box, ...]:
    """Read an `<annotation>` with its picture's `<size>` and the `<bndbox>` of each `<object>`.

    Raises
    ------
    DatasetError
        The file is missing or not XML, or a value in it is wrong; names the line.
    """
    if not path.is_file():
        raise DatasetError(f"{path} is missing; every LLVIP image has its XML file there")
    if path.stat().st_size > _LARGEST_XML:
        raise DatasetError(
            f"{path} has {path.stat().st_size} bytes; annotations of one picture have less than "
            f"{_LARGEST_XML}"
        )
    size: tuple[float, float] | None = None
    objects, here = [], f"{path} line 1"
    for line, element in _elements(path):
        here = f"{path} line {line}"
        if element.tag == "size":
            size = _number(here, element, "width"), _number(here, element, "height")
            if min(size) <= 0.0:
                raise DatasetError(
                    f"{here}: the size is {size[0]:g}x{size[1]:g}; use the picture's"
                )
        elif element.tag == "object":
            objects.append((here, element))
    if size is None:
        raise DatasetError(f"{here}: there is no <size> with the picture's <width> and <height>")
    return tuple(_voc_box(where, element, *size) for where, element in objects)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file; raises `DatasetError` naming one that is not UTF-8."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise DatasetError(
            f"{path} line {line} is not UTF-8 text; save the file as UTF-8"
        ) from error


def _yolo_box(line: str) -> Box:
    kind, cx, cy, w, h = (float(part) for part in line.split())
    inside = all(0.0 <= value <= 1.0 for value in (cx, cy, w, h))
    if not inside or min(w, h) == 0.0 or not kind.is_integer() or kind < 0.0:
        raise ValueError(line)
    name = _YOLO_CLASSES[int(kind)]
    return Box(name, cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)


def _elements(path: Path) -> Iterator[tuple[int, ET.Element]]:
    """Yield each element of an XML file with the number of the line that it ends on."""
    parser: ET.XMLPullParser[ET.Element] = ET.XMLPullParser(["end"])
    number = 1
    try:
        # A line at a time: the elements themselves do not know where they are from.
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            parser.feed(line)
            for _, element in cast("Iterator[tuple[str, ET.Element]]", parser.read_events()):
                yield number, element
        parser.close()
    except (ET.ParseError, LookupError, ValueError) as error:  # the others: of its encoding
        raise DatasetError(f"{path} line {number}: {error}") from error


def _voc_box(here: str, element: ET.Element, width: float, height: float) -> Box:
    name = (element.findtext("name") or "").strip()
    if name not in _VOC_KINDS:
        accepted = ", ".join(_VOC_KINDS)
        raise DatasetError(f"{here}: the object's <name> is {name!r}; accepted: {accepted}")
    corners = element.find("bndbox")
    if corners is None:
        raise DatasetError(f"{here}: the object has no <bndbox>")
    x0, y0, x1, y1 = (_number(here, corners, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    # VOC counts pixels from 1, others from 0.
    if not 0.0 <= x0 < x1 <= width + 1.0 or not 0.0 <= y0 < y1 <= height + 1.0:
        raise DatasetError(
            f"{here}: the <bndbox> is {x0:g} {y0:g} {x1:g} {y1:g}; use xmin < xmax and ymin < ymax "
            f"inside the picture of {width:g}x{height:g}"
        )
    return Box(_VOC_KINDS[name], x0 / width, y0 / height, x1 / width, y1 / height)


def _number(here: str, element: ET.Element, key: str) -> float:
    text = element.findtext(key)
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        value = math.nan
    if text is None:
        raise DatasetError(f"{here}: <{element.tag}> has no <{key}>")
    if not math.isfinite(value):
        raise DatasetError(f"{here}: <{key}> is {text!r}; use a number")
    return value
