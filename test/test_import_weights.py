"""The importer, on checkpoints made in the key layouts of the authors' four files."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re

import pytest
import torch
from safetensors.torch import save_file
from support.release_layout import release_states
from support.small_models import SMALL_PAPER, fill

from magicfuse_ros import cli, resources
from magicfuse_ros.commands import import_weights
from magicfuse_ros.model import release
from magicfuse_ros.model.checkpoint import PARTS, CheckpointError
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import PAPER
from magicfuse_ros.runtime.contract import EngineError
from magicfuse_ros.runtime.engine import load_model

FILES = {"ae": "ae.pth", "ikr": "ikr.pth", "ckg": "ckg.pth", "mkf": "model.pth"}
ARCHIVE = {"encoder": "ae", "decoder": "ae", "psi": "ikr", "phi": "ckg", "fusion": "mkf"}


@pytest.fixture(scope="module")
def original():
    """The model that the four files are made of."""
    made = MagicFuse.from_config(SMALL_PAPER).eval()
    fill(made)
    return made


def contents_of(original):
    states = release_states(SMALL_PAPER, original)
    return {
        "ae": {"encoder": states["encoder"], "decoder": states["decoder"]},
        "ikr": states["psi"],
        "ckg": states["phi"],
        "mkf": states["fusion"],
    }


@pytest.fixture
def contents(original):
    """What the four files hold; a test may spoil it before it is written."""
    return contents_of(original)


def state_of(contents, part):
    return contents["ae"][part] if ARCHIVE[part] == "ae" else contents[ARCHIVE[part]]


def written(folder, contents, **options):
    for key, name in FILES.items():
        torch.save(contents[key], folder / name, **options)
    return {key: folder / name for key, name in FILES.items()}


def imported(files, folder, progress=lambda _line: None):
    release.import_release(files, folder, progress, SMALL_PAPER)
    return MagicFuse.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(original, tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return imported(written(folder, contents_of(original)), folder / "model")


def refused(tmp_path, contents):
    """Import what must be refused; returns the message once nothing is seen to be left behind."""
    files = written(tmp_path, contents)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CheckpointError) as caught:
        release.import_release(files, tmp_path / "model", lambda _line: None, SMALL_PAPER)
    assert sorted(tmp_path.iterdir()) == before
    return str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_every_tensor_arrives_in_its_place(model, original, part):
    ours, theirs = getattr(model, part).state_dict(), getattr(original, part).state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name
    assert model.config.trained


@pytest.mark.parametrize("part", PARTS)
def test_the_full_size_layout_maps_onto_every_tensor(part):
    with torch.device("meta"):
        model = MagicFuse.from_config(PAPER)
    theirs = release_states(PAPER, model)[part]
    names = release.names_of(part, PAPER, getattr(model, part))
    ours = getattr(model, part).state_dict()
    assert {names[name]: tensor.shape for name, tensor in theirs.items()} == {
        name: tensor.shape for name, tensor in ours.items()
    }


def test_the_folder_holds_the_config_and_every_part(tmp_path, contents):
    lines = []
    imported(written(tmp_path, contents), tmp_path / "deep" / "model", lines.append)
    folder = tmp_path / "deep" / "model"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model"]
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["config.json", *(f"{part}.safetensors" for part in PARTS)]
    )
    config = json.loads((folder / "config.json").read_text())
    assert config["trained"] is True
    assert config["labels"] == "mfnet"
    assert [line.split(":")[0] for line in lines] == list(PARTS)
    assert "46 tensors" in lines[0]
    assert "44 tensors" in lines[1]


@pytest.fixture(scope="module")
def parts():
    with torch.device("meta"):
        return MagicFuse.from_config(SMALL_PAPER)


def complaint(parts, part, state):
    with pytest.raises(CheckpointError) as caught:
        release.converted(part, state, SMALL_PAPER, getattr(parts, part), "a file")
    return str(caught.value)


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_tensor_is_named(contents, parts, part):
    whole = state_of(contents, part)
    # Every name of the small parts, a quarter of the U-Nets'.
    for name in list(whole)[:: 4 if part in ("psi", "phi") else 1]:
        message = complaint(parts, part, {key: whole[key] for key in whole if key != name})
        assert message.startswith("a file lacks the tensor ")
        assert repr(name) in message


@pytest.mark.parametrize("part", PARTS)
def test_an_unknown_tensor_is_named(contents, parts, part):
    state = state_of(contents, part) | {"extra.weight": torch.zeros(1)}
    assert "'extra.weight'" in complaint(parts, part, state)


@pytest.mark.parametrize(
    "name",
    [
        "input_blocks.1.0.unknown.weight",
        "input_blocks.0.0.more",
        "middle_block.3.weight",
        "output_blocks.12.0.x",
        "output_blocks.0.2.x",
        "label_emb.weight",
        "model_ema.decay",
    ],
)
def test_an_unknown_tensor_of_a_denoiser_is_named(contents, parts, name):
    state = contents["ckg"] | {name: torch.zeros(1)}
    assert repr(name) in complaint(parts, "phi", state)


@pytest.mark.parametrize("part", PARTS)
def test_a_wrong_shape_is_named(contents, parts, part):
    state = state_of(contents, part)
    for name, tensor in list(state.items())[::11]:
        longer = tensor.new_zeros(tensor.shape[0] + 1, *tensor.shape[1:])
        message = complaint(parts, part, state | {name: longer})
        assert f"tensor {name!r} has shape {tuple(longer.shape)}" in message
        assert f"{part} needs {tuple(tensor.shape)}" in message


@pytest.mark.parametrize("spoilt", [3, torch.zeros(8, dtype=torch.int64)])
def test_what_is_no_tensor_of_real_numbers_is_named(contents, parts, spoilt):
    message = complaint(parts, "fusion", contents["mkf"] | {"normout.bias": spoilt})
    assert "'normout.bias'" in message


def test_swapped_files_are_refused(tmp_path, contents):
    contents["ikr"], contents["ckg"] = contents["ckg"], contents["ikr"]
    assert "ikr.pth" in refused(tmp_path, contents)


def test_an_autoencoder_without_a_decoder_is_refused(tmp_path, contents):
    del contents["ae"]["decoder"]
    assert "'decoder'" in refused(tmp_path, contents)


def test_wrappings_are_taken_off_and_reported(tmp_path, contents):
    contents["ikr"] = {"epoch": 3, "state_dict": contents["ikr"]}
    contents["ckg"] = {f"model.diffusion_model.{k}": v for k, v in contents["ckg"].items()}
    contents["mkf"] = {f"module.{k}": v for k, v in contents["mkf"].items()}
    lines = []
    imported(written(tmp_path, contents), tmp_path / "model", lines.append)
    notes = [line for line in lines if ".pth" in line]
    assert len(notes) == 3
    for note, wrapping in zip(notes, ("'state_dict'", "model.diffusion", "'module.'"), strict=True):
        assert wrapping in note


def test_old_and_half_precision_and_safetensors_files_are_read(tmp_path, contents, original):
    contents["mkf"] = {name: tensor.half() for name, tensor in contents["mkf"].items()}
    files = written(tmp_path, contents, _use_new_zipfile_serialization=False)
    ikr = tmp_path / "ikr.safetensors"
    save_file(contents["ikr"], ikr)
    model = imported(files | {"ikr": ikr}, tmp_path / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for ours, theirs in (
        (model.psi.unet.conv_out.weight, original.psi.unet.conv_out.weight),
        (model.phi.unet.conv_out.weight, original.phi.unet.conv_out.weight),
        (model.fusion.normout.weight, original.fusion.normout.weight.half().float()),
    ):
        assert torch.equal(ours, theirs)


class _Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_is_not_run(tmp_path, contents):
    contents["mkf"]["normout.bias"] = _Bomb(str(tmp_path / "ran"))
    assert "cannot be loaded as weights" in refused(tmp_path, contents)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[: len(data) // 2],
        lambda _: b"",
        lambda _: b"<html>",
        lambda _: b"\x80\x02h\x09.",  # a pickle that asks for what it has not got
    ],
)
def test_a_damaged_file_is_named(tmp_path, contents, spoil):
    files = written(tmp_path, contents)
    files["ckg"].write_bytes(spoil(files["ckg"].read_bytes()))
    with pytest.raises(CheckpointError, match=r"ckg\.pth cannot be loaded"):
        release.import_release(files, tmp_path / "model", print, SMALL_PAPER)
    assert not (tmp_path / "model").exists()


def test_a_file_of_something_else_is_refused(tmp_path, contents):
    contents["mkf"] = [1, 2]
    assert "holds a list" in refused(tmp_path, contents)
    contents["mkf"] = {3: torch.zeros(1)}
    assert "has an entry 3" in refused(tmp_path, contents)
    contents["mkf"], contents["ikr"] = {}, {"input_blocks.one.0.weight": torch.zeros(1)}
    assert "ikr.pth" in refused(tmp_path, contents)


def test_an_existing_folder_is_left_alone(tmp_path, contents):
    files = written(tmp_path, contents)
    (tmp_path / "model").mkdir()
    with pytest.raises(CheckpointError, match="exists; remove it"):
        release.import_release(files, tmp_path / "model", print, SMALL_PAPER)
    assert list((tmp_path / "model").iterdir()) == []


def parsed(folder):
    parser = argparse.ArgumentParser()
    import_weights.add_arguments(parser)
    options = [f"--{key}={folder / name}" for key, name in FILES.items()]
    return parser.parse_args([*options, f"--output={folder / 'model'}"])


def test_the_command_converts(tmp_path, contents, monkeypatch, capsys):
    written(tmp_path, contents)
    small = functools.partial(release.import_release, config=SMALL_PAPER)
    monkeypatch.setattr(release, "import_release", small)
    assert import_weights.run(parsed(tmp_path)) == 0
    assert "fusion: " in capsys.readouterr().out
    assert MagicFuse.from_pretrained(tmp_path / "model").config.name == SMALL_PAPER.name


@pytest.mark.parametrize("blocked", [None, "own", "both"])
def test_a_model_is_put_where_its_name_is_looked_up(
    tmp_path, contents, monkeypatch, capsys, blocked
):
    """The user's folder; the shipped one where that cannot be written; else it is told."""
    written(tmp_path, contents)
    small = functools.partial(release.import_release, config=SMALL_PAPER)
    monkeypatch.setattr(release, "import_release", small)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "own"))
    monkeypatch.setattr(resources, "share_dir", lambda: tmp_path / "shipped")
    for name in {"own": ("own",), "both": ("own", "shipped")}.get(blocked, ()):
        (tmp_path / name).write_text("a file, where a folder is wanted")
    options = [f"--{key}={tmp_path / name}" for key, name in FILES.items()]

    status = cli.main(["import-weights", *options])

    out, err = capsys.readouterr()
    if blocked == "both":
        assert status == 2
        assert re.search(r"own/magicfuse/models cannot be written: .*--output", err)
    else:
        assert status == 0
        assert "--model paper" in out
        place = {None: "own/magicfuse", "own": "shipped"}[blocked]
        assert resources.model_path("paper") == tmp_path / place / "models" / "paper"
        assert load_model("paper").config.name == SMALL_PAPER.name


def test_a_name_in_the_users_folder_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert resources.model_path("tiny") == resources.share_dir() / "models" / "tiny"
    own = tmp_path / "magicfuse" / "models" / "tiny"
    own.mkdir(parents=True)
    assert resources.model_path("tiny") == own


def test_without_the_authors_weights_the_command_for_them_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    with pytest.raises(EngineError, match=r"magicfuse import-weights --ae ae\.pth --ikr"):
        load_model("paper")


def test_the_command_says_what_is_missing(tmp_path, capsys):
    assert import_weights.run(parsed(tmp_path)) == 2
    assert "ae.pth is missing" in capsys.readouterr().err
