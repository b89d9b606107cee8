"""Which `uint8[]` fields of a message NumPy can read.

From ROS 2 Lyrical on, such a field may be a `rosidl_buffer.Buffer`, whose bytes can lie in a GPU's
memory. rclpy hands one over only to a subscription that asks for it, with
`acceptable_buffer_backends`; all others get an `array.array`, as in every ROS 2 before.
"""

from __future__ import annotations


def why_unreadable(data: object) -> str:
    """Say why NumPy cannot read a message's `data`, and what to do; empty if it can."""
    try:
        memoryview(data)  # type: ignore[arg-type]
    except TypeError:
        kind = f"{type(data).__module__}.{type(data).__name__}"
        backend = getattr(data, "backend_type", None)
        where = f" of the buffer backend {backend!r}" if backend else ""
        return (
            f"the data is a {kind}{where}, which NumPy cannot read; accepted: bytes in the CPU's "
            "memory, which a subscription without acceptable_buffer_backends receives"
        )
    return ""
