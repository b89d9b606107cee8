"""How many bits of its 16-bit pixels a camera really fills.

Cameras of 10, 12 or 14 bits send their numbers in 16-bit encodings. Most drivers shift them up to
the full scale; some do not, and then the picture comes out nearly black. The encoding does not say
which, so the user sets a parameter, and gets a hint when that seems to be missing.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

_FRAMES = 30
"""Frames that are looked at before a hint is given."""
_USUAL = (8, 10, 12, 14)
"""Bits of the usual cameras."""


class BitDepth:
    """Scales the 16-bit pixels of one stream to 8 bits, and notices if they use fewer bits.

    Parameters
    ----------
    bits
        8 to 16: 2^bits - 1 and all values above it are white. 0 takes all 16 bits and watches the
        brightest pixel, for `hint`.

    Raises
    ------
    ValueError
        `bits` is another number.

    Examples
    --------
    >>> import numpy as np
    >>> from magicfuse_ros.ros.images.bit_depth import BitDepth
    >>> BitDepth(12).to_8_bits(np.array([[0, 2048, 4095]], np.uint16))
    array([[  0, 128, 255]], dtype=uint8)
    """

    def __init__(self, bits: int = 0) -> None:
        if bits != 0 and not 8 <= bits <= 16:
            raise ValueError(f"{bits} bits: accepted are 8 to 16, and 0 for all 16")
        self.bits = bits
        self._white = (1 << (bits or 16)) - 1
        self._watches = bits == 0
        self._brightest = 0
        self._frames = 0

    def to_8_bits(self, pixels: NDArray[Any]) -> NDArray[np.uint8]:
        """Round 255 v / white, for uint16 pixels v of any shape in the machine's byte order."""
        if self._watches and self._brightest < 1 << _USUAL[-1]:
            self._frames += 1
            self._brightest = max(self._brightest, int(pixels.max()))
        scaled: Any = cv2.convertScaleAbs(pixels, alpha=255.0 / self._white)
        return np.asarray(scaled, np.uint8)

    def hint(self) -> str:
        """Return a hint for the user; empty if all is well, or while it is too early to say."""
        if self._frames < _FRAMES or self._brightest == 0:
            return ""
        bits = next((bits for bits in _USUAL if self._brightest < 1 << bits), None)
        if bits is None:
            return ""
        return (
            f"no 16-bit pixel is above {(1 << bits) - 1} so far: does the camera send {bits} bits? "
            f"Then set input_bits to {bits}; if it uses all 16, to 16"
        )
