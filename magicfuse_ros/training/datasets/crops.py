"""Random crops for training, made a batch at a time on the device that trains.

The decoded images lie there too. What is cut where is drawn on the CPU, and everything that is
done to pixels is done there by the batch. The same seed and place in training give the same batch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.model.config_values import require, require_share
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.training.datasets.cache import CachedItem, CachedSource
from magicfuse_ros.training.datasets.copy_paste import Donors
from magicfuse_ros.training.datasets.frames import Box, DatasetError
from magicfuse_ros.training.datasets.label_maps import CANONICAL, from_canonical
from magicfuse_ros.training.datasets.pixels import Cut, Pixels
from magicfuse_ros.training.datasets.recolour import recolour
from magicfuse_ros.training.degradation_mixes import Mix, degrade_batch, sample_recipe
from magicfuse_ros.training.heat import HEAT

# How much more often a crop goes around a box of this kind.
_BOX_WEIGHT = {"person": 4.0, HEAT: 2.0}

# By night networks take façades for trees and back: how often their labels are left out.
_UNSURE_AT_NIGHT, _LEFT_OUT = ("building", "vegetation"), 0.7

# Chance of mirroring, and degrees of rotation either way.
_FLIP, _ROTATION = 0.5, 10.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples a stage sees: the section `data` of its YAML."""

    # Height and width of the crops, in pixels at the model resolution; without a width they are
    # square.
    crop: int
    crop_width: int = 0
    # Chance that a crop from an item with boxes holds a box, drawn with people four times as likely
    # as others: they are a percent of the pixels.
    around_box: float = 0.5
    # Chance of a rotation by up to 10 degrees and a change of size; the rest are exact pixels.
    warp: float = 0.5
    scale: tuple[float, float] = (0.85, 1.3)  # smallest and largest magnification of a warped crop
    # Chance that people and bikes of other frames are pasted in (see `copy_paste`).
    paste: float = 0.0
    # Chance that the visible image's tone and colours are drawn anew (see `recolour`).
    recolour: float = 0.0
    # Show Φ images without infrared too: what their labels say of objects teaches its `objects`
    # head, and nothing else.
    unpaired: bool = False
    # (source name, share of the samples) pairs. A source that is not named gets its share by the
    # square root of its size, so that small sources are neither lost nor drilled.
    weights: tuple[tuple[str, float], ...] = ()
    mix: Mix = field(default_factory=Mix)  # which degradations, how often

    def __post_init__(self) -> None:
        require(min(self.shape) >= 16, "data.crop", min(self.shape), "16 pixels or more")
        require_share(self, "data", "around_box", "warp", "paste", "recolour")
        in_order = 0.0 < self.scale[0] <= self.scale[1]
        require(in_order, "data.scale", self.scale, "0 < smallest <= largest")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a sample."""
        return self.crop, self.crop_width or self.crop


class Crops:
    """Random crops of several sources, mixed by weight.

    A batch holds, on the device,

    - `degraded`, `clean`: (B, 3, H, W) float32 RGB in [0, 1], in channels-last memory
    - `infrared`: (B, 1, H, W) float32 in [0, 1] on the common scale, zeros where there is none
    - `labels`: (B, H, W) int64 ids of the label set, 255 unknown
    - `thermal_weight`: (B, H, W) float32 in [0, 1], 1 on annotated people, 0.5 on vehicles and on
      hot spots of images that have no annotation
    - `has_infrared`, `has_clean`, `annotated` (objects have boxes): (B,) float32, 1 or 0
    - `source`: (B,) float32, place of the source in `sources`

    Parameters
    ----------
    sources
        Opened caches; they are copied to a GPU's memory, and stay mapped files on a CPU.
    config
        What a sample looks like, and how often each source is drawn.
    labels
        The label set wanted.
    seed
        With the number of a batch's first sample, the only source of randomness.
    needs
        What an item must have to be drawn: any of "clean" (a visible image fit as the target of
        restoration), "infrared" and "labels".
    device
        Where batches are made; None is the CPU.

    Raises
    ------
    DatasetError
        If no source has what is needed, or a weight names no source.
    """

    def __init__(
        self,
        sources: Sequence[CachedSource],
        config: DataConfig,
        labels: LabelSet,
        *,
        seed: int,
        needs: frozenset[str] = frozenset(),
        device: torch.device | None = None,
    ) -> None:
        self.sources = list(sources)
        self.config = config
        self.seed = seed
        self._device = device or torch.device("cpu")
        lookup, sure = from_canonical(labels), from_canonical(labels)
        sure[[CANONICAL.index(name) for name in _UNSURE_AT_NIGHT]] = UNKNOWN
        self._lookup = torch.tensor([*lookup, *sure], dtype=torch.int64, device=self._device)
        self._usable = [_usable(source, needs) for source in self.sources]
        share = _shares(self.sources, self._usable, dict(config.weights), needs)
        self._share = np.cumsum(share)
        drawn = [source if part else None for source, part in zip(sources, share, strict=True)]
        self._bytes = [None if one is None else one.bytes_on(self._device) for one in drawn]
        self._donors = [Donors(one) if one and config.paste else None for one in drawn]

    def batch(self, first: int, count: int) -> dict[str, Tensor]:
        """Make the samples from number `first` on."""
        rng, config = np.random.default_rng((self.seed, first)), self.config
        pixels = Pixels()
        items, cuts, facts = [], [], []
        for _ in range(count):
            s = int(np.searchsorted(self._share, rng.random() * self._share[-1], side="right"))
            item = self.sources[s].items[int(rng.choice(self._usable[s]))]
            data, donors = self._bytes[s], self._donors[s]
            assert data is not None  # noqa: S101 - for mypy: it has a share
            place = pixels.add(data, item)
            boxes = item.boxes
            if donors is not None and rng.random() < config.paste:
                boxes = donors.paste(pixels, place, data, item, rng)
            cuts.append(self._cut(item, boxes, rng))
            is_left_out = item.pseudo and item.night and rng.random() < _LEFT_OUT
            facts.append((item.has_infrared, item.clean, item.annotated, s, is_left_out))
            items.append(item)
        colours, known = pixels.cut(cuts, config.shape, self._device)
        clean = colours[..., :3].float()
        recoloured = np.flatnonzero(rng.random(count) < config.recolour)
        if len(recoloured):
            some = torch.from_numpy(recoloured).to(self._device)
            clean[some] = recolour(clean[some], rng)
        recipes = [
            sample_recipe(rng, config.mix, night=item.night or not item.clean) for item in items
        ]
        degraded = degrade_batch(clean, rng, recipes)
        told = torch.tensor(facts, dtype=torch.float32).to(self._device)
        has_infrared, has_clean, annotated, source, left_out = told.unbind(1)
        ids = known[..., 0].long() + 256 * left_out.long()[:, None, None]
        return {
            "degraded": degraded.mul(1.0 / 255.0).permute(0, 3, 1, 2),
            "clean": clean.mul(1.0 / 255.0).permute(0, 3, 1, 2),
            "infrared": colours[..., 3].float().mul_(1.0 / 255.0)[:, None],
            "labels": self._lookup[ids],
            "thermal_weight": known[..., 1].float().mul_(1.0 / 255.0),
            "has_infrared": has_infrared,
            "has_clean": has_clean,
            "annotated": annotated,
            "source": source,
        }

    def _cut(self, item: CachedItem, boxes: Sequence[Box], rng: np.random.Generator) -> Cut:
        config = self.config
        flip = bool(rng.random() < _FLIP)
        angle, scale = 0.0, 1.0
        if rng.random() < config.warp:
            angle = float(rng.uniform(-_ROTATION, _ROTATION))
            scale = float(np.exp(rng.uniform(*np.log(config.scale))))
        height, width = config.shape
        scale = max(scale, height / item.height, width / item.width)
        half_x, half_y = width / scale / 2.0, height / scale / 2.0
        x = float(rng.uniform(half_x, max(half_x, item.width - half_x)))
        y = float(rng.uniform(half_y, max(half_y, item.height - half_y)))
        if boxes and rng.random() < config.around_box:
            x, y = _near(_choose(boxes, rng), item, (half_x, half_y), rng)
        return Cut((x, y), angle, scale, flip)


def _usable(source: CachedSource, needs: frozenset[str]) -> NDArray[np.int64]:
    def has(item: CachedItem) -> bool:
        got = {"clean": item.clean, "infrared": item.has_infrared, "labels": item.has_labels}
        return all(got[need] for need in needs)

    return np.array([i for i, item in enumerate(source.items) if has(item)], np.int64)


def _shares(
    sources: Sequence[CachedSource],
    usable: Sequence[NDArray[np.int64]],
    weights: Mapping[str, float],
    needs: frozenset[str],
) -> NDArray[np.float64]:
    names = [source.name for source in sources]
    for name, weight in weights.items():
        if name not in names or not weight >= 0.0:
            raise DatasetError(
                f"source weight {name}: {weight} is wrong; use >= 0 for one of {names}"
            )
    share = np.array([
        weights.get(name, math.sqrt(len(items))) if len(items) else 0.0
        for name, items in zip(names, usable, strict=True)
    ])  # fmt: skip
    if share.sum() <= 0.0:
        raise DatasetError(f"none of {names} has items with {sorted(needs)}; add a source that has")
    return np.asarray(share / share.sum())


def _choose(boxes: Sequence[Box], rng: np.random.Generator) -> Box:
    weight = np.cumsum([_BOX_WEIGHT.get(box.kind, 1.0) for box in boxes])
    return boxes[int(np.searchsorted(weight, rng.random() * weight[-1], side="right"))]


def _near(
    box: Box, item: CachedItem, half: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float]:
    """Choose a crop centre that holds the box's centre, anywhere in the crop's inner part."""
    x = (box.x0 + box.x1) / 2.0 * item.width + rng.uniform(-0.7, 0.7) * half[0]
    y = (box.y0 + box.y1) / 2.0 * item.height + rng.uniform(-0.7, 0.7) * half[1]
    x = min(max(x, half[0]), max(half[0], item.width - half[0]))
    y = min(max(y, half[1]), max(half[1], item.height - half[1]))
    return float(x), float(y)
