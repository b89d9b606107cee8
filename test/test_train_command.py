"""`magicfuse train` as a user runs it: in order, killed, stopped, resumed and wrong."""

import os
import shutil
import signal
import time

import pytest
import torch
import yaml
from safetensors import SafetensorError, safe_open
from support.curves import curve
from support.small_models import SMALL_REFINED
from support.training_runs import ROOT, data_folder, on_one_thread, run_folder, start, write_recipe

from magicfuse_ros import cli
from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sizes import PAPER, SIZES
from magicfuse_ros.training import train_stage
from magicfuse_ros.training.recipe import STAGES, read_recipe, recipe_files

CONFIGS = ROOT / "config" / "training"
TAUGHT = {"stage": "psi", "teacher": "tiny"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    yield from on_one_thread()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return data_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """A run folder that no test changes."""
    return run_folder(tmp_path_factory.mktemp("untouched"))


@pytest.fixture
def train(data, cache, capfd):
    """Run `magicfuse train` here; returns its exit status and what it said."""

    def command(stage, config, output, *more):
        options = ["--data", data, "--cache", cache, "--output", output, "--config", config, *more]
        status = cli.main(["train", stage, *map(str, options)])
        return status, "".join(capfd.readouterr())

    return command


def steps_saved(path):
    """How many steps a checkpoint holds; 0 where there is none."""
    try:
        with safe_open(path, "pt") as file:
            return int(file.metadata()["step"])
    except (FileNotFoundError, SafetensorError):
        return 0


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def tensors(path):
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)


def test_all_trains_every_stage_in_order(tmp_path, train, monkeypatch):
    monkeypatch.setattr(train_stage, "_LINEAR_SAMPLES", 20)
    for stage in STAGES:
        write_recipe(tmp_path, stage, loop={"steps": 2})
    # Ψ learns on small pictures first, and on whole scenes last.
    write_recipe(tmp_path, "psi", loop={"steps": 4}).rename(tmp_path / "psi_wide.yaml")
    write_recipe(tmp_path, "psi", loop={"steps": 3}).rename(tmp_path / "psi_coarse.yaml")
    write_recipe(tmp_path, "psi", loop={"steps": 2})
    names = ["autoencoder", "psi_coarse", "psi", "psi_wide", "phi", "mkf", "refine"]
    output = run_folder(tmp_path / "run", SMALL_REFINED)
    random = {part: (output / "model" / f"{part}.safetensors").read_bytes() for part in PARTS}
    status, said = train("all", tmp_path, output)
    assert status == 0, said
    states = [output / f"{name}.state.safetensors" for name in names]
    written = [path.stat().st_mtime_ns for path in states]
    assert written == sorted(written)
    assert [steps_saved(path) for path in states] == [2, 3, 2, 4, 2, 2, 2]
    for part in PARTS:
        assert (output / "model" / f"{part}.safetensors").read_bytes() != random[part]
    assert MagicFuse.from_pretrained(output / "model").config.trained
    assert {path.name for path in (output / "logs").iterdir()} == set(names)

    # Without --resume nothing is overwritten; with it, complete stages stay as they are.
    status, said = train("all", tmp_path, output)
    assert status == 2
    assert "autoencoder.state.safetensors exists; add --resume" in said
    # Weights may have been replaced by newer ones since.
    newer = output / "model" / "psi.safetensors"
    newer.write_bytes(random["psi"])
    kept = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(output)}
    status, said = train("all", tmp_path, output, "--resume")
    assert status == 0
    assert "psi_wide: complete after 4 steps" in said
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files(output)} == kept


def wait_for(condition, process, seconds=180.0):
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"training ended or was too slow: {process.communicate()[0]}")
        time.sleep(0.02)


