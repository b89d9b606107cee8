"""The picture sheet: validation scenes as rows, what the model makes of each as columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.scenes import Scene, ValidationSet, has_infrared
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.training.datasets import CachedItem, ValidationItem
from magicfuse_ros.training.sheets import grid

COLUMNS = ("input", "enhanced", "imagined infrared", "real infrared", "MagImg", "semantics")

BAND = 18
"""Height in pixels of a caption's band."""


@dataclass(frozen=True)
class Wanted:
    """A kind of scene that a sheet should show: under which condition, and which images fit."""

    condition: str
    fits: Callable[[CachedItem], bool]


def _night(item: CachedItem) -> bool:
    return item.night and item.clean


def _day(item: CachedItem) -> bool:
    return not item.night and item.clean


def _smoke(item: CachedItem) -> bool:
    return not item.clean


WANTED = (
    Wanted("low_light", _day),
    Wanted("none", _night),
    Wanted("haze", _day),
    Wanted("none", _smoke),
    Wanted("noise", _day),
    Wanted("night", _day),
    Wanted("noise", _night),
    Wanted("rain", _day),
    Wanted("blur", _day),
    Wanted("mixed", _night),
)
"""In this order, and from the start again for a longer sheet; what no image fits is passed over."""


def sheet_items(scenes: ValidationSet, rows: int) -> list[ValidationItem]:
    """Choose the sheet's images, each once; those with the largest people first."""
    chosen: list[ValidationItem] = []
    used: set[tuple[str, str]] = set()
    while len(chosen) < rows:
        before = len(chosen)
        for wanted in WANTED:
            if len(chosen) == rows:
                break
            items = scenes.items(wanted.condition, has_infrared, 0)
            fresh = [i for i in items if wanted.fits(i.item) and _key(i) not in used]
            if fresh:
                chosen.append(max(fresh, key=_people))
                used.add(_key(chosen[-1]))
        if len(chosen) == before:
            break
    if not chosen:
        raise ValueError("no validation image has infrared; a sheet needs a dataset of pairs")
    return chosen


def picture_sheet(evaluation: Evaluation, rows: int) -> U8:
    """Draw `rows` scenes with the six pictures of `COLUMNS` each: (rows·H, 6·W, 3) RGB."""
    return grid(_rows(evaluation, sheet_items(evaluation.scenes, rows)))


def semantics(mask: U8, image: U8, labels: LabelSet) -> U8:
    """Colours of the classes over the luminance of an RGB image, half and half."""
    colors = np.array(labels.palette(), np.uint8)[mask]
    light = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(colors, 0.6, light, 0.4, 0.0), np.uint8)


def _rows(evaluation: Evaluation, items: list[ValidationItem]) -> Iterator[list[U8]]:
    labels = evaluation.model.labels
    for number, item in enumerate(items):
        scene = evaluation.scenes.scene(item)
        made = evaluation.fuse(scene.degraded)
        real = np.zeros(made.infrared.shape, np.uint8) if scene.infrared is None else scene.infrared
        pictures = (
            scene.degraded, made.enhanced, _rgb(made.infrared), _rgb(real), made.magimg,
            semantics(made.mask, made.magimg, labels),
        )  # fmt: skip
        names = list(COLUMNS) if number == 0 else [""] * len(COLUMNS)
        names[0] = f"{_what(scene)}: {scene.source.split('/')[0]} {scene.name}"
        yield [_captioned(picture, name) for picture, name in zip(pictures, names, strict=True)]


def _rgb(image: U8) -> U8:
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2RGB), np.uint8)


def _captioned(image: U8, text: str) -> U8:
    """Copy of an image with white text on a darkened band along its top."""
    result = np.array(image)
    if text:
        result[:BAND] //= 4
        cv2.putText(result, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (255, 255, 255), 1)
    return result


def _what(scene: Scene) -> str:
    what = "as recorded" if scene.condition == "none" else scene.recipe.replace("_", " ")
    return f"night, {what}" if scene.night else what


def _people(item: ValidationItem) -> float:
    """Area of the people in an image, as a share of it."""
    boxes = [box for box in item.item.boxes if box.kind == "person"]
    return sum((box.x1 - box.x0) * (box.y1 - box.y0) for box in boxes)


def _key(item: ValidationItem) -> tuple[str, str]:
    name = item.item.name
    return item.source.name, name.rpartition(":")[0] or name
