"""Serialised messages: read whatever their bytes are, and pictures written with one copy."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message

from magicfuse_ros.ros.images.codec import image_size

_ENCAPSULATION = 4
_LITTLE_ENDIAN = b"\x00\x01\x00\x00"  # encapsulation of CDR, no options


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

    rclpy copies the pixels four times on the way from a message to its bytes, and takes as long to
    make a message and to serialise it when it is empty: most of what publishing a picture costs.
    The bytes are plain CDR, each number aligned to its size from the end of the encapsulation.

    Parameters and errors are those of `codec.encode_image`.
    """
    height, width, step = image_size(picture, encoding)
    frame_id, kind = _string(header.frame_id), _string(encoding)
    head = bytearray(_LITTLE_ENDIAN)
    head += struct.pack("<iI", header.stamp.sec, header.stamp.nanosec)
    head += frame_id + _padding(frame_id)
    head += struct.pack("<II", height, width)
    # is_bigendian is the byte behind the encoding.
    head += kind + b"\0" + _padding(kind + b"\0")
    head += struct.pack("<II", step, picture.size)
    return b"".join((head, np.ascontiguousarray(picture).reshape(-1).data))


def _string(text: str) -> bytes:
    """Return a CDR string: its length with the closing zero, and both."""
    data = text.encode() + b"\0"
    return struct.pack("<I", len(data)) + data


def _padding(field: bytes) -> bytes:
    """Return what aligns a number of four bytes behind a field that begins aligned."""
    return bytes(-len(field) % 4)