def test_stopped_killed_and_resumed_is_as_never_interrupted(tmp_path, data, cache, train):
    steps, name = 40, "psi.state.safetensors"
    loop = {"steps": steps, "checkpoint_minutes": 1e-4, "decay": "cosine"}
    config = write_recipe(tmp_path, "psi", loop=loop, data={"crop": 16})
    whole, parts = run_folder(tmp_path / "whole"), tmp_path / "parts"
    shutil.copytree(whole, parts)
    command = ("-m", "magicfuse_ros", "train", "psi", "--config", config, "--data", data,
               "--cache", cache, "--output", parts, "--resume")  # fmt: skip

    # SIGTERM to the whole process group, as a service manager or a cluster sends it.
    process = start(*command)
    wait_for(lambda: steps_saved(parts / name) >= 3, process)
    os.killpg(process.pid, signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert "psi: stopped by a signal; the same command with --resume goes on" in output
    stopped_at = steps_saved(parts / name)
    assert 3 <= stopped_at < steps

    process = start(*command)
    wait_for(lambda: steps_saved(parts / name) >= stopped_at + 3, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert stopped_at + 3 <= steps_saved(parts / name) < steps

    assert train("psi", config, parts, "--resume")[0] == 0
    assert train("psi", config, whole)[0] == 0
    resumed, uninterrupted = tensors(parts / name), tensors(whole / name)
    assert resumed.keys() == uninterrupted.keys()
    assert [key for key in resumed if not torch.equal(resumed[key], uninterrupted[key])] == []
    exported = "model/psi.safetensors"
    assert (parts / exported).read_bytes() == (whole / exported).read_bytes()
    losses = curve(whole, "psi")
    assert [step for step, _ in losses] == [20, 40]
    assert curve(parts, "psi") == losses


def test_by_the_clock_a_usable_model_is_there_at_any_moment(tmp_path, data, cache):
    for stage in STAGES:
        loop = {"steps": 1, "checkpoint_minutes": 1e-4, "decay": "cosine"}
        write_recipe(tmp_path, stage, loop=loop | {"share": 3.0 if stage == "phi" else 1.0})
    output = run_folder(tmp_path / "run", SMALL_REFINED)
    command = ("-m", "magicfuse_ros", "train", "all", "--config", tmp_path, "--minutes", "0.2",
               "--data", data, "--cache", cache, "--output", output, "--resume")  # fmt: skip
    state = output / "phi.state.safetensors"
    process = start(*command)
    wait_for(lambda: steps_saved(state) >= 2, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    killed_at = steps_saved(state)
    assert not MagicFuse.from_pretrained(output / "model").config.trained
    assert {path.name.split("-")[0] for path in (output / "model").glob("*.safetensors")} == {
        "weights"
    }

    process = start(*command)
    said, _ = process.communicate(timeout=180)
    assert process.returncode == 0, said
    assert "psi: complete after" in said
    assert "of its time, step" in said
    assert steps_saved(state) > killed_at
    model = MagicFuse.from_pretrained(output / "model")
    assert model.config.trained
    for stage in STAGES:
        with safe_open(output / f"{stage}.state.safetensors", "pt") as file:
            seconds = float(file.metadata()["seconds"])
            average = (
                file.get_tensor("average/module.phi.unet.conv_in.weight")
                if stage == "phi"
                else None
            )
        assert seconds == pytest.approx(12.0 * (3.0 if stage == "phi" else 1.0) / 7.0, rel=0.5)
        if average is not None:
            torch.testing.assert_close(model.phi.unet.conv_in.weight, average, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            ["all", "--minutes", "0", "--size", "tiny"],
            "--minutes is 0 for stage 'all'; accepted: more",
        ),
        (["psi", "--minutes", "3", "--config", "psi.yaml"], "--minutes is 3 for stage 'psi'"),
        (["all"], "--config is missing; give it, or --size"),
        (["psi", "--size", "tiny"], "--config is missing"),
    ],
)
def test_minutes_and_sizes_are_for_all(tmp_path, capfd, options, says):
    assert cli.main(["train", *options, "--data", str(tmp_path), "--output", str(tmp_path)]) == 2
    assert says in capfd.readouterr().err


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, train):
    config, output = write_recipe(tmp_path, "psi"), run_folder(tmp_path / "run")
    (output / "psi.state.safetensors").write_bytes(b"damaged")
    status, said = train("psi", config, output, "--resume")
    assert status == 2
    (line,) = said.splitlines()
    assert line.startswith("magicfuse train: checkpoint")
    assert "psi.state.safetensors does not fit this stage" in line
    assert "remove it to start the stage again" in line


