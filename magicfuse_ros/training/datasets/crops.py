"""Random crops for training. The same seed and index give the same sample, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.training.datasets.cache import CachedItem, CachedSource
from magicfuse_ros.training.datasets.copy_paste import Donors, Picture
from magicfuse_ros.training.datasets.frames import U8, Box, DatasetError
from magicfuse_ros.training.datasets.label_maps import CANONICAL, from_canonical
from magicfuse_ros.training.datasets.recolour import recolour
from magicfuse_ros.training.degradation_mixes import Mix, degrade, sample_recipe
from magicfuse_ros.training.heat import HEAT

# How much more often a crop goes around a box of this kind.
_BOX_WEIGHT = {"person": 4.0, HEAT: 2.0}

# By night networks take façades for trees and back: how often their labels are left out.
_UNSURE_AT_NIGHT, _LEFT_OUT = ("building", "vegetation"), 0.7

# Chance of mirroring, and degrees of rotation either way.
_FLIP, _ROTATION = 0.5, 10.0


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples a stage sees: the section `data` of its YAML.

    Attributes
    ----------
    crop, crop_width
        Height and width of the crops, in pixels at the model resolution; without a width they are
        square.
    around_box
        Chance that a crop from an item with boxes holds a box, drawn with people four times as
        likely as others: they are a percent of the pixels.
    warp
        Chance of a rotation by up to 10 degrees and a change of size; the rest are exact pixels.
    scale
        Smallest and largest magnification of a warped crop.
    paste
        Chance that people and bikes of other frames are pasted in (see `copy_paste`).
    recolour
        Chance that the visible image's tone and colours are drawn anew (see `recolour`).
    unpaired
        Show Φ images without infrared too: what their labels say of objects teaches its `objects`
        head, and nothing else.
    weights
        (source name, share of the samples) pairs. A source that is not named gets its share by the
        square root of its size, so that small sources are neither lost nor drilled.
    mix
        Which degradations, how often.
    """

    crop: int
    crop_width: int = 0
    around_box: float = 0.5
    warp: float = 0.5
    scale: tuple[float, float] = (0.85, 1.3)
    paste: float = 0.0
    recolour: float = 0.0
    unpaired: bool = False
    weights: tuple[tuple[str, float], ...] = ()
    mix: Mix = field(default_factory=Mix)

    def __post_init__(self) -> None:
        if min(self.shape) < 16:
            raise ConfigError(f"data.crop is {min(self.shape)}; accepted: 16 pixels or more")
        for name in ("around_box", "warp", "paste", "recolour"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ConfigError(f"data.{name} is {getattr(self, name)}; accepted: 0 to 1")
        if not 0.0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f"data.scale is {self.scale}; accepted: 0 < smallest <= largest")

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of a sample."""
        return self.crop, self.crop_width or self.crop


class CropDataset(Dataset[dict[str, Tensor]]):
    """Random crops of several sources, mixed by weight; a map from index to sample.

    A sample holds

    - `degraded`, `clean`: (3, H, W) float32 RGB in [0, 1]
    - `infrared`: (1, H, W) float32 in [0, 1] on the common scale, zeros where there is none
    - `labels`: (H, W) int64 ids of the label set, 255 unknown
    - `thermal_weight`: (H, W) float32 in [0, 1], 1 on annotated people, 0.5 on vehicles and on
      hot spots of images that have no annotation
    - `has_infrared`, `has_clean`, `annotated` (objects have boxes): () float32, 1 or 0
    - `source`: () int64, place of the source in `sources`
    - `night`: () float32, 1 or 0

    Parameters
    ----------
    sources
        Opened caches.
    config
        What a sample looks like, and how often each source is drawn.
    labels
        The label set wanted.
    seed
        With the index, the only source of randomness.
    samples
        Length of the dataset: how many indices training will use.
    needs
        What an item must have to be drawn: any of "clean" (a visible image fit as the target of
        restoration), "infrared" and "labels".

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
        samples: int,
        needs: frozenset[str] = frozenset(),
    ) -> None:
        self.sources = list(sources)
        self.config = config
        self.seed = seed
        self.samples = samples
        self._lookup = from_canonical(labels)
        self._unsure = [CANONICAL.index(name) for name in _UNSURE_AT_NIGHT]
        # For the whole process and the workers forked from it: images this small are not worth
        # threads, and those would take the cores from the network.
        cv2.setNumThreads(1)
        self._usable = [_usable(source, needs) for source in self.sources]
        self._donors = [Donors(source) for source in self.sources] if config.paste else []
        self._share = _shares(self.sources, self._usable, dict(config.weights), needs)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, index))
        s = int(rng.choice(len(self.sources), p=self._share))
        source = self.sources[s]
        i = int(rng.choice(self._usable[s]))
        picture = Picture.of(source, i)
        if self.config.paste and rng.random() < self.config.paste:
            picture = self._donors[s].paste(picture, rng)
        item, shape = picture.item, self.config.shape
        cut = self._cut(item, rng)

        clean = cut.smooth(picture.visible)
        if self.config.recolour and rng.random() < self.config.recolour:
            clean = recolour(clean, rng)
        recipe = sample_recipe(rng, self.config.mix, night=item.night or not item.clean)
        degraded = degrade(clean, rng, recipe)
        infrared, labels = picture.infrared, picture.labels
        ids = np.full(shape, UNKNOWN, np.uint8)
        if labels is not None:
            known = cut.nearest(labels)
            if item.pseudo and item.night and rng.random() < _LEFT_OUT:
                known[np.isin(known, self._unsure)] = UNKNOWN
            ids = self._lookup[known]
        return {
            "degraded": _float_tensor(degraded),
            "clean": _float_tensor(clean),
            "infrared": torch.zeros(1, *shape)
            if infrared is None
            else _float_tensor(cut.smooth(infrared)[..., None]),
            "labels": torch.from_numpy(ids.astype(np.int64)),
            "thermal_weight": torch.from_numpy(
                cut.nearest(_thermal(item)).astype(np.float32) / 255.0
            ),
            "has_infrared": torch.tensor(float(infrared is not None)),
            "has_clean": torch.tensor(float(item.clean)),
            "annotated": torch.tensor(float(item.annotated)),
            "source": torch.tensor(s),
            "night": torch.tensor(float(item.night)),
        }

    def _cut(self, item: CachedItem, rng: np.random.Generator) -> _Cut:
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
        if item.boxes and rng.random() < config.around_box:
            x, y = _near(_choose(item.boxes, rng), item, (half_x, half_y), rng)
        return _Cut((x, y), (width, height), angle, scale, flip)


