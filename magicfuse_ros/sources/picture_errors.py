"""Why a picture cannot be used, and the one limit on its size."""

from __future__ import annotations

from typing import Literal

PictureReason = Literal[
    "short_data",  # no bytes at all
    "unknown_format",  # not a kind of picture that is read here
    "zero_size",  # height or width is 0
    "too_large",  # more than MAX_PIXELS
    "corrupt_jpeg",
    "corrupt_png",
    "corrupt_picture",  # a damaged BMP, PNM, TIFF or WebP
    "unreadable",  # the file or folder cannot be opened
    "no_pictures",  # a folder without any
]

MAX_PIXELS = 1 << 25
"""Largest picture accepted, in pixels: 8K UHD (7680 x 4320) fits. Checked before any allocation."""


class PictureError(ValueError):
    """A picture that cannot be used; the message names what is wrong and what to do about it.

    Attributes
    ----------
    reason
        One of `PictureReason`: stable and machine-readable, for counting.
    """

    def __init__(self, reason: PictureReason, message: str) -> None:
        super().__init__(message)
        self.reason: PictureReason = reason


def check_size(width: int, height: int) -> None:
    """Refuse a picture without pixels, or with more than `MAX_PIXELS`.

    Raises
    ------
    PictureError
        `zero_size` or `too_large`.
    """
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
