"""Copy-paste of people and bikes between frames of one dataset (Ghiasi et al., CVPR 2021).

People and bikes make up a percent of the pixels, and there are only a few hundred of them, so that
networks learn their frames by heart. Pasted into another street, at the same height in the picture
and the same time of day, an object is new to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from magicfuse_ros.training.datasets.cache import CachedItem, CachedSource
from magicfuse_ros.training.datasets.frames import U8, Box
from magicfuse_ros.training.datasets.label_maps import CANONICAL

# Kind of box -> how often it is chosen. A car's mask is too rough to be seen outside its street.
_KINDS = {"person": 1.0, "bike": 0.5}
_SMALLEST = 8  # pixels of a box's longer side
_MOST = 3  # objects a frame
_SHIFT = 0.03  # of the height, up or down


@dataclass(frozen=True)
class Picture:
    """A frame's planes, with the item that tells its boxes.

    Attributes
    ----------
    visible
        (H, W, 3) uint8 RGB.
    infrared, labels
        (H, W) uint8 on the common scale, and canonical ids; None where there is none.
    """

    item: CachedItem
    visible: U8
    infrared: U8 | None
    labels: U8 | None

    @classmethod
    def of(cls, source: CachedSource, index: int) -> Picture:
        """Read item `index`; its planes are views into the cache."""
        return cls(
            source.items[index], source.visible(index), source.infrared(index), source.labels(index)
        )


class Donors:
    """The objects of a source that can be pasted into its other frames.

    Parameters
    ----------
    source
        Its frames that have annotated boxes, labels and infrared give and take objects.
    """

    def __init__(self, source: CachedSource) -> None:
        self._source = source
        self._boxes: dict[bool, list[tuple[int, Box]]] = {True: [], False: []}
        for index, item in enumerate(source.items):
            for box in item.boxes if _takes_part(item) else ():
                x0, y0, x1, y1 = box.pixels(item.height, item.width)
                if box.kind in _KINDS and max(x1 - x0, y1 - y0) >= _SMALLEST:
                    self._boxes[item.night].append((index, box))

    def paste(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return a copy of the picture with one to three more objects and their boxes.

        A picture that lacks boxes, labels or infrared is returned as it is, and so is one for which
        there is no object of the same time of day. Everything random comes from `rng`.
        """
        donors = self._boxes[picture.item.night]
        if not donors or not _takes_part(picture.item):
            return picture
        assert picture.infrared is not None  # noqa: S101 - for mypy: it takes part
        assert picture.labels is not None  # noqa: S101
        planes = (picture.visible.copy(), picture.infrared.copy(), picture.labels.copy())
        weight = np.array([_KINDS[box.kind] for _, box in donors])
        boxes = list(picture.item.boxes)
        count = int(rng.integers(1, _MOST + 1))
        for k in rng.choice(len(donors), size=count, p=weight / weight.sum()):
            index, box = donors[int(k)]
            donor = Picture.of(self._source, index)
            corner = _paste(donor, box, planes, rng)
            if corner is not None:
                boxes.append(_moved(box, donor.item, corner, picture.item))
        return Picture(replace(picture.item, boxes=tuple(boxes)), *planes)


def _takes_part(item: CachedItem) -> bool:
    return item.annotated and item.has_infrared and item.has_labels


def _paste(
    donor: Picture, box: Box, planes: Sequence[U8], rng: np.random.Generator
) -> tuple[int, int] | None:
    """Paste into the planes; return the corner (x, y) there, or None if the box does not fit."""
    x0, y0, x1, y1 = box.pixels(donor.item.height, donor.item.width)
    width, height = x1 - x0, y1 - y0
    visible, infrared, labels = planes
    room = (labels.shape[1] - width, labels.shape[0] - height)
    x = int(rng.integers(0, max(room[0], 0) + 1))
    y = y0 + round(float(rng.uniform(-_SHIFT, _SHIFT)) * donor.item.height)
    flip = -1 if rng.random() < 0.5 else 1
    y = min(max(y, 0), room[1])
    if min(room) < 0 or donor.infrared is None or donor.labels is None:
        return None
    identity = CANONICAL.index(box.kind)
    mask = np.ascontiguousarray(donor.labels[y0:y1, x0:x1][:, ::flip] == identity)
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.0)
    there = np.s_[y : y + height, x : x + width]
    for plane, own in ((visible, donor.visible), (infrared, donor.infrared)):
        patch = own[y0:y1, x0:x1][:, ::flip].astype(np.float32)
        share = alpha[..., None] if plane.ndim > alpha.ndim else alpha
        plane[there] = np.rint(plane[there] * (1.0 - share) + patch * share).astype(np.uint8)
    labels[there][mask] = identity
    return x, y


def _moved(box: Box, of: CachedItem, corner: tuple[int, int], to: CachedItem) -> Box:
    """Give the box its place in the other frame."""
    x0, y0, x1, y1 = box.pixels(of.height, of.width)
    x, y = corner
    right, bottom = x + x1 - x0, y + y1 - y0
    return Box(box.kind, x / to.width, y / to.height, right / to.width, bottom / to.height)