@dataclass(frozen=True)
class _Cut:
    """A window on an image.

    Attributes
    ----------
    center
        (x, y) in pixels of the image.
    size
        (width, height) of the window, in its own pixels.
    angle, scale, flip
        Its rotation in degrees, its magnification, and whether it is mirrored.
    """

    center: tuple[float, float]
    size: tuple[int, int]
    angle: float
    scale: float
    flip: bool

    def smooth(self, image: U8) -> U8:
        return self._take(image, cv2.INTER_LINEAR)

    def nearest(self, image: U8) -> U8:
        return self._take(image, cv2.INTER_NEAREST)

    def _take(self, image: U8, interpolation: int) -> U8:
        width, height = self.size
        if self.angle == 0.0 and self.scale == 1.0:
            x, y = round(self.center[0] - width / 2.0), round(self.center[1] - height / 2.0)
            part = image[y : y + height, x : x + width]
            # A copy in any case: the cache is read-only.
            return np.array(part[:, ::-1] if self.flip else part, order="C")
        turn = math.radians(self.angle)
        c, s = math.cos(turn) / self.scale, math.sin(turn) / self.scale
        mirror = -1.0 if self.flip else 1.0
        middle = ((width - 1) / 2.0, (height - 1) / 2.0)
        # From crop to image; pixel centres lie half a pixel inside the coordinates of `center`.
        matrix = np.array([[c * mirror, -s, 0.0], [s * mirror, c, 0.0]])
        matrix[:, 2] = np.array(self.center) - 0.5 - matrix[:, :2] @ middle
        flags = interpolation | cv2.WARP_INVERSE_MAP
        border = cv2.BORDER_REFLECT_101
        return np.asarray(
            cv2.warpAffine(image, matrix, self.size, flags=flags, borderMode=border), np.uint8
        )


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
    weight = np.array([_BOX_WEIGHT.get(box.kind, 1.0) for box in boxes])
    return boxes[int(rng.choice(len(boxes), p=weight / weight.sum()))]


def _near(
    box: Box, item: CachedItem, half: tuple[float, float], rng: np.random.Generator
) -> tuple[float, float]:
    """Choose a crop centre that holds the box's centre, anywhere in the crop's inner part."""
    x = (box.x0 + box.x1) / 2.0 * item.width + rng.uniform(-0.7, 0.7) * half[0]
    y = (box.y0 + box.y1) / 2.0 * item.height + rng.uniform(-0.7, 0.7) * half[1]
    x = min(max(x, half[0]), max(half[0], item.width - half[0]))
    y = min(max(y, half[1]), max(half[1], item.height - half[1]))
    return float(x), float(y)


def _thermal(item: CachedItem) -> U8:
    weight = np.zeros((item.height, item.width), np.uint8)
    for box in sorted(item.boxes or (), key=lambda box: box.kind == "person"):
        x0, y0, x1, y1 = box.pixels(item.height, item.width)
        weight[y0:y1, x0:x1] = 255 if box.kind == "person" else 128
    return weight


def _float_tensor(image: U8) -> Tensor:
    """(H, W, C) uint8 to (C, H, W) float32 in [0, 1]."""
    return torch.from_numpy(image).permute(2, 0, 1).float().div_(255.0)
