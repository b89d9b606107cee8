"""Serialised messages: reads them safely whatever their bytes are, writes pictures in one copy."""

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
    """Return the message that the bytes hold; raise `ValueError` if they are none of this class."""
    # The two lowest bits of byte 3 say how many bytes of padding end the message. Fast CDR takes
    # these off without checking that there are so many, and then reads past the end of the data.
    if len(data) >= _ENCAPSULATION and len(data) - _ENCAPSULATION < data[3] & 3:
        raise ValueError(f"{len(data)} bytes with {data[3] & 3} of padding are no message")
    try:
        return deserialize_message(data, message_class)
    except RuntimeError as error:  # RMWError, which rclpy does not export
        raise ValueError(f"{len(data)} bytes are no {message_class.__name__}: {error}") from error


def serialize_image(picture: NDArray[np.uint8], encoding: str, header: Any) -> bytes:
    """Return the bytes of the sensor_msgs/Image of a picture, with the given std_msgs/Header.

    The picture is (H, W, 3) uint8 RGB for "rgb8", or (H, W) uint8 for "mono8"; others raise
    `ValueError`.

    rclpy copies the pixels four times between a message and its bytes, and to make and serialise
    even an empty message takes as long again: that is most of the cost of publishing a picture. The
    bytes are plain CDR, in which each number is aligned to its size, counted from the end of the
    encapsulation.
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
    """Return a CDR string: its length, which counts the closing zero, then the text and a zero."""
    data = text.encode() + b"\0"
    return struct.pack("<I", len(data)) + data


def _padding(field: bytes) -> bytes:
    """Return the zeros that align a four-byte number after a field that begins aligned."""
    return bytes(-len(field) % 4)
