"""Copy-paste of people and bikes between frames of one dataset (Ghiasi et al., CVPR 2021).

People and bikes make up a percent of the pixels, and there are only a few hundred of them, so that
networks learn their frames by heart. Pasted into another street, at the same height in the picture
and the same time of day, an object is new to them.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.training.datasets.cache import CachedItem, CachedSource, thermal_weight
from magicfuse_ros.training.datasets.frames import Box
from magicfuse_ros.training.datasets.label_maps import CANONICAL
from magicfuse_ros.training.datasets.pixels import Patch, Pixels

# Kind of box -> how often it is chosen. A car's mask is too rough to be seen outside its street.
_KINDS = {"person": 1.0, "bike": 0.5}
_SMALLEST = 8  # pixels of a box's longer side
_MOST = 3  # objects a frame
_SHIFT = 0.03  # of the height, up or down


@dataclass(frozen=True)
class _Donor:
    """An object of a frame: its box, and how much of each pixel it covers, in sixteenths."""

    item: CachedItem
    box: Box
    share: NDArray[np.uint8]


class Donors:
    """The objects of a source that can be pasted into its other frames.

    Frames that have annotated boxes, labels and infrared give and take objects.
    """

    def __init__(self, source: CachedSource) -> None:
        self._donors: dict[bool, list[_Donor]] = {True: [], False: []}
        for index, item in enumerate(source.items):
            labels = source.labels(index) if _takes_part(item) else None
            if labels is None:
                continue
            for box in item.boxes:
                x0, y0, x1, y1 = box.pixels(item.height, item.width)
                if box.kind in _KINDS and max(x1 - x0, y1 - y0) >= _SMALLEST:
                    mask = np.ascontiguousarray(labels[y0:y1, x0:x1] == CANONICAL.index(box.kind))
                    share = cv2.GaussianBlur(mask.astype(np.float32), (3, 3), 0.0) * 16.0
                    self._donors[item.night].append(_Donor(item, box, share.astype(np.uint8)))
        self._weights = {
            night: np.cumsum([_KINDS[donor.box.kind] for donor in donors])
            for night, donors in self._donors.items()
        }

    def paste(
        self, pixels: Pixels, place: int, data: Tensor, item: CachedItem, rng: np.random.Generator
    ) -> tuple[Box, ...]:
        """Paste one to three objects into the frame added last; returns its boxes and theirs.

        A frame that lacks boxes, labels or infrared stays as it is, and so does one for which there
        is no object of the same time of day. Everything random comes from `rng`. `place` is the
        number of the frame's first pixel in `pixels`, and `data` are the bytes of the source.
        """
        donors, weights = self._donors[item.night], self._weights[item.night]
        boxes = list(item.boxes)
        if not donors or not _takes_part(item):
            return item.boxes
        for _ in range(int(rng.integers(1, _MOST + 1))):
            chosen = np.searchsorted(weights, rng.random() * weights[-1], side="right")
            donor = donors[int(chosen)]
            height, width = donor.share.shape
            x0, y0 = donor.box.pixels(donor.item.height, donor.item.width)[:2]
            x = int(rng.integers(0, max(item.width - width, 0) + 1))
            y = y0 + round(float(rng.uniform(-_SHIFT, _SHIFT)) * donor.item.height)
            y = min(max(y, 0), item.height - height)
            flip = -1 if rng.random() < 0.5 else 1
            if x + width > item.width or y < 0:
                continue
            start = pixels.add_rows(data, donor.item, y0, y0 + height)
            rows, columns = np.ogrid[:height, :width]
            source = (start + rows * donor.item.width + x0 + columns)[:, ::flip]
            target = place + (y + rows) * item.width + x + columns
            share = donor.share[:, ::flip].ravel()
            label, weight = CANONICAL.index(donor.box.kind), thermal_weight(donor.box)
            pixels.paste(Patch(source.ravel(), target.ravel(), share, label, weight))
            right, bottom = (x + width) / item.width, (y + height) / item.height
            boxes.append(Box(donor.box.kind, x / item.width, y / item.height, right, bottom))
        return tuple(boxes)


def _takes_part(item: CachedItem) -> bool:
    return item.annotated and item.has_infrared and item.has_labels
