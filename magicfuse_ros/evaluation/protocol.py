"""What a protocol measures: a YAML file that names data, pictures, scores and the paper's rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from magicfuse_ros.evaluation.ablations import Variant
from magicfuse_ros.evaluation.fusion_metrics import FUSION_METRICS
from magicfuse_ros.evaluation.subject import DEGRADED
from magicfuse_ros.evaluation.tables import Row
from magicfuse_ros.messages import one_line
from magicfuse_ros.model.config_values import ConfigError, dataclass_from, require
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.resources import share_dir
from magicfuse_ros.training.datasets.layouts import LAYOUTS
from magicfuse_ros.training.degradation import EFFECTS
from magicfuse_ros.training.degradation_mixes import RECIPES
from magicfuse_ros.yaml_limits import load_yaml

Kind = Literal["degraded", "enhanced", "infrared", "magimg", "visible", "real_infrared"]
"""A picture of a scene: what the engine is shown, its three pictures, and the two controls: the
visible picture as recorded and the real infrared."""

MODELS: dict[Variant, str] = {
    "full": "full model",
    "no_estimates": "Model I (no z0 estimates)",
    "no_segmentation": "Model II (no segmentation)",
    "late_fusion": "Model III (late fusion)",
    "restore_only": "Model IV (restored only)",
}
"""The paper's ablations (section 3.5), as tables call them."""


@dataclass(frozen=True)
class Point:
    """One setting of a sweep."""

    name: str = ""  # as tables call it; empty where nothing is swept
    curve: str = ""  # which line of a figure it stands on ...
    value: float | None = None  # ... and where; None for what is no number
    tau: float | None = None  # of the engine, as is `steps`; None for its own
    steps: int | None = None
    variant: Variant = "full"  # or an ablation
    effect: str = ""  # what the recorded picture is degraded by, not the protocol's condition
    strength: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What is varied: one of τ, steps, ablations, or the strength of each of some effects."""

    tau: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    ablations: tuple[Variant, ...] = ()
    effects: tuple[str, ...] = ()
    strengths: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        varied = [bool(each) for each in (self.tau, self.steps, self.ablations, self.effects)]
        require(sum(varied) == 1, "sweep", self, "one of tau, steps, ablations or effects")
        require(
            bool(self.effects) == bool(self.strengths), "strengths", self.strengths,
            "some where effects are given, and none elsewhere",
        )  # fmt: skip
        for effect in self.effects:
            require(effect in EFFECTS, "effects", effect, ", ".join(EFFECTS))
        for share in (*self.tau, *self.strengths):
            require(0.0 <= share <= 1.0, "tau and strengths", share, "0 to 1")
        require(all(steps >= 1 for steps in self.steps), "steps", self.steps, "1 or more")

    def points(self) -> list[Point]:
        """List the settings in their order."""
        found = [Point(f"τ = {tau:g}", "τ", tau, tau=tau) for tau in self.tau]
        found += [Point(f"{n} steps", "steps", n, steps=n) for n in self.steps]
        found += [Point(MODELS[variant], variant=variant) for variant in self.ablations]
        found += [
            Point(f"{effect} {strength:g}", effect, strength, effect=effect, strength=strength)
            for effect in self.effects
            for strength in self.strengths
        ]
        return found


@dataclass(frozen=True, kw_only=True)
class Quoted:
    """Rows of the paper: the figures it prints, by our columns' names."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float, ...]], ...]

    def __post_init__(self) -> None:
        for name, figures in self.rows:
            fits = len(figures) == len(self.columns)
            require(fits, f"row {name}", figures, f"a figure for each of {list(self.columns)}")

    def cells(self, names: Sequence[str]) -> list[Row]:
        """Return each row's name, marked as quoted, and its figures under `names`; NaN if none."""
        rows: list[Row] = []
        for name, figures in self.rows:
            known = dict(zip(self.columns, figures, strict=True))
            rows.append((f"{name} (quoted)", *(known.get(each, math.nan) for each in names)))
        return rows


