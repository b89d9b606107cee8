"""Validation scenes at the camera's size: what every table measures on.

For a model without R that is its resolution, for one with R it is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from magicfuse_ros.evaluation.metrics import U8, PixelBox
from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.training.datasets.cache import (
    CachedItem,
    CachedSource,
    CacheSettings,
    open_cache,
)
from magicfuse_ros.training.datasets.frames import Box, DatasetError, Frame
from magicfuse_ros.training.datasets.label_maps import from_canonical
from magicfuse_ros.training.datasets.layouts import find_sources
from magicfuse_ros.training.datasets.validation import ValidationItem, validation_items
from magicfuse_ros.training.degradation_mixes import RECIPES

# Frames of a video, named `<video>:<frame>`, show one scene; more than this would drown the rest.
_FRAMES_OF_A_VIDEO = 8
# An object cut by the crop counts while this much of its box is left.
_MOST_OF_A_BOX = 0.5


@dataclass(frozen=True)
class Scene:
    """A validation image under one condition, cropped to the size (H, W) that is evaluated."""

    source: str  # the dataset
    name: str
    condition: str  # the recipe asked for
    recipe: str  # the recipe drawn for it; `none` where nothing was done
    night: bool  # taken at night, or dark all the same
    visible: U8  # (H, W, 3) RGB as recorded
    degraded: U8  # (H, W, 3) RGB under the recipe
    infrared: U8 | None  # (H, W) on the common infrared scale
    labels: U8 | None  # (H, W) ids of the model's label set, 255 unknown
    boxes: tuple[tuple[str, PixelBox], ...] | None  # (kind, corners); None if there are none known

    def people(self) -> list[PixelBox]:
        """Return the boxes of people."""
        return [box for kind, box in self.boxes or () if kind == "person"]


@dataclass(frozen=True)
class Video:
    """Neighbouring frames of a validation video, cropped to the model's resolution."""

    name: str  # of source and video
    clean: bool  # whether its frames can be what restoration aims at
    night: bool
    frames: tuple[U8, ...]  # (H, W, 3) RGB as recorded, in order


T = TypeVar("T")
Needs = Callable[[Frame], bool]


def has_anything(frame: Frame) -> bool:
    """Accept every image."""
    del frame
    return True


def has_clean(frame: Frame) -> bool:
    """Whether the visible image can be a target of restoration; one taken in smoke cannot."""
    return frame.clean


def has_infrared(frame: Frame) -> bool:
    """Whether there is a real infrared image."""
    return frame.infrared is not None


def has_clean_pair(frame: Frame) -> bool:
    """Whether the image can be a target of restoration and has a real infrared image."""
    return frame.clean and frame.infrared is not None


def has_pixel_labels(frame: Frame) -> bool:
    """Whether it has a label image for every pixel, as those of CamVid do."""
    return frame.labels is not None and not frame.pseudo


def has_weak_masks(frame: Frame) -> bool:
    """Whether its labels are made from boxes, and by networks where they are, as those of MSRS."""
    return frame.boxes is not None and (frame.labels is None or frame.pseudo)


