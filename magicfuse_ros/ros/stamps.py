"""The header stamp inside a serialised message, read and replaced without deserialising it.

A message whose first field is a ``std_msgs/Header`` starts, after the four bytes of CDR
encapsulation, with ``stamp.sec`` (int32) and ``stamp.nanosec`` (uint32). Images are large: patching
eight bytes costs one copy, and deserialising the message costs much more.
"""

from __future__ import annotations

import struct
from typing import Any

_ENCAPSULATION = 4
_SECOND_NS = 1_000_000_000


def nanoseconds(stamp: Any) -> int:
    """Return a builtin_interfaces/Time in nanoseconds; unlike rclpy's, also one before 1970."""
    return int(stamp.sec) * _SECOND_NS + int(stamp.nanosec)


def has_header(message_class: type) -> bool:
    """Whether messages of this class start with a ``std_msgs/Header``."""
    fields: dict[str, str] = message_class.get_fields_and_field_types()  # type: ignore[attr-defined]
    return next(iter(fields.items()), None) == ("header", "std_msgs/Header")


def read_stamp(cdr: bytes) -> int:
    """Return the header stamp of a serialised message in nanoseconds.

    It raises `ValueError` if the message is too short to hold a header.
    """
    sec, nanosec = struct.unpack_from(_layout(cdr), cdr, _ENCAPSULATION)
    return int(sec) * _SECOND_NS + int(nanosec)


def with_stamp(cdr: bytes, stamp_ns: int) -> bytes:
    """Return the serialised message with its header stamp set to `stamp_ns` (nanoseconds).

    It raises `ValueError` if the message is too short to hold a header, or the stamp lies outside
    int32 seconds.
    """
    sec, nanosec = divmod(stamp_ns, _SECOND_NS)
    if not -(2**31) <= sec < 2**31:
        raise ValueError(f"stamp of {sec} s does not fit a ROS time (int32 seconds)")
    patched = bytearray(cdr)
    struct.pack_into(_layout(cdr), patched, _ENCAPSULATION, sec, nanosec)
    return bytes(patched)


def _layout(cdr: bytes) -> str:
    if len(cdr) < _ENCAPSULATION + 8:
        raise ValueError(f"a serialised message of {len(cdr)} bytes has no header")
    return "<iI" if cdr[1] & 1 else ">iI"
