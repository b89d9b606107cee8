"""A stage's YAML file, and running it: from a model folder and data to the trained part in it."""

from __future__ import annotations

import math
import shutil
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Literal, cast

import torch
import yaml
from accelerate import PartialState

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.autoencoder import fit_linear_path
from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.config import ConfigError, MagicFuseConfig, dataclass_from
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.one_branch import Branch
from magicfuse_ros.model.sizes import SIZES
from magicfuse_ros.resources import model_path
from magicfuse_ros.training.autoencoder_stage import AutoencoderLoss, AutoencoderStage
from magicfuse_ros.training.branches import BranchLoss, BranchStage
from magicfuse_ros.training.datasets import CropDataset, CropSettings, find_sources, open_cache
from magicfuse_ros.training.datasets.cache import CacheSettings
from magicfuse_ros.training.degradation_mixes import Mix
from magicfuse_ros.training.distill import Distillation, DistillStage
from magicfuse_ros.training.loop import run
from magicfuse_ros.training.mkf import MkfLoss, MkfStage
from magicfuse_ros.training.optimization import LoopConfig
from magicfuse_ros.training.stage import Stage
from magicfuse_ros.yaml_limits import load_yaml

StageName = Literal["autoencoder", "psi", "phi", "mkf", "distill"]
STAGES: tuple[StageName, ...] = ("autoencoder", "psi", "phi", "mkf")
"""The stages of a whole recipe in the order that they build on one another."""

_NEEDS: dict[StageName, frozenset[str]] = {
    "autoencoder": frozenset(),
    "psi": frozenset({"clean"}),
    "phi": frozenset({"infrared"}),
    "mkf": frozenset({"labels"}),
}
# Crops that the linear path of an autoencoder is fitted to.
_LINEAR_SAMPLES = 400
# The other processes wait for the first one to decode the data, which may take hours.
_PATIENCE = timedelta(hours=12)


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples a stage sees.

    Attributes
    ----------
    crop, crop_width
        Height and width of the crops, pixels at the model resolution; without a width they are
        square.
    around_box, warp, paste, recolour
        Chances, as `CropSettings` has them.
    unpaired
        Show Φ images without infrared too: what their labels say of objects teaches its `objects`
        head, and nothing else.
    scale
        Smallest and largest magnification of a warped crop.
    weights
        (source name, share) pairs; the others share by the square root of their size.
    mix
        Which degradations, how often.
    """

    crop: int
    crop_width: int = 0
    around_box: float = 0.5
    warp: float = 0.5
    paste: float = 0.0
    recolour: float = 0.0
    unpaired: bool = False
    scale: tuple[float, float] = (0.85, 1.3)
    weights: tuple[tuple[str, float], ...] = ()
    mix: Mix = field(default_factory=Mix)


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage: what is trained, on what, how long.

    Attributes
    ----------
    stage, size
        Which stage of which size of model.
    labels
        Label set of F and S: a built-in name, or the path of a YAML file from where the command
        runs. Empty takes the model's own.
    loop, data
        How it is optimised, and the samples that it sees.
    autoencoder, branch, mkf
        The objective; only that of the stage is used.
    distill
        Who teaches what, of stage `distill`, whose objective is `branch`; None for the others.
    """

    stage: StageName
    size: str
    labels: str = ""
    loop: LoopConfig
    data: DataConfig
    autoencoder: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    branch: BranchLoss = field(default_factory=BranchLoss)
    mkf: MkfLoss = field(default_factory=MkfLoss)
    distill: Distillation | None = None

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"size is {self.size!r}; accepted: {', '.join(SIZES)}")
        if (self.stage == "distill") != (self.distill is not None):
            raise ConfigError(
                f"stage is {self.stage!r} and distill is {self.distill}; accepted: a section "
                "`distill` with `branch` and `teacher` for stage 'distill', and for no other"
            )
        if self.data.unpaired and (self.stage != "phi" or not self.branch.objects):
            raise ConfigError(
                f"data.unpaired is true of stage {self.stage!r} with branch.objects "
                f"{self.branch.objects}; accepted: only of stage 'phi' with branch.objects above 0"
            )


def read_recipe(path: Path) -> StageRecipe:
    """Read a stage's YAML; raises `ConfigError` naming what is wrong with it."""
    try:
        content = load_yaml(path)
    except OSError as error:
        raise ConfigError(
            f"training config {path} cannot be read: {error.strerror}; check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"training config {path} is not YAML: {' '.join(str(error).split())}"
        ) from error
    return dataclass_from(StageRecipe, content, str(path))


def recipe_files(folder: Path) -> list[Path]:
    """List the YAML files of a whole recipe in the order in which they run.

    A stage is `<stage>.yaml`, after `<stage>_coarse.yaml` and before `<stage>_wide.yaml` where
    those exist.
    """
    files = []
    for stage in STAGES:
        coarse, wide = (folder / f"{stage}_{kind}.yaml" for kind in ("coarse", "wide"))
        files += [coarse] if coarse.is_file() else []
        files.append(folder / f"{stage}.yaml")
        files += [wide] if wide.is_file() else []
    return files


