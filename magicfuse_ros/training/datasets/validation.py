"""The images that models are validated on: a fixed list, each with its degradation and seed."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from magicfuse_ros.training.datasets.cache import (
    CachedItem,
    CachedSource,
    CacheSettings,
    open_cache,
)
from magicfuse_ros.training.datasets.frames import U8, Rgb
from magicfuse_ros.training.datasets.layouts import find_sources
from magicfuse_ros.training.degradation_mixes import RECIPES, Recipe, degrade, named_recipe


@dataclass(frozen=True)
class ValidationItem:
    """One image under one recipe; everything derived from it is the same on every call.

    It is at `index` of the source. The condition names the recipe that was asked for, a key of the
    report; `recipe` was drawn for this image, and `seed` is that of the degradation.
    """

    source: CachedSource
    index: int
    condition: str
    recipe: Recipe
    seed: int

    @property
    def item(self) -> CachedItem:
        """Return what is known of the image: name, size, boxes, whether it is dark or clean."""
        return self.source.items[self.index]

    def clean(self) -> Rgb:
        """Return the image without degradation, (H, W, 3) uint8 RGB."""
        return np.array(self.source.visible(self.index))

    def degraded(self) -> Rgb:
        """Return the image under the recipe, (H, W, 3) uint8 RGB."""
        return degrade(self.clean(), np.random.default_rng(self.seed), self.recipe)

    def infrared(self) -> U8 | None:
        """Return its infrared, (H, W) uint8 on the common scale, or None."""
        return self.source.infrared(self.index)

    def labels(self) -> U8 | None:
        """Return (H, W) uint8 canonical ids; `from_canonical` maps them to those of a label set."""
        return self.source.labels(self.index)


def validation_items(
    root: Path,
    cache_dir: Path,
    *,
    conditions: Sequence[str] = RECIPES,
    settings: CacheSettings | None = None,
    layouts: Sequence[str] | None = None,
    split: str = "val",
) -> list[ValidationItem]:
    """List the images of a split of every dataset under `root`, once for each condition.

    A condition keeps its recipes and seeds whatever other conditions are asked for, and an image
    keeps its own whatever other images there are, because both come from their names.

    Raises
    ------
    DatasetError
        If a file is missing or no dataset is found.
    """
    result = []
    for source in find_sources(root, split, layouts):
        cached = open_cache(source, cache_dir, settings)
        for index, item in enumerate(cached.items):
            for condition in conditions:
                name = f"{cached.name}/{item.name}/{condition}"
                seed = zlib.crc32(name.encode())
                recipe = named_recipe(
                    condition, np.random.default_rng((seed, 1)), night=item.night or not item.clean
                )
                result.append(ValidationItem(cached, index, condition, recipe, seed))
    return result
