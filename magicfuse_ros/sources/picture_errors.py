"""Why a picture cannot be used, and the one limit on its size."""

from __future__ import annotations

from typing import Literal, get_args

Reason = Literal[
    "short_data",  # no bytes at all, or fewer than the message says
    "unknown_format",  # not a kind of picture that is read here
    "zero_size",  # height or width is 0
    "too_large",  # more than MAX_PIXELS
    "corrupt_jpeg",
    "corrupt_png",
    "corrupt_picture",  # a damaged BMP, PNM, TIFF or WebP
    "unreadable",  # the file or folder cannot be opened
    "no_pictures",  # a folder without any
    # Of a camera's message only:
    "unknown_encoding",  # Image.encoding is not in the table
    "too_small",  # a Bayer mosaic without a neighbour of every colour
    "odd_size",  # a subsampled encoding whose chroma does not cover the picture
    "bad_step",  # a row does not fit into `step`
    "unreadable_data",  # `data` is no bytes in the CPU's memory, see `ros.byte_data`
    "non_finite",  # NaN or infinity in float pixels
    "out_of_range",  # float pixels on another scale than [0, 1]
]
REASONS: tuple[Reason, ...] = get_args(Reason)

MAX_PIXELS = 1 << 25
"""Largest picture accepted, in pixels: 8K UHD (7680 x 4320) fits. Checked before any allocation."""


class PictureError(ValueError):
    """A picture that cannot be used; the message names what is wrong and what to do about it.

    Its `reason`, one of `REASONS`, is stable and machine-readable, for counting.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def check_size(width: int, height: int) -> None:
    """Refuse a picture without pixels (`zero_size`), or of more than `MAX_PIXELS` (`too_large`)."""
    if width <= 0 or height <= 0:
        raise PictureError(
            "zero_size",
            f"the picture is {width} x {height}; accepted: at least 1 x 1; check the camera driver",
        )
    if width * height > MAX_PIXELS:
        raise PictureError(
            "too_large",
            f"the picture is {width} x {height}; accepted: up to {MAX_PIXELS} pixels; "
            "lower the resolution",
        )