def train_stage(recipe: StageRecipe, data: Path, cache: Path, output: Path, name: str) -> bool:
    """Train one stage in the run folder `output` and write its parts into `output/model`.

    `name` is that of its checkpoint and its log. The networks start from those in `output/model`.

    With several processes each calls this with the same arguments, and `output` and `cache` are on
    disks that they share.

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
    with processes.main_process_first():
        model = _open_model(recipe, folder)
        # Before the data, whose decoding may take hours: it finds what is wrong with the recipe.
        stage, multiple_of = _stage(recipe, model, folder)
        dataset = _open_data(recipe, model, multiple_of, data, cache, processes.num_processes)
    resumes = (output / f"{name}.state.safetensors").is_file()
    starts = recipe.stage == "autoencoder" and not recipe.autoencoder.anchor and not resumes
    if starts and model.config.autoencoder.linear_path:
        samples = [dataset[index] for index in range(_LINEAR_SAMPLES)]
        images = [
            sample[key][None].expand(-1, 3, -1, -1)
            for sample in samples
            for key in ("clean", "infrared")
        ]
        fit_linear_path(model.encoder, model.decoder, images)
    complete = run(stage, dataset, recipe.loop, output, name)
    if processes.is_main_process:
        _export(stage, folder, finished=complete and recipe.stage == STAGES[-1])
    processes.wait_for_everyone()
    return complete


def _open_model(recipe: StageRecipe, folder: Path) -> MagicFuse:
    """Load the run folder's model, or make and save a new one."""
    if not (folder / checkpoint.CONFIG_FILE).is_file():
        model = _new_model(SIZES[recipe.size], recipe.labels, folder)
    else:
        model = MagicFuse.from_pretrained(folder)
        if recipe.labels and LabelSet.load(recipe.labels).labels != model.labels.labels:
            if recipe.stage != "mkf":
                raise ConfigError(
                    f"labels is {recipe.labels!r}, but {folder} has the label set "
                    f"{model.labels.name!r}; accepted: the same, or leave it out. Only stage mkf "
                    "can change it, as it trains F and S anew"
                )
            parts = {part: getattr(model, part) for part in ("encoder", "decoder", "psi", "phi")}
            model = _new_model(model.config, recipe.labels, folder, parts)
    return model.train()


def _new_model(
    config: MagicFuseConfig,
    labels: str,
    folder: Path,
    parts: dict[str, torch.nn.Module] | None = None,
) -> MagicFuse:
    """Make a model with random weights, but for `parts`, and save it with its label set."""
    label_set = LabelSet.load(labels or config.labels)
    name = config.labels
    if labels:
        name = Path(labels).name
    if name.endswith((".yaml", ".yml")) and labels:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(labels, folder / name)
    model = MagicFuse(replace(config, labels=name, trained=False), label_set)
    for part, module in (parts or {}).items():
        setattr(model, part, module)
    model.save_pretrained(folder)
    return model


def _open_data(
    recipe: StageRecipe,
    model: MagicFuse,
    multiple_of: int,
    data: Path,
    cache: Path,
    processes: int,
) -> CropDataset:
    width, height = model.config.resolution
    settings = CacheSettings(width=width, height=height)
    crop = CropSettings(
        size=recipe.data.crop,
        width=recipe.data.crop_width,
        needs=_needs(recipe),
        around_box=recipe.data.around_box,
        warp=recipe.data.warp,
        paste=recipe.data.paste,
        recolour=recipe.data.recolour,
        scale=recipe.data.scale,
        mix=recipe.data.mix,
    )
    for name, side in zip(("crop", "crop_width"), crop.shape, strict=True):
        if side % multiple_of:
            models = "this model and its teacher" if recipe.distill else "this model"
            raise ConfigError(
                f"data.{name} is {side}; accepted: multiples of {multiple_of} for {models}"
            )
    return CropDataset(
        [open_cache(source, cache, settings, print) for source in find_sources(data, "train")],
        crop,
        model.labels,
        seed=recipe.loop.seed,
        samples=recipe.loop.steps * recipe.loop.batch * processes,
        weights=dict(recipe.data.weights),
    )


def _needs(recipe: StageRecipe) -> frozenset[str]:
    if recipe.data.unpaired:
        return frozenset()
    if recipe.distill is None:
        return _NEEDS[recipe.stage]
    return _NEEDS[recipe.distill.branch] if recipe.distill.truth else frozenset()


def _stage(recipe: StageRecipe, model: MagicFuse, folder: Path) -> tuple[Stage, int]:
    """Make the stage; the sides of its images are multiples of the number beside it."""
    multiple_of = model.config.multiple_of
    if recipe.distill is not None:
        path = model_path(recipe.distill.teacher)
        if path.resolve() == folder.resolve():
            raise ConfigError(
                f"distill.teacher is {recipe.distill.teacher!r}, the folder that the student is "
                "written into; accepted: another model's, such as a copy of it"
            )
        teacher = MagicFuse.from_pretrained(path)
        multiple_of = math.lcm(multiple_of, teacher.config.multiple_of)
        return DistillStage(model, teacher, recipe.branch, recipe.distill), multiple_of
    if recipe.stage == "autoencoder":
        return AutoencoderStage(model, recipe.autoencoder), multiple_of
    if recipe.stage == "mkf":
        return MkfStage(model, recipe.mkf), multiple_of
    return BranchStage(model, cast("Branch", recipe.stage), recipe.branch), multiple_of


def _export(stage: Stage, folder: Path, *, finished: bool) -> None:
    """Write the stage's parts alone: another stage may be training its own into the same folder."""
    for part in PARTS:
        if part in stage.trained:
            checkpoint.save_part(folder, part, stage.trained[part])
    if finished:
        config = checkpoint.read_config(folder)
        checkpoint.write_config(folder, replace(config, trained=True))
