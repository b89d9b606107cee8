"""Training one stage: from a model folder and data to the trained parts in that folder."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from accelerate import PartialState
from torch import nn

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.autoencoder import fit_linear_path
from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.partial import Branch
from magicfuse_ros.model.sizes import SIZES
from magicfuse_ros.resources import model_path
from magicfuse_ros.training.autoencoder_stage import AutoencoderStage
from magicfuse_ros.training.branches import BranchStage
from magicfuse_ros.training.datasets.cache import CacheSettings
from magicfuse_ros.training.datasets.crops import Crops
from magicfuse_ros.training.datasets.packing import training_sources
from magicfuse_ros.training.distill import DistillStage
from magicfuse_ros.training.loop import run
from magicfuse_ros.training.mkf import MkfStage
from magicfuse_ros.training.pretrained import begin_with, imagenet_weights
from magicfuse_ros.training.recipe import StageRecipe
from magicfuse_ros.training.refine import RefineStage
from magicfuse_ros.training.stage import Stage
from magicfuse_ros.training.state import read_done, state_path

# What an item must have for a stage; a teacher knows what it lacks.
_NEEDS = {"psi": {"clean"}, "phi": {"infrared"}, "mkf": {"labels"}}
# Crops that the linear path of an autoencoder is fitted to.
_LINEAR_SAMPLES = 400
# The other processes wait for the first one to decode the data, which may take hours.
_PATIENCE = timedelta(hours=12)


def train_stage(
    recipe: StageRecipe,
    data: Path,
    cache: Path,
    output: Path,
    name: str,
    minutes: float | None = None,
) -> bool:
    """Train one stage in the run folder `output` and write its parts into `output/model`.

    The networks start from those in `output/model`. A stage whose checkpoint has all its steps is
    left as it is, and so is the folder: the weights there may be newer than the checkpoint's.

    With several processes each calls this with the same arguments, and `output` and `cache` are on
    disks that they share.

    Parameters
    ----------
    data, cache
        Folder of the datasets, each named after its layout, and folder of the decoded images.
    name
        That of the checkpoint and of the log.
    minutes
        How long to train in all, runs before this one included, in the place of the recipe's steps.
        The model is then written with each checkpoint in 16 bits, in files of at most 15 MB.

    Returns
    -------
    bool
        False when a signal ended it early; the same call then goes on from its checkpoint.

    Raises
    ------
    ConfigError, DatasetError, LabelSetError, TrainingError, CheckpointError
        As their classes say.
    """
    folder = output / "model"
    torch.manual_seed(recipe.loop.seed)
    processes = PartialState(cpu=not torch.cuda.is_available(), timeout=_PATIENCE)
    done, seconds = read_done(state_path(output, name))
    if seconds >= 60.0 * minutes if minutes else done >= recipe.loop.steps:
        processes.print(f"{name}: complete after {done} steps; {folder} is left as it is")
        return True
    with processes.main_process_first():
        model, is_new = _open_model(recipe, folder)
        if recipe.learns == "refine" and model.refiner is not None and model.refiner.is_new:
            begin_with(model.refiner.trunk, imagenet_weights(data))
        # Before the data, whose decoding may take hours: it finds what is wrong with the recipe.
        stage, multiple_of = _stage(recipe, model, folder)
        crops = _open_data(recipe, model, multiple_of, data, cache, processes.device)
        if is_new:  # not before all is known to be right: it replaces F and S of another label set
            _save_model(model, recipe.labels, folder, sharded=bool(minutes))
    starts = recipe.stage == "autoencoder" and not recipe.autoencoder.anchor and not done
    if starts and model.config.autoencoder.linear_path:
        sample = crops.batch(0, _LINEAR_SAMPLES)
        pictures = (sample[key].cpu().expand(-1, 3, -1, -1) for key in ("clean", "infrared"))
        images = [image[None] for some in pictures for image in some]
        fit_linear_path(model.encoder, model.decoder, images)

    def export(trained: nn.ModuleDict) -> None:
        learned = {part: trained[part] for part in model.parts if part in trained}
        if minutes:  # the stages of `train all` run one after another
            rest = {part: getattr(model, part) for part in model.parts}
            checkpoint.save_shards(folder, rest | learned)
        else:  # the stage's parts alone: another may be training its own into the same folder
            for part, module in learned.items():
                checkpoint.save_part(folder, part, module)
        # Its every part has learned now.
        if recipe.stage == ("mkf" if model.refiner is None else "refine"):
            config = checkpoint.read_config(folder)
            sampling = replace(config.diffusion, trained_steps=stage.trained_steps)
            checkpoint.write_config(folder, replace(config, trained=True, diffusion=sampling))

    complete = run(stage, crops, recipe.loop, output, name, export, minutes=minutes)
    processes.wait_for_everyone()
    return complete


def _open_model(recipe: StageRecipe, folder: Path) -> tuple[MagicFuse, bool]:
    """Load the run folder's model, or make a new one, and tell whether it is new."""
    if not (folder / checkpoint.CONFIG_FILE).is_file():
        return _new_model(SIZES[recipe.size], recipe.labels).train(), True
    model = MagicFuse.from_pretrained(folder)
    if recipe.stage == "refine" and model.refiner is None:
        config = replace(model.config, refiner=SIZES[recipe.size].refiner)
        refined = MagicFuse(config, model.labels)
        refined.share(model, PARTS)
        return refined.train(), True
    is_own = not recipe.labels or LabelSet.load(recipe.labels).labels == model.labels.labels
    if is_own or _more_classes(recipe, model):
        return model.train(), False
    if recipe.stage != "mkf":
        raise ConfigError(
            f"labels is {recipe.labels!r}, but {folder} has the label set {model.labels.name!r}; "
            "accepted: the same, or leave it out. Only stage mkf can change it, as it trains F and "
            "S anew"
        )
    other = _new_model(model.config, recipe.labels)
    other.share(model, ("encoder", "decoder", "psi", "phi"))
    return other.train(), True


