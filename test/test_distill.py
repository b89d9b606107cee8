"""Distillation: a few-step branch learns what a many-step teacher of another layout makes."""

import pytest
import torch
from dataset_trees import TREES
from safetensors.torch import load_file
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER
from support.training_runs import on_one_thread, run_folder, write_recipe

from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import SamplerSettings
from magicfuse_ros.training.branches import BranchLoss
from magicfuse_ros.training.distill import Distillation, DistillStage
from magicfuse_ros.training.recipe import read_recipe
from magicfuse_ros.training.train_stage import train_stage

STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    yield from on_one_thread()


def make(config):
    torch.manual_seed(3)
    return MagicFuse.from_config(config)


def distill(branch, student=SMALL_FEW_STEP, **options):
    """Return the stage, its student and its teacher, which has the paper's layout."""
    student, teacher = make(student), make(SMALL_PAPER)
    settings = Distillation(branch=branch, teacher="given", **{"steps": STEPS, **options})
    return DistillStage(student, teacher, BranchLoss(pixel=1.0), settings), student, teacher


def batch(count=2):
    picture = torch.rand(count, 3, 32, 32, generator=seeded(5))
    return {
        "clean": picture,
        "degraded": 0.3 * picture,
        "infrared": picture.mean(dim=1, keepdim=True),
        "thermal_weight": torch.zeros(count, 32, 32),
    }


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_student_learns_from_a_frozen_teacher_of_another_autoencoder():
    stage, student, teacher = distill("phi")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    optimizer = torch.optim.Adam(stage.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss, _ = stage(batch(), seeded())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < 0.9 * losses[0], losses
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    for part in PARTS:
        learned = any(
            parameter.grad is not None for parameter in getattr(student, part).parameters()
        )
        assert learned == (part == "phi")
    assert torch.equal(stage(batch(), seeded(1))[0], stage(batch(), seeded(1))[0])
    with torch.no_grad():
        assert stage.sheet(batch(), seeded()).shape == (3, 3 * 32, 2 * 32)


@pytest.mark.parametrize(("branch", "key", "made"), [
    ("psi", "clean", "enhanced"), ("phi", "infrared", "infrared"),
])  # fmt: skip
def test_what_is_taught_is_what_the_teacher_makes_in_all_its_steps(branch, key, made):
    stage, _, teacher = distill(branch)
    given, generator = batch(), seeded(7)
    taught = stage._taught(given, seeded(7))[key]
    torch.rand(2, generator=generator)  # which samples learn from the truth
    noise = teacher.draw_noise(32, 32, generator, 2)
    encoder_noise = teacher.draw_encoder_noise(32, 32, generator, 2)
    settings = SamplerSettings.of(teacher.config, (), steps=STEPS)
    with torch.no_grad():
        pictures = teacher(given["degraded"], noise, settings, encoder_noise)
    # Convolutions round differently for another number of pictures or threads.
    torch.testing.assert_close(taught, getattr(pictures, made), atol=1e-4, rtol=1e-4)


def test_a_share_of_samples_learns_from_the_truth():
    stage, _, _ = distill("phi", truth=0.5)
    given = batch(8)
    infrared = given["infrared"].expand(-1, 3, -1, -1)
    taught = stage._taught(given, seeded())["infrared"]
    same = [torch.equal(*pair) for pair in zip(taught, infrared, strict=True)]
    assert 0 < sum(same) < 8


def test_a_student_is_trained_where_its_few_steps_are():
    stage, _, _ = distill("psi")
    assert set(stage._timesteps(100, seeded()).tolist()) == {999, 499}


def test_a_student_must_begin_at_pure_noise():
    with pytest.raises(ConfigError, match=r"diffusion\.spacing of the student is 'leading'"):
        distill("psi", student=SMALL_PAPER)


def test_a_run_that_was_resumed_is_as_never_stopped_and_keeps_the_teacher_out(tmp_path):
    """On pictures without any infrared, which the teacher imagines."""
    TREES["camvid"](tmp_path / "data" / "camvid")
    make(SMALL_PAPER).save_pretrained(tmp_path / "teacher")

    def train(output, steps, teacher=tmp_path / "teacher"):
        section = {"branch": "phi", "teacher": str(teacher), "steps": STEPS}
        recipe = write_recipe(tmp_path, "distill", loop={"steps": steps}, distill=section)
        return train_stage(read_recipe(recipe), tmp_path / "data", tmp_path / "cache", output, "d")

    whole, parts = run_folder(tmp_path / "whole"), run_folder(tmp_path / "parts")
    start = {part: load_file(whole / "model" / f"{part}.safetensors") for part in PARTS}
    assert train(whole, 3)
    assert train(parts, 1)
    assert train(parts, 3)
    tensors, others = (load_file(folder / "d.state.safetensors") for folder in (whole, parts))
    assert tensors.keys() == others.keys()
    assert [name for name in tensors if not torch.equal(tensors[name], others[name])] == []
    learned = [name for name in tensors if not name.startswith("optimizer/")]
    assert all(name.startswith(("trained/phi.", "average/module.phi.")) or
               name == "average/n_averaged" for name in learned)  # fmt: skip
    for part in PARTS:
        now = load_file(whole / "model" / f"{part}.safetensors")
        changed = any(not torch.equal(now[name], value) for name, value in start[part].items())
        assert changed == (part == "phi")

    # It would no longer be the same teacher once the student had been written.
    with pytest.raises(ConfigError, match="the folder that the student is written into"):
        train(whole, 4, teacher=whole / "model")
