"""A stage's YAML file, and running it: from a model folder and data to the trained part in that folder."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, get_args

import torch
import yaml

from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.autoencoder import fit_linear_path
from magicfuse_ros.model.config import SIZES, ConfigError, dataclass_from
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.training.autoencoder import AutoencoderLoss, AutoencoderStage
from magicfuse_ros.training.branches import BranchLoss, BranchStage
from magicfuse_ros.training.datasets import CropDataset, CropSettings, find_sources, open_cache
from magicfuse_ros.training.datasets.cache import CacheSettings
from magicfuse_ros.training.loop import LoopConfig, Stage, run
from magicfuse_ros.training.mkf import MkfLoss, MkfStage

StageName = Literal["autoencoder", "psi", "phi", "mkf"]
STAGES: tuple[StageName, ...] = get_args(StageName)
"""The stages in the order that they build on one another."""

_NEEDS: dict[StageName, frozenset[str]] = {
    "autoencoder": frozenset(),
    "psi": frozenset({"clean"}),
    "phi": frozenset({"infrared"}),
    "mkf": frozenset({"labels"}),
}


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which samples a stage sees.

    Attributes
    ----------
    crop
        Side of the square crops, pixels at the model resolution.
    around_box, warp
        Chances, as `CropSettings` has them.
    scale
        Smallest and largest magnification of a warped crop.
    weights
        (source name, share) pairs; the others share by the square root of their size.
    """

    crop: int
    around_box: float = 0.5
    warp: float = 0.5
    scale: tuple[float, float] = (0.85, 1.3)
    weights: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage: what is trained, on what, how long."""

    stage: StageName
    size: str
    loop: LoopConfig
    data: DataConfig
    autoencoder: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    branch: BranchLoss = field(default_factory=BranchLoss)
    mkf: MkfLoss = field(default_factory=MkfLoss)

    def __post_init__(self) -> None:
        if self.stage not in STAGES:
            raise ConfigError(f"stage is {self.stage!r}; accepted: {', '.join(STAGES)}")
        if self.size not in SIZES:
            raise ConfigError(f"size is {self.size!r}; accepted: {', '.join(SIZES)}")


def read_recipe(path: Path) -> StageRecipe:
    """Read a stage's YAML; raises `ConfigError` naming what is wrong with it."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"training config {path} cannot be read: {error.strerror}; check the path") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"training config {path} is not YAML: {' '.join(str(error).split())}") from error
    return dataclass_from(StageRecipe, content, str(path))


def train_stage(recipe: StageRecipe, data: Path, cache: Path, output: Path) -> bool:
    """Train one stage in the run folder `output` and write its parts into `output/model`.

    Returns False when a signal ended it early; the same call then goes on from its checkpoint.

    Raises
    ------
    ConfigError, DatasetError, TrainingError, CheckpointError
        As their classes say.
    """
    folder = output / "model"
    torch.manual_seed(recipe.loop.seed)
    if (folder / "config.json").is_file():
        model = MagicFuse.from_pretrained(folder).train()
    else:
        model = MagicFuse.from_config(SIZES[recipe.size])
        model.save_pretrained(folder)
    width, height = model.config.resolution
    settings = CacheSettings(width=width, height=height)
    sources = [open_cache(source, cache, settings, print) for source in find_sources(data, "train")]
    dataset = CropDataset(
        sources,
        CropSettings(
            size=recipe.data.crop,
            needs=_NEEDS[recipe.stage],
            around_box=recipe.data.around_box,
            warp=recipe.data.warp,
            scale=recipe.data.scale,
        ),
        model.labels,
        seed=recipe.loop.seed,
        samples=recipe.loop.steps * recipe.loop.batch,
        weights=dict(recipe.data.weights),
    )
    stage = _stage(recipe, model)
    if recipe.stage == "autoencoder" and model.config.autoencoder.linear_path:
        # Where a checkpoint exists it takes the place of this start.
        samples = [dataset[index] for index in range(400)]
        images = [sample[key][None].expand(-1, 3, -1, -1) for sample in samples for key in ("clean", "infrared")]
        fit_linear_path(model.encoder, model.decoder, images)
    complete = run(stage, dataset, recipe.loop, output, recipe.stage)
    _export(stage, folder)
    return complete


def _stage(recipe: StageRecipe, model: MagicFuse) -> Stage:
    if recipe.stage == "autoencoder":
        return AutoencoderStage(model, recipe.autoencoder)
    if recipe.stage == "mkf":
        return MkfStage(model, recipe.mkf)
    return BranchStage(model, recipe.stage, recipe.branch)


def _export(stage: Stage, folder: Path) -> None:
    """Write the stage's parts alone: another stage may be training its own into the same folder."""
    for part, module in stage.trained.items():
        checkpoint.save_part(folder, part, module)
    config = checkpoint.read_config(folder)
    checkpoint.write_config(folder, replace(config, trained=True))
