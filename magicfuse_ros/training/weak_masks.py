"""Weak pixel labels from boxes: GrabCut inside each box, guided by heat for people.

Outside the boxes nothing is known (an unannotated person may stand there), so those pixels are
`UNKNOWN`, and so are the pixels inside a box that do not belong to its object: they are known not
to be the object, but not what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.model.labels import UNKNOWN
from magicfuse_ros.training.datasets.frames import Box

# Share of the box's size around it that GrabCut sees as background.
_MARGIN = 0.4
_ITERATIONS = 3
# Smaller boxes have no shape to find; their inner ellipse is taken.
_SMALLEST = 6
# Boxes are scaled down to this many pixels on their longer side before GrabCut.
_LARGEST = 96
# Grey levels by which a person must be hotter than the surroundings for heat to be trusted, and the
# share of that difference from where on a pixel belongs to the body.
_HOTTER = 10.0
_BODY = 0.3
# Longest gap between warm parts, as a share of the person's height, that is clothing.
_COAT = 0.4
# What share of its box an object can fill; outside this range GrabCut has failed.
_PLAUSIBLE = {"person": (0.15, 0.85), "bike": (0.15, 0.9), "car": (0.35, 0.98)}


def weak_mask(
    visible: NDArray[np.uint8],
    infrared: NDArray[np.uint8] | None,
    boxes: Sequence[Box],
    ids: dict[str, int],
) -> NDArray[np.uint8]:
    """Label the pixels of every box's object; smaller objects are drawn over larger ones.

    Parameters
    ----------
    visible, infrared
        (H, W, 3) uint8 RGB, and (H, W) uint8 or None.
    ids
        Label id of each box kind.

    Returns
    -------
    (H, W) uint8 label ids, 255 where nothing is known.
    """
    height, width = visible.shape[:2]
    mask = np.full((height, width), UNKNOWN, np.uint8)
    area = [(b.x1 - b.x0) * (b.y1 - b.y0) for b in boxes]
    for k in np.argsort(area)[::-1]:
        box = boxes[int(k)]
        x0, y0, x1, y1 = box.pixels(height, width)
        inside = _object(visible, infrared, (x0, y0, x1, y1), box.kind)
        mask[y0:y1, x0:x1][inside] = ids[box.kind]
    return mask


def _object(
    visible: NDArray[np.uint8],
    infrared: NDArray[np.uint8] | None,
    corners: tuple[int, int, int, int],
    kind: str,
) -> NDArray[np.bool_]:
    """Return which pixels of a box are its object's, (h, w) bool."""
    x0, y0, x1, y1 = corners
    h, w = y1 - y0, x1 - x0
    if min(h, w) < _SMALLEST:
        return _ellipse(h, w) < 0.8
    # GrabCut takes a second on a car that fills the image, and sees the same at a quarter of it.
    shrink = min(1.0, _LARGEST / max(h, w))
    my, mx = max(2, int(h * _MARGIN)), max(2, int(w * _MARGIN))
    top, left = max(0, y0 - my), max(0, x0 - mx)
    window = (slice(top, y1 + my), slice(left, x1 + mx))
    seen = cv2.resize(visible[window], None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    heat = None
    if infrared is not None:
        small = cv2.resize(infrared[window], seen.shape[1::-1], interpolation=cv2.INTER_AREA)
        heat = np.asarray(small, np.uint8)
    part = (
        slice(round((y0 - top) * shrink), round((y1 - top) * shrink)),
        slice(round((x0 - left) * shrink), round((x1 - left) * shrink)),
    )
    inside = _grab(np.asarray(seen, np.uint8), heat, part, kind)
    resized = cv2.resize(inside.astype(np.uint8), (w, h), interpolation=cv2.INTER_NEAREST)
    return np.asarray(resized > 0)


def _grab(
    seen: NDArray[np.uint8],
    heat: NDArray[np.uint8] | None,
    part: tuple[slice, slice],
    kind: str,
) -> NDArray[np.bool_]:
    """Return which pixels in `part` of a window are the object's; the rest is background."""
    trimap = np.full(seen.shape[:2], cv2.GC_BGD, np.uint8)
    box = trimap[part]
    ellipse = _ellipse(*box.shape)
    guess = ellipse < 0.75
    features = seen
    if heat is not None:
        grey = cv2.cvtColor(seen, cv2.COLOR_RGB2GRAY)
        # Heat replaces blue, the noisiest and least telling channel of a dark image.
        features = np.dstack((grey, seen[..., 0], heat))
        outside = np.ones(heat.shape, bool)
        outside[part] = False
        around = float(np.median(heat[outside])) if outside.any() else 0.0
        hot = float(np.percentile(heat[part], 95))
        if kind == "person" and hot > around + _HOTTER:
            # A coat is cooler than a face but still warmer than the street.
            guess = (heat[part] > around + _BODY * (hot - around)) & (ellipse < 1.5)
            features = np.dstack((grey, heat, heat))
    least, most = _PLAUSIBLE[kind]
    if not least <= guess.mean() <= most:
        guess = ellipse < 0.75
    box[:] = np.where(guess, cv2.GC_PR_FGD, cv2.GC_PR_BGD)
    if (trimap == cv2.GC_BGD).any():
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.setRNGSeed(0)  # GrabCut starts from k-means
        rect = (0, 0, 0, 0)  # not read: the mask says it all
        cv2.grabCut(features, trimap, rect, *models, _ITERATIONS, cv2.GC_INIT_WITH_MASK)
        inside = np.asarray(box == cv2.GC_PR_FGD)
        if kind == "person":
            inside = _fill_coat(inside)
        if least <= inside.mean() <= most:
            return inside
    return guess


def _fill_coat(inside: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Close gaps between the warm head and the warm legs, column by column."""
    reach = max(1, int(inside.shape[0] * _COAT))
    padded = np.pad(inside.astype(np.uint8), ((reach, reach), (0, 0)))
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, np.ones((reach, 1), np.uint8))
    return np.asarray(closed[reach:-reach] > 0)


def _ellipse(h: int, w: int) -> NDArray[np.float64]:
    """Return the squared distance from the middle of an (h, w) box: 1 on its inscribed ellipse."""
    y, x = np.mgrid[0:h, 0:w]
    return np.asarray(((x + 0.5) / w * 2 - 1) ** 2 + ((y + 0.5) / h * 2 - 1) ** 2)