class ValidationSet:
    """The validation split of every dataset under a folder, or another split of some of them.

    The datasets (see `training.datasets.layouts`) are in `root`, their decoded images are kept in
    `cache_dir`. The model's config says at what size it is evaluated, `labels` how its classes are
    named. `layouts` None takes all datasets that are there; `split` is `val` or `train`.

    Raises DatasetError if a file is missing or no dataset is found.
    """

    def __init__(
        self,
        root: Path,
        cache_dir: Path,
        config: MagicFuseConfig,
        labels: LabelSet,
        *,
        layouts: Sequence[str] | None = None,
        split: str = "val",
    ) -> None:
        self._root, self._cache_dir = root, cache_dir
        self._layouts, self._split = layouts, split
        camera = config.refiner.camera if config.refiner is not None else 1
        self._size = camera * config.resolution[0], camera * config.resolution[1]
        self._lookup = from_canonical(labels)
        # What scenes are read from: every frame of the split, whatever it has.
        self.frames: dict[tuple[str, str], Frame] = {
            (source.name, frame.name): frame
            for source in find_sources(root, split, layouts)
            for frame in source.frames
        }
        self._items: dict[str, list[ValidationItem]] = {}  # by condition

    def items(self, condition: str, needs: Needs, limit: int) -> list[ValidationItem]:
        """List up to `limit` items (0: all) that have what is needed, evenly from every dataset."""
        if condition not in self._items:
            settings = CacheSettings(*self._size)
            for name in RECIPES:
                self._items[name] = []
            for item in validation_items(
                self._root,
                self._cache_dir,
                settings=settings,
                layouts=self._layouts,
                split=self._split,
            ):
                self._items[item.condition].append(item)
            self._items = {name: _thinned(items) for name, items in self._items.items()}
        fitting = [item for item in self._items[condition] if needs(self._frame(item))]
        return spread(fitting, limit)

    def scenes(self, condition: str, needs: Needs, limit: int) -> Iterator[Scene]:
        """Read the scenes of `items`."""
        for item in self.items(condition, needs, limit):
            yield self.scene(item)

    def videos(self, limit: int) -> list[Video]:
        """Read from the middle of every video its share of `limit` frames (0: all), at least two.

        Raises DatasetError if no dataset holds a video.
        """
        found = []
        for source in find_sources(self._root, self._split, self._layouts):
            groups: dict[str, list[int]] = {}
            for index, frame in enumerate(source.frames):
                if frame.group:
                    groups.setdefault(frame.group, []).append(index)
            if groups:
                cached = open_cache(source, self._cache_dir, CacheSettings(*self._size))
                found += [(cached, group, indices) for group, indices in groups.items()]
        if not found:
            raise DatasetError(f"{self._root} holds no video; put m3svd or m3svd_clips there")
        length = max(2, limit // len(found)) if limit else 0
        return [self._video(cached, group, _middle(some, length)) for cached, group, some in found]

    def _video(self, cached: CachedSource, group: str, indices: list[int]) -> Video:
        first = cached.items[indices[0]]
        x, y = self._corner(first)
        width, height = self._size
        images = (cached.visible(index)[y : y + height, x : x + width] for index in indices)
        frames = tuple(np.ascontiguousarray(image) for image in images)
        return Video(f"{cached.name}/{group}", first.clean, first.night, frames)

    def _frame(self, item: ValidationItem) -> Frame:
        return self.frames[item.source.name, item.item.name]

    def _corner(self, item: CachedItem) -> tuple[int, int]:
        return (item.width - self._size[0]) // 2, (item.height - self._size[1]) // 2

    def scene(self, item: ValidationItem) -> Scene:
        """Read an item, degrade it and cut its middle to the size that is evaluated."""
        width, height = self._size
        known = item.item
        x, y = self._corner(known)

        def cut(image: U8) -> U8:
            return np.ascontiguousarray(image[y : y + height, x : x + width])

        infrared, labels, boxes = item.infrared(), item.labels(), self._frame(item).boxes
        return Scene(
            source=item.source.name,
            name=known.name,
            condition=item.condition,
            recipe=item.recipe.name if item.recipe.steps else "none",
            night=known.night,
            visible=cut(item.clean()),
            degraded=cut(item.degraded()),
            infrared=None if infrared is None else cut(infrared),
            labels=None if labels is None else self._lookup[cut(labels)],
            boxes=None if boxes is None else _in_crop(boxes, known, x, y, self._size),
        )


def spread(items: list[T], limit: int) -> list[T]:
    """Pick `limit` items evenly spaced over the list; all of them for 0."""
    if limit <= 0 or limit >= len(items):
        return items
    return [items[(2 * k + 1) * len(items) // (2 * limit)] for k in range(limit)]


def _middle(indices: list[int], length: int) -> list[int]:
    start = max(0, len(indices) - length) // 2
    return indices[start : start + length] if length else indices


def _thinned(items: list[ValidationItem]) -> list[ValidationItem]:
    videos: dict[str, list[ValidationItem]] = {}
    for item in items:
        video, colon, _ = item.item.name.rpartition(":")
        key = f"{item.source.name}/{video if colon else item.item.name}"
        videos.setdefault(key, []).append(item)
    return [item for frames in videos.values() for item in spread(frames, _FRAMES_OF_A_VIDEO)]


def _in_crop(
    boxes: Sequence[Box], item: CachedItem, x: int, y: int, size: tuple[int, int]
) -> tuple[tuple[str, PixelBox], ...]:
    """Return the boxes in the crop's pixels, without those mostly outside it."""
    width, height = size
    kept = []
    for box in boxes:
        x0, y0, x1, y1 = box.pixels(item.height, item.width)
        area = (x1 - x0) * (y1 - y0)
        x0, x1 = (min(max(side - x, 0), width) for side in (x0, x1))
        y0, y1 = (min(max(side - y, 0), height) for side in (y0, y1))
        if (x1 - x0) * (y1 - y0) >= _MOST_OF_A_BOX * area:
            kept.append((box.kind, (x0, y0, x1, y1)))
    return tuple(kept)
