"""Why a camera message cannot be used: what the node counts and shows in /diagnostics."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "zero_size",  # height or width is 0
    "unknown_encoding",  # Image.encoding is not in the table
    "unknown_format",  # CompressedImage.data is neither JPEG nor PNG
    "too_large",  # more than MAX_PIXELS
    "too_small",  # a Bayer mosaic without a neighbour of every colour
    "odd_size",  # a subsampled encoding whose chroma does not cover the picture
    "bad_step",  # a row does not fit into `step`
    "short_data",  # `data` ends before the last row
    "non_finite",  # NaN or infinity in float pixels
    "out_of_range",  # float pixels on another scale than [0, 1]
    "corrupt_jpeg",
    "corrupt_png",
]
REASONS: tuple[Reason, ...] = get_args(Reason)

MAX_PIXELS = 1 << 25
"""Largest picture taken, in pixels: 8K UHD (7680 x 4320) fits. Checked before any allocation."""


class ImageError(ValueError):
    """A picture that cannot be decoded; the message names the bad value and what is accepted.

    Attributes
    ----------
    reason
        One of `REASONS`: stable and machine-readable, for counting.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def check_size(width: int, height: int) -> None:
    """Refuse a picture without pixels, or with more than `MAX_PIXELS`.

    Raises
    ------
    ImageError
        `zero_size` or `too_large`.
    """
    if width <= 0 or height <= 0:
        raise ImageError(
            "zero_size",
            f"the picture is {width} x {height}; accepted: at least 1 x 1; check the camera driver",
        )
    if width * height > MAX_PIXELS:
        raise ImageError(
            "too_large",
            f"the picture is {width} x {height}; accepted: up to {MAX_PIXELS} pixels; "
            "lower the camera's resolution",
        )
