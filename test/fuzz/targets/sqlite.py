"""`BagReader` on a bare sqlite3 file: any bytes, or the right tables with any values in them."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from fuzz.bag_oracle import check_bag
from fuzz.fields import Fields
from fuzz.files import folder, written

MAX_LEN = 8192  # an empty database is 4 pages of 512 bytes
TOPICS = "id INTEGER PRIMARY KEY, name, type, serialization_format, offered_qos_profiles"
MESSAGES = "id INTEGER PRIMARY KEY, topic_id, timestamp, data"
DEFINITIONS = "id INTEGER PRIMARY KEY, topic_type, encoding, encoded_message_definition"
TYPES = ("std_msgs/msg/String", "sensor_msgs/msg/Image")


def check(data: bytes) -> None:
    fields = Fields(data)
    check_bag(written("bag.db3", fields.rest()) if fields.flag() else built(fields))


def built(fields: Fields) -> Path:
    """A database with rosbag2's tables; SQLite keeps any kind of value in any column."""
    path = folder() / "bag.db3"
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as base:
        base.execute("PRAGMA page_size = 512")
        base.execute("PRAGMA journal_mode = OFF")
        version = fields.byte() % 6
        if version > 2:
            base.execute("CREATE TABLE schema (schema_version, ros_distro)")
            put(base, "schema", [maybe(fields, version), ""])
        more = ", type_description_hash" if version >= 4 else ""
        base.execute(f"CREATE TABLE topics ({TOPICS}{more})")
        base.execute(f"CREATE TABLE messages ({MESSAGES})")
        base.execute(f"CREATE TABLE message_definitions ({DEFINITIONS}, type_description_hash)")
        for place in range(fields.byte() % 3):
            topic = [place, f"/{place}", fields.choice(TYPES), "cdr", "", ""]
            topic = [maybe(fields, value) for value in topic[: 6 if more else 5]]
            put(base, "topics", topic)
        if fields.flag():
            definition = [0, fields.choice(TYPES), "ros2msg", "string data\n", "RIHS01_0"]
            put(base, "message_definitions", [maybe(fields, value) for value in definition])
        for place in range(fields.byte() % 4):
            message = [place, fields.byte() % 2, fields.number("<q"), fields.take(fields.byte())]
            put(base, "messages", [maybe(fields, value) for value in message])
        base.commit()
    return path


def put(base: sqlite3.Connection, table: str, row: list[Any]) -> None:
    marks = ", ".join("?" * len(row))
    try:
        base.execute(f"INSERT INTO {table} VALUES ({marks})", row)
    except (sqlite3.Error, OverflowError):  # an id twice, or not a number; a number over 64 bits
        return


def maybe(fields: Fields, value: Any) -> Any:
    """The value, now and then another that SQLite can hold."""
    if fields.byte() < 230:
        return value
    other = fields.value(depth=0)
    return other.encode("latin-1") if isinstance(other, str) and fields.flag() else other
