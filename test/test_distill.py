"""Distillation: a few-step branch learns what a many-step teacher of another layout makes."""

import dataclasses

import pytest
import torch
from dataset_trees import TREES
from safetensors.torch import load_file
from support.pictures import pictures_of
from support.small_models import SMALL_FEW_STEP, SMALL_PAPER, SMALL_REFINED, fill
from support.training_runs import on_one_thread, run_folder, write_recipe
from torch.nn import functional

from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import SamplerSettings
from magicfuse_ros.training.branches import BranchLoss, BranchStage
from magicfuse_ros.training.distill import Distillation, DistillStage
from magicfuse_ros.training.mkf import MkfLoss, MkfStage
from magicfuse_ros.training.recipe import read_recipe
from magicfuse_ros.training.refine import RefineLoss, RefineStage
from magicfuse_ros.training.semantics import SemanticLoss, SemanticTerms
from magicfuse_ros.training.train_stage import train_stage

STEPS = 2


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    yield from on_one_thread()


def make(config):
    torch.manual_seed(3)
    return MagicFuse.from_config(config)


def distill(stage, student=SMALL_FEW_STEP, teacher=SMALL_PAPER, **options):
    """Return the stage, its student and its teacher, which has the paper's layout."""
    student, teacher = make(student), make(teacher)
    settings = Distillation(stage=stage, teacher="given", **{"steps": STEPS, **options})
    if stage == "mkf":
        inner = MkfStage(student, MkfLoss())
    elif stage == "refine":
        inner = RefineStage(student, RefineLoss())
    else:
        inner = BranchStage(student, stage, BranchLoss(pixel=1.0))
    return DistillStage(inner, student, teacher, settings), student, teacher


def batch(count=2):
    picture = torch.rand(count, 3, 32, 32, generator=seeded(5))
    return {
        "clean": picture,
        "degraded": 0.3 * picture,
        "infrared": picture.mean(dim=1, keepdim=True),
        "thermal_weight": torch.zeros(count, 32, 32),
        "labels": torch.full((count, 32, 32), UNKNOWN),
        "has_clean": torch.ones(count),
        "has_infrared": torch.ones(count),
        "annotated": torch.zeros(count),
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
        pictures = pictures_of(teacher, given["degraded"], noise, settings, encoder_noise)
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
    assert set(stage.inner._timesteps(100, seeded()).tolist()) == {999, 499}


def test_what_is_not_known_is_taught_however_large_the_share_of_truth():
    stage, _, _ = distill("phi", truth=0.99)
    given = batch(8) | {"has_infrared": torch.zeros(8)}
    taught = stage._taught(given, seeded())
    assert not (taught["infrared"] == given["infrared"]).flatten(1).all(dim=1).any()
    assert taught["has_infrared"].tolist() == [1.0] * 8


@pytest.mark.parametrize("kind", ["mkf", "refine"])
def test_f_s_and_r_learn_the_classes_heat_and_infrared_of_a_teacher_without_any_label(kind):
    wider = dataclasses.replace(
        SMALL_REFINED, refiner=dataclasses.replace(SMALL_REFINED.refiner, widths=(16,))
    )
    stage, student, teacher = distill(kind, SMALL_REFINED, wider, steps=1)
    fill(teacher)  # a new R says next to nothing, and all classes are alike to it
    with torch.no_grad():
        teacher.refiner.head.outputs.bias[3:] = torch.linspace(-2.0, 2.0, 12)
    given = batch(2) | {"has_infrared": torch.zeros(2)}
    taught = stage._taught(given, seeded(2))
    side = 32 if kind == "mkf" else 16  # R's samples are at the camera's size
    classes = taught["taught_classes"]
    assert classes.shape == (2, len(teacher.labels), side, side)
    torch.testing.assert_close(classes.sum(dim=1), torch.ones(2, side, side))
    if kind == "refine":
        assert taught["has_infrared"].tolist() == [1.0, 1.0]
        assert taught["taught_heat"].shape == (2, 16, 16)
        assert not torch.equal(taught["infrared"], given["infrared"])
    optimizer = torch.optim.Adam(stage.parameters(), 3e-3)
    terms = []
    for _ in range(40):
        loss, scalars = stage(given, seeded(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        terms.append({name: float(value) for name, value in scalars.items()})
    for name in ("segmentation", *(("heat", "infrared") if kind == "refine" else ())):
        assert terms[-1][name] < terms[0][name], name
    assert all(parameter.grad is None for parameter in teacher.parameters())
    learned = {part for part in student.parts
               if any(p.grad is not None for p in getattr(student, part).parameters())}  # fmt: skip
    assert learned == {"fusion" if kind == "mkf" else "refiner"}
    with torch.no_grad():
        assert stage.sheet(given, seeded()).shape[0] == 3


def test_labels_stand_where_the_truth_is_learned_and_the_teachers_classes_elsewhere():
    terms = SemanticTerms(LabelSet.load("drive"), SemanticLoss(), "mkf")
    logits = torch.randn(2, 12, 4, 4, generator=seeded())
    labels = torch.full((2, 4, 4), 3)
    given = {"labels": labels, "annotated": torch.zeros(2), "thermal_weight": torch.zeros(2, 4, 4)}
    alone = terms(logits[1:], {key: value[1:] for key, value in given.items()})["segmentation"]
    classes = functional.one_hot(torch.full((2, 4, 4), 5), 12).permute(0, 3, 1, 2).float()
    both = given | {"taught": torch.tensor([True, False]), "taught_classes": classes}
    as_five = functional.cross_entropy(logits[:1], torch.full((1, 4, 4), 5))
    torch.testing.assert_close(terms(logits, both)["segmentation"], (alone + as_five) / 2.0)


@pytest.mark.parametrize(
    ("kind", "teacher", "says"),
    [
        ("mkf", SMALL_PAPER, "has the labels 'mfnet', the student 'drive'"),
        ("refine", SMALL_FEW_STEP, "has no section `refiner`"),
    ],
)
def test_a_teacher_that_cannot_teach_it_is_refused(kind, teacher, says):
    with pytest.raises(ConfigError, match=says):
        distill(kind, SMALL_REFINED, teacher)


def test_a_student_must_begin_at_pure_noise():
    with pytest.raises(ConfigError, match=r"diffusion\.spacing of the student is 'leading'"):
        distill("psi", student=SMALL_PAPER)


def test_a_run_that_was_resumed_is_as_never_stopped_and_keeps_the_teacher_out(tmp_path):
    """On pictures without any infrared, which the teacher imagines."""
    TREES["camvid"](tmp_path / "data" / "camvid")
    make(SMALL_PAPER).save_pretrained(tmp_path / "teacher")

    def train(output, steps, teacher=tmp_path / "teacher"):
        section = {"stage": "phi", "teacher": str(teacher), "steps": STEPS}
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
