"""The picture sheet: validation scenes as rows, what the model makes of each as columns."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.scenes import Scene, ValidationSet, has_infrared
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.runtime.class_colors import colorize
from magicfuse_ros.sources.pictures import to_rgb8
from magicfuse_ros.training.datasets.cache import CachedItem
from magicfuse_ros.training.datasets.validation import ValidationItem
from magicfuse_ros.training.sheets import caption, grid

COLUMNS = ("input", "enhanced", "imagined infrared", "real infrared", "MagImg", "semantics")

WANTED = (
    ("low_light", "day"),
    ("none", "night"),
    ("haze", "day"),
    ("none", "smoke"),
    ("noise", "day"),
    ("night", "day"),
    ("noise", "night"),
    ("rain", "day"),
    ("blur", "day"),
    ("mixed", "night"),
)
"""Conditions, and what images are wanted under them, in this order and from the start again for a
longer sheet; what no image fits is passed over."""


def sheet_items(scenes: ValidationSet, rows: int) -> list[ValidationItem]:
    """Choose the sheet's images, each once; those with the largest people first."""
    chosen: list[ValidationItem] = []
    used: set[tuple[str, str]] = set()
    while len(chosen) < rows:
        before = len(chosen)
        for condition, kind in WANTED:
            if len(chosen) == rows:
                break
            items = scenes.items(condition, has_infrared, 0)
            fresh = [i for i in items if _kind(i.item) == kind and _key(i) not in used]
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


def _rows(evaluation: Evaluation, items: list[ValidationItem]) -> Iterator[list[U8]]:
    palette = evaluation.model.labels.palette()
    for number, item in enumerate(items):
        scene = evaluation.scenes.scene(item)
        made = evaluation.fuse(scene.degraded)
        real = np.zeros(made.infrared.shape, np.uint8) if scene.infrared is None else scene.infrared
        pictures = (
            scene.degraded, made.enhanced, to_rgb8(made.infrared), to_rgb8(real), made.magimg,
            colorize(made.mask, made.magimg, palette),
        )  # fmt: skip
        names = list(COLUMNS) if number == 0 else [""] * len(COLUMNS)
        names[0] = f"{_what(scene)}: {scene.source.split('/')[0]} {scene.name}"
        yield [caption(picture, name) for picture, name in zip(pictures, names, strict=True)]


def _kind(item: CachedItem) -> str:
    return "smoke" if not item.clean else "night" if item.night else "day"


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
