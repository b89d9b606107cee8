"""A stage's recipe, which is a YAML file: what is trained, on what and how long."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.config_values import ConfigError, dataclass_from
from magicfuse_ros.model.sizes import SIZES
from magicfuse_ros.training.autoencoder_stage import AutoencoderLoss
from magicfuse_ros.training.branches import BranchLoss
from magicfuse_ros.training.datasets.crops import DataConfig
from magicfuse_ros.training.distill import Distillation
from magicfuse_ros.training.mkf import MkfLoss
from magicfuse_ros.training.optimization import LoopConfig
from magicfuse_ros.training.refine import RefineLoss
from magicfuse_ros.yaml_limits import load_yaml

StageName = Literal["autoencoder", "psi", "phi", "mkf", "refine", "distill"]
STAGES: tuple[StageName, ...] = ("autoencoder", "psi", "phi", "mkf", "refine")
"""The stages of a whole recipe in the order that they build on one another; `refine` only where the
size has an R."""


@dataclass(frozen=True, kw_only=True)
class StageRecipe:
    """One stage; its attributes are the sections of the YAML file."""

    # Which stage of which size of model.
    stage: StageName
    size: str
    # Label set of F and S: a built-in name, or the path of a YAML file from where the command runs.
    # Empty takes the model's own.
    labels: str = ""
    # How it is optimised, and the samples that it sees.
    loop: LoopConfig
    data: DataConfig
    # The objective; only that of the stage is used.
    autoencoder: AutoencoderLoss = field(default_factory=AutoencoderLoss)
    branch: BranchLoss = field(default_factory=BranchLoss)
    mkf: MkfLoss = field(default_factory=MkfLoss)
    refine: RefineLoss = field(default_factory=RefineLoss)
    distill: Distillation | None = None  # who teaches what, of stage `distill`; None for the others

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ConfigError(f"size is {self.size!r}; accepted: {', '.join(SIZES)}")
        if (self.stage == "distill") != (self.distill is not None):
            raise ConfigError(
                f"stage is {self.stage!r} and distill is {self.distill}; accepted: a section "
                "`distill` with `stage` and `teacher` for stage 'distill', and for no other"
            )
        if self.data.unpaired and (self.stage != "phi" or not self.branch.objects):
            raise ConfigError(
                f"data.unpaired is true of stage {self.stage!r} with branch.objects "
                f"{self.branch.objects}; accepted: only of stage 'phi' with branch.objects above 0"
            )

    @property
    def learns(self) -> str:
        """The stage whose networks learn, and whose objective it is."""
        return self.stage if self.distill is None else self.distill.stage


def read_recipe(path: Path) -> StageRecipe:
    """Read a stage's YAML; raises `ConfigError` naming what is wrong with it."""
    try:
        content = load_yaml(path)
    except OSError as error:
        raise ConfigError(
            f"training config {path} cannot be read: {error.strerror}; check the path"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"training config {path} is not YAML: {one_line(error)}") from error
    return dataclass_from(StageRecipe, content, str(path))


def recipe_files(folder: Path) -> list[Path]:
    """List the YAML files of a whole recipe in the order in which they run.

    A stage is `<stage>.yaml`, after `<stage>_coarse.yaml` and before `<stage>_wide.yaml` where
    those exist; `refine.yaml` need not exist.
    """
    files = []
    for stage in STAGES:
        for kind in ("_coarse", "", "_wide"):
            path = folder / f"{stage}{kind}.yaml"
            if path.is_file() or not (kind or stage == "refine"):
                files.append(path)
    return files