@pytest.mark.parametrize(
    ("stage", "change", "says"),
    [
        ("psi", {"lopp": {}}, "unknown keys ['lopp']"),
        ("psi", {"stage": "mkf"}, "is for stage 'mkf'; accepted here: 'psi'"),
        ("psi", {"stage": "decoder"}, "psi.yaml.stage is 'decoder'; accepted: autoencoder, psi"),
        ("psi", {"size": "huge"}, "size is 'huge'; accepted: paper, base, tiny"),
        ("psi", {"loop": {"steps": 4, "batch": 0, "learning_rate": 0.1}}, "loop.batch is 0"),
        ("psi", {"loop": {"steps": 4, "batch": 2, "learning_rate": "1e-3"}}, "a number"),
        ("psi", {"loop": {"steps": 4, "batch": 2}}, "lacks the keys ['learning_rate']"),
        ("psi", {"data": {"crop": 36}}, "data.crop is 36; accepted: multiples of 8"),
        ("psi", {"data": {"crop": 32, "crop_width": 30}}, "data.crop_width is 30"),
        ("psi", {"data": {"crop": 32, "weights": [["kitti", 1.0]]}}, "kitti"),
        ("psi", {"branch": {"pure_noise_share": -1.0}}, "branch.pure_noise_share is -1.0"),
        ("psi", {"data": {"crop": 32, "mix": {"haze": -1.0}}}, "data.mix: mix is {"),
        ("mkf", {"mkf": {"class_weights": [1.0]}}, "mkf.class_weights has 1 entries"),
        ("mkf", {"mkf": {"steps": 2000}}, "steps is 2000"),
        ("psi", {"labels": "mfnet"}, "labels is 'mfnet'"),
        ("mkf", {"labels": "moon"}, "unknown label set 'moon'"),
        ("mkf", {"labels": "mfnet", "mkf": {"class_weights": [1.0]}}, "has 1 entries"),
        ("mkf", {"labels": "mfnet", "data": {"crop": 36}}, "data.crop is 36"),
        ("distill", {}, "accepted: a section `distill` with `stage` and `teacher`"),
        ("distill", {"distill": TAUGHT | {"teacher": "no/such"}}, "no model folder no/such"),
        ("distill", {"distill": TAUGHT | {"steps": 0}}, "steps is 0; accepted: 1 to 1000"),
        ("distill", {"distill": TAUGHT | {"truth": 1.0}}, "distill.truth is 1.0"),
        ("psi", {"data": {"crop": 32, "unpaired": True}}, "data.unpaired is true of stage 'psi'"),
        ("phi", {"data": {"crop": 32, "unpaired": True}}, "accepted: only of stage 'phi' with"),
        ("psi", {"distill": TAUGHT}, "for stage 'distill', and for no other"),
    ],
)
def test_a_wrong_config_names_the_key(tmp_path, train, untouched, stage, change, says):
    config = write_recipe(tmp_path, stage)
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | change))
    before = {path: path.read_bytes() for path in files(untouched)}
    status, said = train(stage, config, untouched)
    assert {path: path.read_bytes() for path in files(untouched)} == before
    assert status == 2
    assert "magicfuse train: " in said
    assert says in said
    assert "Traceback" not in said


def test_missing_files_are_named(tmp_path, train, capfd):
    status, said = train("psi", tmp_path / "none.yaml", tmp_path / "run")
    assert status == 2
    assert "none.yaml cannot be read: No such file or directory" in said
    broken = tmp_path / "broken.yaml"
    broken.write_text("stage: [")
    assert "is not YAML" in train("psi", broken, tmp_path / "run")[1]
    empty = tmp_path / "empty"
    empty.mkdir()
    options = ["--output", run_folder(tmp_path / "run"), "--config", write_recipe(tmp_path, "psi")]
    assert cli.main(["train", "psi", "--data", str(empty), *map(str, options)]) == 2
    assert "holds no dataset; name its folders as in" in capfd.readouterr().err


