"""A model whose networks are made on demand: what is needed without them, and when they are."""

import json
import subprocess
import sys

import pytest
import torch
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, save_few_step, stored

from magicfuse_ros.model.checkpoint import PARTS, CheckpointError
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.stored import StoredModel
from magicfuse_ros.runtime.parts import INPUTS, parts_of

FUSE_ONE = """
import json, sys
import numpy as np
from magicfuse_ros.runtime.engine import EngineSettings, load_engine
it = load_engine(EngineSettings(model=sys.argv[1], backend="openvino"), lambda text: None)
it.warm_up(lambda text: None)
result = it.fuse(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8))
heavy = sorted({"diffusers", "transformers"} & set(sys.modules))
print(json.dumps({"heavy": heavy, "built": it.built, "magimg": result.magimg.tolist()}))
it.close()
"""


def test_the_networks_are_those_of_the_whole_model(tmp_path):
    model = stored(SMALL_FEW_STEP, tmp_path)
    whole = MagicFuse.from_pretrained(model.folder)
    for part in PARTS:
        ours, theirs = model.module(part).state_dict(), getattr(whole, part).state_dict()
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
        assert not model.module(part).training


@pytest.mark.parametrize("config", [SMALL_FEW_STEP, SMALL_PAPER], ids=lambda each: each.name)
def test_parts_say_the_shapes_of_their_inputs_before_anything_is_made(config, tmp_path):
    parts = parts_of(stored(config, tmp_path), (48, 64), lambda tensor: tensor)
    assert list(parts) == list(INPUTS)
    for part in parts.values():
        assert {shape.device.type for shape in part.shapes} == {"meta"}
        said = [(shape.dtype, shape.shape) for shape in part.shapes]
        assert said == [(each.dtype, each.shape) for each in part.inputs]


def test_weights_are_named_by_the_file_that_was_opened(tmp_path):
    model = stored(SMALL_FEW_STEP, tmp_path)
    names = {part: model.weights(part) for part in PARTS}
    assert len(set(names.values())) == len(PARTS)
    torch.manual_seed(1)
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(model.folder)
    assert {part: model.weights(part) for part in PARTS} == names
    with pytest.raises(CheckpointError, match=r"encoder\.safetensors has changed since it was"):
        model.module("phi")
    anew = StoredModel(model.folder)
    assert not set(names.values()) & {anew.weights(part) for part in PARTS}
    anew.module("phi")


def test_a_configuration_that_changed_is_told_too(tmp_path):
    model = stored(SMALL_FEW_STEP, tmp_path)
    path = model.folder / "config.json"
    values = json.loads(path.read_text())
    values["diffusion"]["steps"] += 1
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=r"config\.json has changed since it was opened"):
        model.module("psi")


def test_released_networks_are_made_again(tmp_path):
    model = stored(SMALL_FEW_STEP, tmp_path)
    first = model.module("phi")
    assert model.module("phi") is first
    model.release()
    again = model.module("phi")
    assert again is not first
    assert all(map(torch.equal, first.parameters(), again.parameters()))


def test_a_warm_start_makes_no_network_and_gives_the_same(tmp_path, monkeypatch):
    """With compiled networks in the cache the library behind the modules is never imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = save_few_step(tmp_path)
    command = [sys.executable, "-c", FUSE_ONE, str(folder)]
    cold, warm = (
        json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        for _ in range(2)
    )
    assert cold["heavy"] == ["diffusers", "transformers"]
    assert sorted(cold["built"]) == sorted(PARTS)
    assert warm["heavy"] == []
    assert warm["built"] == []
    assert warm["magimg"] == cold["magimg"]
