"""`read_tensors` and `load_tensors` on a safetensors file: any bytes, or any header."""

from __future__ import annotations

import json
import struct

import torch
from fuzz.fields import Fields
from fuzz.files import folder, written
from torch import nn

from magicfuse_ros.model.checkpoint import (
    CheckpointError,
    load_tensors,
    read_tensors,
    save_tensors,
)

DTYPES = ("F32", "F16", "BF16", "F64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4")
NAMES = ("weight", "bias", "weight", "bias", "other", "__metadata__")


def check(data: bytes) -> None:
    fields = Fields(data)
    path = written("part.safetensors", fields.rest() if fields.flag() else built(fields))
    try:
        tensors = read_tensors(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return
    size = path.stat().st_size
    assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= size
    save_tensors(folder(), "again", tensors)
    again = read_tensors(folder() / "again.safetensors")
    assert again.keys() == tensors.keys()
    assert all(same(again[name], tensor) for name, tensor in tensors.items())
    module = nn.Linear(2, 1)
    try:
        load_tensors(tensors, module, str(path))
    except CheckpointError:
        return
    assert tensors.keys() == {"weight", "bias"}
    assert all(tensor.dtype == torch.float32 for tensor in module.state_dict().values())
    assert (module.weight.shape, module.bias.shape) == ((1, 2), (1,))


def built(fields: Fields) -> bytes:
    """A file whose header has the right length and is JSON."""
    header, start = {}, 0
    for _ in range(fields.byte() % 4):
        name = fields.choice([*NAMES, fields.text()])
        sizes = [fields.number("<Q") for _ in range(fields.byte() % 4)]
        shape = fields.choice(([1, 2], [1], sizes))
        end = start + fields.number("<Q")
        header[name] = {
            "dtype": fields.choice(DTYPES),
            "shape": shape,
            "data_offsets": fields.choice(([start, end], [fields.number("<Q"), end])),
        }
        start = end
    if fields.byte() >= 230:
        header[fields.choice([*NAMES, ""])] = fields.value()
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + fields.rest()


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors are the same to the bit."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (a, b)]
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(*bits)