def _more_classes(recipe: StageRecipe, model: MagicFuse) -> str:
    """Return the label set that R is to learn beside S's, if the recipe asks for one."""
    refiner = model.config.refiner
    known = refiner.more_labels if refiner and recipe.stage == "refine" else ()
    return recipe.labels if recipe.labels in known else ""


def _new_model(config: MagicFuseConfig, labels: str) -> MagicFuse:
    """Make a model with random weights for a label set; without one, for the config's."""
    label_set = LabelSet.load(labels or config.labels)
    name = Path(labels).name if labels else config.labels
    return MagicFuse(replace(config, labels=name, trained=False), label_set)


def _save_model(model: MagicFuse, labels: str, folder: Path, *, sharded: bool) -> None:
    """Write a new model, and the YAML file of its label set if it is the user's own, beside it."""
    if labels.endswith((".yaml", ".yml")):
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(labels, folder / model.config.labels)
    if not sharded:
        model.save_pretrained(folder)
        return
    checkpoint.save_shards(folder, {part: getattr(model, part) for part in model.parts})
    checkpoint.write_config(folder, model.config)


def _open_data(
    recipe: StageRecipe,
    model: MagicFuse,
    multiple_of: int,
    data: Path,
    cache: Path,
    device: torch.device,
) -> Crops:
    refiner = model.config.refiner if recipe.learns == "refine" else None
    camera = refiner.camera if refiner is not None else 1
    width, height = (camera * side for side in model.config.resolution)
    settings, multiple_of = CacheSettings(width=width, height=height), camera * multiple_of
    for name, side in zip(("crop", "crop_width"), recipe.data.shape, strict=True):
        if side % multiple_of:
            models = "this model and its teacher" if recipe.distill else "this model"
            raise ConfigError(
                f"data.{name} is {side}; accepted: multiples of {multiple_of} for {models}"
            )
    return Crops(
        training_sources(data, cache, settings, print),
        recipe.data,
        LabelSet.load(more) if (more := _more_classes(recipe, model)) else model.labels,
        seed=recipe.loop.seed,
        needs=frozenset() if recipe.data.unpaired else frozenset(_NEEDS.get(recipe.stage, ())),
        device=device,
    )


def _stage(recipe: StageRecipe, model: MagicFuse, folder: Path) -> tuple[Stage, int]:
    """Make the stage; the sides of its images are multiples of the number beside it."""
    multiple_of = model.config.multiple_of
    own = _own_stage(recipe, model)
    if recipe.distill is None:
        return own, multiple_of
    path = model_path(recipe.distill.teacher)
    if path.resolve() == folder.resolve():
        raise ConfigError(
            f"distill.teacher is {recipe.distill.teacher!r}, the folder that the student is "
            "written into; accepted: another model's, such as a copy of it"
        )
    teacher = MagicFuse.from_pretrained(path)
    multiple_of = math.lcm(multiple_of, teacher.config.multiple_of)
    return DistillStage(own, model, teacher, recipe.distill), multiple_of


def _own_stage(recipe: StageRecipe, model: MagicFuse) -> Stage:
    if recipe.learns == "autoencoder":
        return AutoencoderStage(model, recipe.autoencoder)
    if recipe.learns == "mkf":
        return MkfStage(model, recipe.mkf)
    if recipe.learns == "refine":
        return RefineStage(model, recipe.refine, _more_classes(recipe, model))
    return BranchStage(model, cast("Branch", recipe.learns), recipe.branch)