@dataclass(frozen=True, kw_only=True)
class SegFormerRecipe:
    """How SegFormer is trained on each kind of picture, by AdamW with polynomial decay."""

    steps: int
    batch: int
    learning_rate: float
    size: tuple[int, int]  # (width, height) that pictures are scaled to
    images: int = 0  # at most so many for training, evenly from all of them; 0 takes all

    def __post_init__(self) -> None:
        require(min(self.steps, self.batch) >= 1, "steps and batch", self, "1 or more")
        require(self.learning_rate > 0.0, "learning_rate", self.learning_rate, "above 0")
        require(min(self.size) >= 32, "size", self.size, "32 or more on each side")
        require(self.images >= 0, "images", self.images, "0 (all) or more")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """An experiment; its fields are the sections of the YAML file."""

    title: str  # what is measured
    data: tuple[str, ...]  # layouts of datasets; the first whose folder is there is taken
    labels: str  # label set whose classes are scored
    condition: str = DEGRADED  # what the recorded pictures are degraded by: one of `RECIPES`
    images: int = 0  # at most so many of validation, evenly from all of them; 0 takes all
    pictures: tuple[Kind, ...]  # what is scored, a row each
    metrics: tuple[str, ...] = ()  # names in `FUSION_METRICS`; none measures no fusion
    masks: bool = False  # whether the engine's own mask is scored
    segformer: SegFormerRecipe | None = None  # how to train it on each of `pictures`; None does not
    sweep: Sweep | None = None  # measures all of it for each of some settings
    paper_fusion: bool = False  # MagImg is D(z0_f), as in the paper, though the model may have an R
    fusion_quoted: Quoted | None = None  # the paper's rows, to stand in the same tables
    segmentation_quoted: Quoted | None = None
    note: str = ""  # how the measurement differs from the paper's

    def __post_init__(self) -> None:
        for layout in self.data:
            require(layout in LAYOUTS, "data", layout, ", ".join(LAYOUTS))
        for metric in self.metrics:
            require(metric in FUSION_METRICS, "metrics", metric, ", ".join(FUSION_METRICS))
        require(bool(self.data), "data", self.data, "one layout or more")
        require(self.condition in RECIPES, "condition", self.condition, ", ".join(RECIPES))
        require(self.images >= 0, "images", self.images, "0 (all) or more")
        known: list[str] = [*LabelSet.load(self.labels).names(), "mIoU"]
        for quoted, columns in (
            (self.fusion_quoted, self.metrics), (self.segmentation_quoted, known)
        ):  # fmt: skip
            more = sorted(set(quoted.columns if quoted else ()) - set(columns))
            require(not more, "quoted columns", more, ", ".join(columns))
        measured = bool(self.metrics) or self.masks or self.segformer is not None
        require(measured, "metrics, masks and segformer", None, "at least one of them")

    def points(self) -> list[Point]:
        """List the settings that it is measured at."""
        return [Point()] if self.sweep is None else self.sweep.points()


def protocols(folder: str | None = None) -> list[Path]:
    """List the files of the protocols in a folder, or of those that ship; tables come first."""
    where = Path(folder) if folder else share_dir() / "config" / "protocols"
    found = sorted(where.glob("*.yaml"), key=lambda file: ("table" not in file.stem, file.stem))
    require(bool(found), "protocols", str(where), "a folder of .yaml files")
    return found


def read_protocol(name_or_path: str) -> Protocol:
    """Read a protocol that ships, by its name, or a user's own by the path of its YAML file.

    Raises ConfigError if there is none of that name, or the file is not a protocol; the message
    says what is wrong.
    """
    path = Path(name_or_path)
    if path.suffix not in {".yaml", ".yml"}:
        known = {each.stem: each for each in protocols()}
        accepted = f"{', '.join(known)}, or the path of a .yaml file"
        require(name_or_path in known, "protocol", name_or_path, accepted)
        path = known[name_or_path]
    try:
        content = load_yaml(path)
    except OSError as error:
        raise ConfigError(f"protocol {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"protocol {path} is not YAML: {one_line(error)}") from error
    return dataclass_from(Protocol, content, str(path))
