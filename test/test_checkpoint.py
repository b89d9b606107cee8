"""Weights folders: there and back, and every way that one can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.small_models import SMALL_FEW_STEP, fill
from torch import nn

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.checkpoint import PARTS, CheckpointError
from magicfuse_ros.model.labels import LabelSetError
from magicfuse_ros.model.magicfuse import MagicFuse


@pytest.fixture(scope="module")
def model():
    made = MagicFuse.from_config(SMALL_FEW_STEP)
    fill(made)
    return made


@pytest.fixture
def folder(model, tmp_path):
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def complaint(folder):
    with pytest.raises(CheckpointError) as caught:
        MagicFuse.from_pretrained(folder)
    return str(caught.value)


def edited(folder, part, edit):
    tensors = load_file(folder / f"{part}.safetensors")
    edit(tensors)
    save_file(tensors, folder / f"{part}.safetensors")


def test_there_and_back(model, folder):
    loaded = MagicFuse.from_pretrained(str(folder))
    assert loaded.config == SMALL_FEW_STEP
    assert loaded.labels == model.labels
    assert not loaded.training
    expected = model.state_dict()
    assert list(loaded.state_dict()) == list(expected)
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
        assert tensor.device.type == "cpu"


def test_a_loaded_model_does_not_follow_what_happens_to_its_file(model, folder):
    loaded = MagicFuse.from_pretrained(folder)
    for path in folder.glob("*.safetensors"):
        with path.open("r+b") as file:  # in place, as `cp` over it does
            file.write(bytes(path.stat().st_size))
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name]), name


def test_a_loaded_model_can_be_trained_further(folder):
    loaded = MagicFuse.from_pretrained(folder)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in loaded.parameters())


def test_the_folder_holds_only_what_it_should(folder):
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", *(f"{part}.safetensors" for part in PARTS)}
    assert json.loads((folder / "config.json").read_text()) == json.loads(
        json.dumps(SMALL_FEW_STEP.to_dict())
    )


def test_saving_again_replaces(model, folder):
    changed = MagicFuse.from_pretrained(folder)
    with torch.no_grad():
        changed.decoder.outputs.bias.add_(1.0)
    changed.save_pretrained(folder)
    again = MagicFuse.from_pretrained(folder)
    torch.testing.assert_close(again.decoder.outputs.bias, model.decoder.outputs.bias + 1.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_loaded_as_float32(folder, dtype):
    edited(folder, "psi", lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    loaded = MagicFuse.from_pretrained(folder)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_no_folder(tmp_path):
    message = complaint(tmp_path / "nothing")
    assert str(tmp_path / "nothing") in message
    assert "give a folder with config.json" in message
    assert "magicfuse train all --size base --minutes" in complaint(tmp_path / "base")


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "model").write_text("")
    assert "there is no model folder" in complaint(tmp_path / "model")


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert "has no config.json" in complaint(folder)


def test_a_config_that_is_a_folder(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert "config.json cannot be read: Is a directory" in complaint(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"<html>"])
def test_a_config_that_is_no_json(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json is not JSON" in complaint(folder)


def rewritten(folder, edit):
    values = json.loads((folder / "config.json").read_text())
    edit(values)
    (folder / "config.json").write_text(json.dumps(values))


WRONG_CONFIGS = {
    "unknown key": (lambda c: c.update(colour=1), "unknown keys ['colour']"),
    "missing key": (lambda c: c.pop("psi"), "lacks the keys ['psi']"),
    "wrong type": (lambda c: c["psi"].update(width="8"), "config.psi.width is '8'"),
    "out of range": (lambda c: c["diffusion"].update(tau=-1), "tau is -1; accepted: 0.0 to 1.0"),
}


@pytest.mark.parametrize("case", WRONG_CONFIGS)
def test_a_config_that_is_not_accepted(folder, case):
    edit, expected = WRONG_CONFIGS[case]
    rewritten(folder, edit)
    message = complaint(folder)
    assert expected in message
    assert str(folder / "config.json") in message


def test_a_config_that_is_no_mapping(folder):
    (folder / "config.json").write_text("[1]")
    assert "accepted: a mapping" in complaint(folder)


def test_an_unknown_label_set(folder):
    rewritten(folder, lambda c: c.update(labels="kitti"))
    with pytest.raises(LabelSetError, match="unknown label set 'kitti'"):
        MagicFuse.from_pretrained(folder)


def test_a_label_set_beside_the_weights(folder):
    names = ", ".join(f"{{name: c{i}, color: [{i}, 0, 0], thermal: false}}" for i in range(12))
    (folder / "own.yaml").write_text(f"name: own\nlabels: [{names}]\n")
    rewritten(folder, lambda c: c.update(labels="own.yaml"))
    assert MagicFuse.from_pretrained(folder).labels.name == "own"


def test_a_label_set_of_another_size(folder):
    rewritten(folder, lambda c: c.update(labels="mfnet"))
    message = complaint(folder)
    assert "fusion.safetensors: tensor 'segproj.0.weight' has shape (48, 56, 3, 3)" in message
    assert "the config makes it (36, 44, 3, 3)" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_file(folder, part):
    (folder / f"{part}.safetensors").unlink()
    message = complaint(folder)
    assert f"{part}.safetensors is missing" in message
    assert "copy the model folder again" in message


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "spoil", [lambda data: data[:-100], lambda data: data[:5], lambda _: b"", lambda _: b"x" * 300]
)
def test_a_damaged_file(folder, part, spoil):
    path = folder / f"{part}.safetensors"
    path.write_bytes(spoil(path.read_bytes()))
    message = complaint(folder)
    assert f"{path} is corrupt" in message
    assert "copy the model folder again" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_tensor(folder, part):
    name = next(iter(load_file(folder / f"{part}.safetensors")))
    edited(folder, part, lambda tensors: tensors.pop(name))
    message = complaint(folder)
    assert f"{part}.safetensors lacks the tensor {name!r}" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_too_many(folder, part):
    edited(folder, part, lambda tensors: tensors.update(more=torch.zeros(2)))
    message = complaint(folder)
    assert f"{part}.safetensors has a tensor 'more'" in message


@pytest.mark.parametrize("part", PARTS)
def test_a_tensor_of_another_shape(folder, part):
    name, tensor = next(iter(load_file(folder / f"{part}.safetensors").items()))
    longer = torch.zeros(tensor.shape[0] + 1, *tensor.shape[1:])
    edited(folder, part, lambda tensors: tensors.update({name: longer}))
    message = complaint(folder)
    assert f"tensor {name!r} has shape {tuple(longer.shape)}" in message
    assert f"the config makes it {tuple(tensor.shape)}" in message


def test_a_tensor_of_integers(folder):
    edited(folder, "decoder", lambda t: t.update({"outputs.bias": t["outputs.bias"].int()}))
    assert "'outputs.bias' is of torch.int32; accepted: floating point" in complaint(folder)


def test_a_writer_that_dies_leaves_the_old_file(model, folder, monkeypatch):
    def dies(_tensors, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", dies)
    with pytest.raises(OSError, match="No space left"):
        model.save_pretrained(folder)
    assert MagicFuse.from_pretrained(folder).config == SMALL_FEW_STEP


def test_shards_are_small_and_read_as_the_parts_were(model, folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "SHARD_BYTES", 250_000)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    parts = {part: getattr(model, part) for part in model.parts}
    for _ in range(2):  # the second in the place of the first
        checkpoint.save_shards(folder, parts)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert len(files) > 1
    assert all(name.startswith("weights-") for name in files)
    assert max((folder / name).stat().st_size for name in files) <= 250_000
    loaded = MagicFuse.from_pretrained(folder).state_dict()
    for name, value in before.items():
        torch.testing.assert_close(loaded[name], value, atol=1e-3, rtol=1e-3)
    # A stage that trains one part more writes that alone.
    checkpoint.save_part(folder, "psi", model.psi)
    psi = MagicFuse.from_pretrained(folder).psi.state_dict()
    assert all(torch.equal(psi[name], value) for name, value in model.psi.state_dict().items())
    (folder / files[0]).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        MagicFuse.from_pretrained(folder)
    (folder / checkpoint.SHARDS_FILE).write_text("{}")
    with pytest.raises(CheckpointError, match=r"shards.json cannot be used"):
        MagicFuse.from_pretrained(folder)


def test_the_shipped_sizes_round_trip_their_config(tmp_path):
    from magicfuse_ros.model.sizes import SIZES

    for name, config in SIZES.items():
        checkpoint.write_config(tmp_path / name, config)
        assert checkpoint.read_config(tmp_path / name) == config
