"""`BagReader` on a bare mcap file: any bytes, or records of the right length with any content."""

from __future__ import annotations

import struct

from fuzz.bag_oracle import check_bag
from fuzz.fields import Fields
from fuzz.files import written

MAX_LEN = 2048
MAGIC = b"\x89MCAP0\r\n"


def check(data: bytes) -> None:
    fields = Fields(data)
    check_bag(written("bag.mcap", fields.rest() if fields.flag() else built(fields)))


def built(fields: Fields) -> bytes:
    """A file whose header, footer and lengths are right."""
    header = record(0x01, string("ros2") + string(""))
    body, summary = record(0x03, schema(fields)) + record(0x04, channel(fields)), b""
    chunked, with_summary = fields.flag(), fields.flag()
    messages = b"".join(record(0x05, message(fields)) for _ in range(fields.byte() % 4))
    start = len(MAGIC) + len(header) + len(body)
    if chunked:
        times = fields.number("<Q"), fields.number("<Q")
        size = len(messages) if fields.byte() < 230 else fields.number("<Q")
        chunk = struct.pack("<QQQI", *times, size, 0) + string("")
        chunk = record(0x06, chunk + struct.pack("<Q", len(messages)) + messages)
        index = struct.pack("<QQQQ", *times, start, len(chunk))
        offsets = struct.pack("<HQ", fields.byte() % 4, start + len(chunk))
        index += struct.pack("<I", len(offsets)) + offsets
        index += struct.pack("<Q", fields.number("<Q")) + string("")
        summary += record(0x08, index + struct.pack("<QQ", len(messages), size))
        messages = chunk
    if fields.flag():
        counts = struct.pack("<HQ", fields.byte() % 4, fields.number("<Q"))
        totals = [fields.number(code) for code in ("<Q", "<H", "<I", "<I", "<I", "<I", "<Q", "<Q")]
        summary += record(
            0x0B, struct.pack("<QHIIIIQQ", *totals) + struct.pack("<I", len(counts)) + counts
        )
    body += messages
    summary = body[: len(body) - len(messages)] + summary if with_summary else b""
    offset = len(MAGIC) + len(header) + len(body) if with_summary else 0
    footer = record(0x02, struct.pack("<QQI", offset, 0, 0))
    return MAGIC + header + body + record(0x0F, bytes(4)) + summary + footer + MAGIC


def schema(fields: Fields) -> bytes:
    kind = fields.choice(("std_msgs/msg/String", "sensor_msgs/msg/Image", fields.text()))
    encoding = fields.choice(("ros2msg", "ros2idl", "", fields.text()))
    return struct.pack("<H", 1) + string(kind) + string(encoding) + string(fields.text())


def channel(fields: Fields) -> bytes:
    topic = fields.choice(("/a", fields.text()))
    qos = string("offered_qos_profiles") + string(fields.text())
    ids = struct.pack("<HH", fields.byte() % 2, fields.byte() % 3)
    kind = fields.choice(("cdr", fields.text()))
    return ids + string(topic) + string(kind) + struct.pack("<I", len(qos)) + qos


def message(fields: Fields) -> bytes:
    time = fields.number("<Q")
    return struct.pack("<HIQQ", fields.byte() % 2, 0, time, time) + fields.take(fields.byte() % 64)


def record(code: int, content: bytes) -> bytes:
    return bytes([code]) + struct.pack("<Q", len(content)) + content


def string(text: str) -> bytes:
    return struct.pack("<I", len(text.encode())) + text.encode()
