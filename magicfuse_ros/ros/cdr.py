"""Serialised messages: read whatever their bytes are, and pictures written with one copy."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message, serialize_message

from magicfuse_ros.ros.image_codec import describe_image

_ENCAPSULATION = 4
_LENGTH = struct.Struct("=I")  # rmw implementations write in the machine's own byte order


def deserialize(data: bytes, message_class: type) -> Any:
    """Return the message that the bytes are.

    Raises
    ------
    ValueError
        They are none of this class.
    """
    # The two lowest bits of byte 3 tell how many bytes of padding end the message. Fast CDR takes
    # them off without asking whether that many are there, and reads on through the memory behind.
    if len(data) >= _ENCAPSULATION and len(data) - _ENCAPSULATION < data[3] & 3:
        raise ValueError(f"{len(data)} bytes with {data[3] & 3} of padding are no message")
    try:
        return deserialize_message(data, message_class)
    except RuntimeError as error:  # RMWError, which rclpy does not export
        raise ValueError(f"{len(data)} bytes are no {message_class.__name__}: {error}") from error


def serialize_image(picture: NDArray[np.uint8], encoding: str, header: Any) -> bytes:
    """Return the bytes of the sensor_msgs/Image that `encode_image` makes of a picture.

    rclpy copies the pixels four times on the way from a message to its bytes, which is most of what
    publishing a picture costs. They are an Image's last member, so that behind the bytes of an
    Image without any there are only their number and themselves to write.

    Parameters and errors are those of `image_codec.encode_image`.
    """
    empty = serialize_message(describe_image(picture, encoding, header))
    pixels = np.ascontiguousarray(picture).reshape(-1)
    return b"".join((empty[: -_LENGTH.size], _LENGTH.pack(pixels.nbytes), pixels.data))
