"""Why a cloud cannot be painted: what the node counts and shows in /diagnostics."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "no_coordinates",  # no x, y and z that can be read
    "bad_layout",  # a field or a row lies outside of its place
    "short_data",  # `data` ends before the last point
    "unreadable_data",  # `data` is no bytes in the CPU's memory, see `ros.byte_data`
    "too_large",  # more than MAX_POINTS
    "uncalibrated",  # the CameraInfo has no focal length
    "unknown_distortion",  # a distortion that is not in `camera_model.MODELS`
    "no_transform",  # the pose of the cloud's sensor is not known
    "picture_size",  # mask, confidence and color differ in size
    "bad_mask",  # mask or confidence is not mono8
]


class CloudError(ValueError):
    """A cloud that cannot be painted; the message says what is wrong and what is accepted.

    Its `reason`, one of `Reason`, is stable and machine-readable, for counting.
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason
