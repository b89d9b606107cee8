"""Serialised messages from a bag turned into ROS messages, whatever their bytes are."""

from __future__ import annotations

from typing import Any

from rclpy.serialization import deserialize_message

_ENCAPSULATION = 4


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
