"""The pixels that a batch is cut from, on any device: frames, objects pasted in, and windows.

A batch's frames lie one after another in two tensors: colours, RGB and infrared as 32 bits a
pixel, and what is known, label and thermal weight as 16 bits a pixel. So one gather takes all of
them, whatever their sizes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magicfuse_ros.training.datasets.cache import CachedItem

_PARTS = 256  # of a pixel, that are interpolated between
# Bytes 0 and 2 of a packed pixel, and one half at the place of each after weighting.
_EVEN, _HALVES = 0x00FF00FF, 0x00800080


@dataclass(frozen=True)
class Cut:
    """A window on an image."""

    center: tuple[float, float]  # (x, y) in pixels of the image
    # Its rotation in degrees, its magnification, and whether it is mirrored.
    angle: float
    scale: float
    flip: bool

    def matrix(self, height: int, width: int) -> NDArray[np.float64]:
        """Return (2, 3) from the window's pixels to the image's, both counted from centres."""
        turn = math.radians(self.angle)
        c, s = math.cos(turn) / self.scale, math.sin(turn) / self.scale
        mirror = -1.0 if self.flip else 1.0
        linear = np.array([[c * mirror, -s], [s * mirror, c]])
        middle = np.array([(width - 1) / 2.0, (height - 1) / 2.0])
        # Pixel centres lie half a pixel inside the coordinates of `center`.
        offset = np.array(self.center) - 0.5
        if self.angle == 0.0 and self.scale == 1.0:  # whole pixels, nothing is interpolated
            offset = np.round(offset - middle) + middle
        return np.column_stack((linear, offset - linear @ middle))


@dataclass(frozen=True)
class Patch:
    """An object to be pasted: pixels of one frame over those of another, counted in `Pixels`."""

    # Numbers of the pixels, (n,) int64.
    source: NDArray[np.int64]
    target: NDArray[np.int64]
    share: NDArray[np.uint8]  # how much of each target the source covers, (n,) uint8 in sixteenths
    # The object's canonical id, and the thermal weight of its box.
    label: int
    weight: int


class Pixels:
    """Collects what a batch is cut from, and cuts it."""

    def __init__(self) -> None:
        self._colours: list[Tensor] = []
        self._known: list[Tensor] = []
        self._places: list[tuple[int, int, int]] = []
        self._patches: list[list[Patch]] = []
        self._count = 0

    def add(self, data: Tensor, item: CachedItem) -> int:
        """Add a frame of a cache's bytes; returns the number of its first pixel."""
        self._places.append((self._count, item.height, item.width))
        self._patches.append([])
        return self.add_rows(data, item, 0, item.height)

    def add_rows(self, data: Tensor, item: CachedItem, top: int, bottom: int) -> int:
        """Add rows of a frame from which objects are taken."""
        size, before, more = item.height * item.width, top * item.width, (bottom - top) * item.width
        colours, known = item.offset + 4 * before, item.offset + 4 * size + 2 * before
        self._colours.append(data[colours : colours + 4 * more])
        self._known.append(data[known : known + 2 * more])
        self._count += more
        return self._count - more

    def paste(self, patch: Patch) -> None:
        """Paste into the frame that was added last, over what was pasted there before."""
        self._patches[-1].append(patch)

    def cut(
        self, cuts: Sequence[Cut], shape: tuple[int, int], device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Cut a window of (height, width) out of each frame.

        Returns
        -------
        (B, H, W, 4) uint8 RGB and infrared, interpolated bilinearly, and (B, H, W, 2) uint8 label
        and thermal weight, of the nearest pixel.
        """
        colours, known = torch.cat(self._colours), torch.cat(self._known)
        for layer in range(max(map(len, self._patches))):
            some = [patches[layer] for patches in self._patches if len(patches) > layer]
            _paste(colours.view(-1, 4), known.view(-1, 2), some)
        height, width = shape
        matrices = np.stack([cut.matrix(height, width) for cut in cuts])
        mapped = torch.tensor(matrices * _PARTS, dtype=torch.float32).to(device)[..., None, None]
        places = torch.tensor(self._places, dtype=torch.int32).to(device)[:, :, None, None]
        first, sides = places[:, 0], (places[:, 2], places[:, 1])  # (width, height)
        columns = torch.arange(width, device=device)
        rows = torch.arange(height, device=device)[:, None]
        at = [
            (line[:, 0] * columns + (line[:, 1] * rows + line[:, 2])).round_().int()
            for line in mapped.unbind(1)
        ]
        beside = [
            [_folded((axis >> 8) + more, side) for more in (0, 1)]
            for axis, side in zip(at, sides, strict=True)
        ]
        lines = [first + row * sides[0] for row in beside[1]]
        packed = colours.view(torch.int32)
        corners = [_picked(packed, line + column) for line in lines for column in beside[0]]
        blended = _blended(corners, *(axis & (_PARTS - 1) for axis in at))
        x, y = (
            _folded((axis + _PARTS // 2) >> 8, side) for axis, side in zip(at, sides, strict=True)
        )
        seen = _picked(known.view(torch.int16), first + y * sides[0] + x)
        return _bytes(blended, 4), _bytes(seen, 2)


def _picked(values: Tensor, index: Tensor) -> Tensor:
    return values.index_select(0, index.view(-1)).view(index.shape)  # on a CPU twice as fast as []


def _blended(corners: Sequence[Tensor], x: Tensor, y: Tensor) -> Tensor:
    """Interpolate bilinearly between packed pixels; x and y are in parts of `_PARTS`.

    Two bytes at a time are weighted where their pixel lies, with room above each.
    """
    both = (x * y + _PARTS // 2) >> 8
    weights = (_PARTS - x - y + both, x - both, y - both, both)
    even = torch.full_like(x, _HALVES)
    odd = torch.full_like(x, _HALVES)
    for corner, weight in zip(corners, weights, strict=True):
        even.addcmul_(corner & _EVEN, weight)
        odd.addcmul_((corner >> 8) & _EVEN, weight)
    return ((even >> 8) & _EVEN).bitwise_or_(odd & ~_EVEN)


def _folded(index: Tensor, side: Tensor) -> Tensor:
    """Mirror positions a little outside of [0, side) at the outermost pixels."""
    index = index.abs()
    return torch.minimum(index, 2 * side - 2 - index).clamp_(min=0)


def _bytes(packed: Tensor, count: int) -> Tensor:
    return packed.view(torch.uint8).view(*packed.shape, count)


def _paste(colours: Tensor, known: Tensor, patches: Sequence[Patch]) -> None:
    """Paste objects (n, 4) and (n, 2) uint8 in place; no two of them into one frame."""
    counts = [len(patch.source) for patch in patches]
    values = np.repeat([(patch.label, patch.weight) for patch in patches], counts, axis=0)
    where = np.stack(
        [np.concatenate([getattr(p, name) for p in patches]) for name in ("source", "target")]
    )
    shares = np.concatenate([patch.share for patch in patches])[:, None]
    source, target = torch.from_numpy(where).to(colours.device)
    label, weight, share = (
        torch.from_numpy(np.hstack((values, shares)).astype(np.uint8)).to(colours.device).unbind(1)
    )
    old = colours[target].float()
    new = torch.lerp(old, colours[source].float(), share[:, None] / 16.0)
    colours[target] = new.round_().byte()
    before = known[target]
    is_object = known[source, 0] == label
    labels = torch.where(is_object, label, before[:, 0])
    known[target] = torch.stack([labels, torch.maximum(before[:, 1], weight)], dim=1)
