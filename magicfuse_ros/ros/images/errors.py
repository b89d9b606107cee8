"""Why a camera message cannot be used: what the node counts and shows in /diagnostics."""

from __future__ import annotations

from typing import Literal, cast, get_args

from magicfuse_ros.sources.picture_errors import PictureError

Reason = Literal[
    "zero_size",  # height or width is 0
    "unknown_encoding",  # Image.encoding is not in the table
    "unknown_format",  # CompressedImage.data is neither JPEG nor PNG, or a rare kind of them
    "too_large",  # more than MAX_PIXELS
    "too_small",  # a Bayer mosaic without a neighbour of every colour
    "odd_size",  # a subsampled encoding whose chroma does not cover the picture
    "bad_step",  # a row does not fit into `step`
    "short_data",  # `data` ends before the last row
    "unreadable_data",  # `data` is no bytes in the CPU's memory, see `ros.byte_data`
    "non_finite",  # NaN or infinity in float pixels
    "out_of_range",  # float pixels on another scale than [0, 1]
    "corrupt_jpeg",
    "corrupt_png",
]
REASONS: tuple[Reason, ...] = get_args(Reason)


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

    @classmethod
    def of(cls, error: PictureError) -> ImageError:
        """Return a picture's error as that of a message; there is no file here to name."""
        return cls(cast("Reason", error.reason), str(error))
