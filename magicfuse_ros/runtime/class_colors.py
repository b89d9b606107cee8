"""The mask for people: the colours of its classes over MagImg."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

PALETTE_OPACITY = 0.5
"""How much of a class's colour covers MagImg in ~/semantic/color, 0 to 1."""


def colorize(
    mask: NDArray[np.uint8],
    magimg: NDArray[np.uint8],
    palette: Sequence[tuple[int, int, int]],
) -> NDArray[np.uint8]:
    """Lay the classes' colours over MagImg.

    Parameters
    ----------
    mask
        (H, W) uint8 class ids of the label set (not remapped), 255 = unknown.
    magimg
        (H, W, 3) uint8 RGB; left as it is.
    palette
        (R, G, B) of each id, 0 to 255. Classes in black (unlabeled) and ids beyond the palette show
        MagImg alone.

    Returns
    -------
    (H, W, 3) uint8 RGB.

    Raises
    ------
    ValueError
        The sizes of mask and MagImg differ.
    """
    if magimg.shape != (*mask.shape, 3):
        raise ValueError(
            f"mask {mask.shape} and MagImg {magimg.shape} differ; accepted: (H, W) and (H, W, 3)"
        )
    colors = np.zeros((256, 1, 3), np.uint8)
    colors[: len(palette), 0] = palette
    painted = colors.any(axis=2).astype(np.uint8).ravel()
    blend = cv2.addWeighted(
        cv2.applyColorMap(mask, colors), PALETTE_OPACITY, magimg, 1.0 - PALETTE_OPACITY, 0.0
    )
    result: NDArray[np.uint8] = magimg.copy()
    cv2.copyTo(blend, cv2.LUT(mask, painted), result)
    return result
