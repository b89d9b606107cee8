"""`BagReader` on a folder with a good bag file and any metadata.yaml."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml
from fuzz.bag_oracle import check_bag
from fuzz.fields import Fields
from fuzz.files import folder

from magicfuse_ros.bags.reader import Topic
from magicfuse_ros.bags.writer import STORAGES, BagWriter

MAX_LEN = 4096


def check(data: bytes) -> None:
    fields = Fields(data)
    path, good = bag_of(fields.choice(sorted(STORAGES)))
    if fields.flag():
        content = fields.rest()
    else:
        values = yaml.load(good, yaml.CSafeLoader)
        for _ in range(fields.byte() % 8):
            edit(values, fields)
        content = yaml.dump(values, Dumper=yaml.CSafeDumper).encode()
    (path / "metadata.yaml").write_bytes(content)
    check_bag(path)


@functools.cache
def bag_of(storage: str) -> tuple[Path, str]:
    """A bag of two messages, and its metadata."""
    path = folder() / storage
    with BagWriter(path, storage) as bag:
        for name in ("/a", "/b"):
            bag.add_topic(Topic(name, "std_msgs/msg/String"))
            bag.write(name, 5, b"\0\1\0\0\2\0\0\0a\0\0\0")
    text = (path / "metadata.yaml").read_text(encoding="utf-8")
    assert "custom_data: null" in text
    return path, text.replace("custom_data: null", "custom_data: {note: text}")


def edit(values: Any, fields: Fields) -> None:
    """Change, add or remove one entry, however deep."""
    while True:
        keys = sorted(values, key=str) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = fields.choice(keys)
        if not isinstance(values[key], (dict, list)) or fields.byte() >= 240:
            break
        values = values[key]
    if fields.byte() >= 240:
        del values[key]
    elif isinstance(values, dict) and fields.byte() >= 240:
        values[fields.text()] = fields.value()
    else:
        values[key] = fields.value()