def test_all_checks_every_recipe_before_it_starts(tmp_path, train):
    for stage in STAGES:
        write_recipe(tmp_path, stage)
    (tmp_path / "mkf.yaml").write_text("stage: mkf\n")
    status, said = train("all", tmp_path, tmp_path / "run")
    assert status == 2
    assert "mkf.yaml lacks the keys" in said
    assert not (tmp_path / "run").exists()


def test_own_labels_make_a_new_fusion_and_keep_the_rest(tmp_path, train):
    labels = tmp_path / "mine.yaml"
    entry = {"color": [1, 2, 3], "thermal": True}
    names = ("road", "person", "car")
    labels.write_text(yaml.safe_dump(
        {"name": "mine", "labels": [{"name": name, **entry} for name in names]}
    ))  # fmt: skip
    config = write_recipe(tmp_path, "mkf", loop={"steps": 1}, labels=str(labels))
    output = run_folder(tmp_path / "run")
    kept = {part: (output / "model" / f"{part}.safetensors").read_bytes() for part in PARTS}
    assert train("mkf", config, output)[0] == 0
    model = MagicFuse.from_pretrained(output / "model")
    assert model.labels.names() == list(names)
    for part in set(PARTS) - {"fusion"}:
        assert (output / "model" / f"{part}.safetensors").read_bytes() == kept[part]
    assert train("mkf", config, output, "--resume")[0] == 0


@pytest.mark.parametrize("size", SIZES)
def test_shipped_recipes_parse_and_fit_their_model(size):
    paths = recipe_files(CONFIGS / size)
    for others in (
        "distill_*.yaml",
        "autoencoder_anchored.yaml",
        "refine_mfnet.yaml",
    ):  # no steps of `train all`
        paths += (CONFIGS / size).glob(others)
    assert sorted(paths) == sorted((CONFIGS / size).iterdir())
    for path in paths:
        recipe = read_recipe(path)
        assert (recipe.stage, recipe.size) == (path.stem.partition("_")[0], size)
        for side in (recipe.data.crop, recipe.data.crop_width):
            assert side % SIZES[size].multiple_of == 0
        classes = len(LabelSet.load(recipe.labels or SIZES[size].labels))
        assert len(recipe.mkf.class_weights) in {0, classes}


def test_paper_recipes_are_table_1():
    recipes = {stage: read_recipe(CONFIGS / "paper" / f"{stage}.yaml") for stage in STAGES[:4]}
    table = {
        stage: (recipe.loop.optimizer, recipe.loop.learning_rate, recipe.loop.batch)
        for stage, recipe in recipes.items()
    }
    assert table["psi"] == ("adam", 1e-4, 16)
    assert table["phi"] == ("adam", 1e-5, 4)
    assert table["mkf"] == ("sgd", 1e-3, 1)
    for stage in ("psi", "phi"):
        assert recipes[stage].loop.decay == "constant"
        assert recipes[stage].branch == type(recipes[stage].branch)()  # Eq. 7 and nothing else
        assert (PAPER.diffusion.train_steps, PAPER.diffusion.steps) == (1000, 25)
    mkf, loop = recipes["mkf"].mkf, recipes["mkf"].loop
    assert (loop.momentum, loop.weight_decay) == (0.9, 1e-4)
    assert (loop.decay, loop.halve_every) == ("halve", 10 * 1177)
    assert (mkf.contrast, mkf.texture, mkf.color, mkf.segmentation) == (6.0, 10.0, 5.0, 1.0)
    assert mkf.class_weights == (0.4, 0.8, 1.0, 2.0, 4.0, 1.8, 1.8, 1.5, 1.5)
    assert mkf.steps == 25
    for recipe in recipes.values():
        assert (recipe.data.crop, recipe.data.crop_width) == (480, 640)
