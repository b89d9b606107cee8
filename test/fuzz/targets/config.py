"""`read_config` on a config.json: any text, or a configuration with wrong values in it."""

from __future__ import annotations

import json
from typing import Any

from fuzz.fields import Fields
from fuzz.files import written

from magicfuse_ros.model.checkpoint import CheckpointError, read_config
from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.sizes import PAPER, TINY

BASES = tuple(json.dumps(config.to_dict()) for config in (PAPER, TINY))


def check(data: bytes) -> None:
    fields = Fields(data)
    if fields.flag():
        path = written("config.json", fields.rest())
        try:
            config = read_config(path.parent)
        except CheckpointError as error:
            assert str(path) in str(error)
            return
    else:
        values = json.loads(fields.choice(BASES))
        while fields.left():
            edit(values, fields)
        try:
            config = MagicFuseConfig.from_dict(values)
        except ConfigError:
            return
    assert min(config.resolution) >= config.multiple_of >= 1
    assert MagicFuseConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def edit(values: dict[str, Any], fields: Fields) -> None:
    """Change, add or remove one entry of `values`, however deep."""
    while True:
        keys = sorted(values)
        key = fields.choice([*keys, fields.text()]) if keys else fields.text()
        inner = values.get(key)
        if not isinstance(inner, dict) or fields.byte() >= 250:
            break
        values = inner
    if fields.byte() >= 250:
        values.pop(key, None)
    elif isinstance(inner, list) and inner and fields.flag():
        inner[fields.byte() % len(inner)] = fields.value()
    elif isinstance(inner, (int, float)) and fields.flag():
        values[key] = fields.byte() - 8
    else:
        values[key] = fields.value()
