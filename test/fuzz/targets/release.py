"""The importer of released weights on a `.pth` file: any bytes, any pickle, or any names in it."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Mapping
from typing import Any

import torch
from fuzz.fields import Fields
from fuzz.files import folder, written
from support.release_layout import release_states
from support.small_models import SMALL_FEW_STEP
from torch._weights_only_unpickler import Unpickler

from magicfuse_ros.model import release
from magicfuse_ros.model.checkpoint import PARTS, CheckpointError
from magicfuse_ros.model.magicfuse import MagicFuse

MAX_LEN = 2048
WATCHED = [(Unpickler, "load")]
KEYS = ("state_dict", "model", "module.", "encoder", "input_blocks.0.0.weight", 0, None, 1.5, ())


def check(data: bytes) -> None:
    fields = Fields(data)
    kind = fields.byte() % 3
    if kind == 2:
        names(fields)
        return
    content = archive(fields.rest()) if kind else fields.rest()
    path = written("release.pth", content)
    try:
        tensors = release.read_release(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    assert isinstance(tensors, dict)


def archive(pickled: bytes) -> bytes:
    """A file of torch.save's with these bytes in place of its pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in [("data.pkl", pickled), ("version", b"3\n"), ("data/0", bytes(64))]:
            made.writestr(f"archive/{name}", content)
    return file.getvalue()


@functools.cache
def known() -> tuple[MagicFuse, Mapping[str, Mapping[str, torch.Tensor]]]:
    with torch.device("meta"):
        model = MagicFuse.from_config(SMALL_FEW_STEP)
    return model, release_states(SMALL_FEW_STEP, model)


def names(fields: Fields) -> None:
    """One of the four files with entries renamed, removed, wrapped or of another kind."""
    model, states = known()
    part = fields.choice(PARTS)
    content: dict[Any, Any] = dict(states[part])
    while fields.left():
        key = fields.choice([*KEYS, fields.text(), *list(content)[: fields.byte()]])
        action = fields.byte() % 5
        if action == 0:
            content.pop(key, None)
        elif action == 1:
            content[key] = fields.value()
        elif action == 2 and content:
            content[key] = content.pop(next(iter(content)))
        elif action == 3:
            content = {key: content}
        else:
            content[key] = torch.empty(fields.byte() % 4, device="meta")
    source = str(folder() / "release.pth")
    try:
        unwrapped = release._unwrapped(content, source, lambda _: None)
        tensors = release.converted(part, unwrapped, SMALL_FEW_STEP, getattr(model, part), source)
    except CheckpointError as error:
        assert source in str(error)
        return
    assert tensors.keys() == getattr(model, part).state_dict().keys()
