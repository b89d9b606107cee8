"""What the engine promises to those who use it: its settings, its result, its error.

It does not import PyTorch, so that a node can name these types before it loads a model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UInt8 = NDArray[np.uint8]

Progress = Callable[[str], None]
"""Called with a line of text now and then during long work; it may raise to stop the work."""

PARALLEL = ("auto", "on", "off")

SAMPLING = ("steps", "tau", "seed", "temporal")
"""The settings that `Engine.update` changes while the engine runs."""

MOST_TEMPORAL = 0.9
"""Largest `temporal`: at 1 a picture that does not move would never be renewed."""

EXTRAS = ("infrared", "enhanced")
"""Results that cost a decoding of their own and are made only when asked for."""


class EngineError(RuntimeError):
    """The engine cannot be made or cannot go on; the message is one sentence on what to do."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """How to run a model. For a setting that is None, and for 0 steps, the model's own is taken.

    Attributes
    ----------
    model
        Name of a folder in `models/`, or the path of a weights folder.
    device
        `auto` (CUDA where there is one), `cpu`, `cuda` or `cuda:N`.
    backend
        Name in `backends.BACKENDS`, or `auto`: the first of them that works on the device.
    steps
        DDIM steps a frame, up to the model's training steps.
    tau
        τ of Eq. 11, 0 to 1.
    seed
        Seed of the starting noise, 0 or more.
    temporal
        None fuses each frame by itself. A number takes the frames for those of one stream, in
        their order: the light of what Ψ restores then changes slowly, and the number is the weight
        of the last MagImg in the new one where nothing moves, 0 to `MOST_TEMPORAL`.
    resolution
        (width, height) in pixels that frames are fitted into.
    labels
        Label set of the masks, a built-in name or a YAML file: one that the model has learned
        beside its own (`mfnet` of `tiny`), or one that renames the model's classes, in their order.
    threads
        CPU threads for the networks; 0 takes every core this process may use.
    parallel
        `auto` runs Ψ and Φ side by side where the backend can; on a CPU each gets half of the
        cores. `on` does the same, and reports where the backend cannot. `off` runs them in turn,
        which may change the last bits of the results.
    paper_fusion
        Show D(z0_f), the paper's MagImg, even where the model has an R for the camera's size.

    Raises
    ------
    EngineError
        A value is out of its range, as far as that can be told without the model.
    """

    model: str = "tiny"
    device: str = "auto"
    backend: str = "auto"
    steps: int = 0
    tau: float | None = None
    seed: int | None = None
    temporal: float | None = None
    resolution: tuple[int, int] | None = None
    labels: str | None = None
    threads: int = 0
    parallel: str = "auto"
    paper_fusion: bool = False

    def __post_init__(self) -> None:
        _require(bool(self.model), "model", self.model, "the name or folder of a model")
        _require(self.steps >= 0, "steps", self.steps, "1 or more, or 0 for the model's own number")
        in_range = self.tau is None or 0.0 <= self.tau <= 1.0
        _require(in_range, "tau", self.tau, "0.0 to 1.0")
        in_range = self.seed is None or 0 <= self.seed < 2**63
        _require(in_range, "seed", self.seed, "0 to 2^63 - 1")
        in_range = self.temporal is None or 0.0 <= self.temporal <= MOST_TEMPORAL
        _require(in_range, "temporal", self.temporal, f"0.0 to {MOST_TEMPORAL}")
        if self.resolution is not None:
            sides = len(self.resolution) == 2 and min(self.resolution) >= 1
            _require(sides, "resolution", self.resolution, "(width, height), each 1 or more")
        known = self.parallel in PARALLEL
        _require(known, "parallel", self.parallel, ", ".join(PARALLEL))
        _require(self.threads >= 0, "threads", self.threads, "1 or more, or 0 for all cores")


@dataclass(frozen=True)
class FuseResult:
    """The result for one frame; every array has the camera's size and belongs to the caller.

    Attributes
    ----------
    magimg
        (H, W, 3) uint8 RGB: what R makes of the frame, or D(z0_f) (Eq. 14) of a model without R.
    mask
        (H, W) uint8 class ids of the engine's label set.
    confidence
        (H, W) uint8: the softmax probability of the mask's class, times 255.
    infrared
        (H, W) uint8: the infrared that R or D makes of z0_φ, as grey, when asked for.
    enhanced
        (H, W, 3) uint8 RGB: the restored picture that R or D makes of z0_ψ, when asked for.
    stage_ms
        Milliseconds of each of `stopwatch.STAGES`.
    """

    magimg: UInt8
    mask: UInt8
    confidence: UInt8
    infrared: UInt8 | None
    enhanced: UInt8 | None
    stage_ms: dict[str, float]


def check_frame(frame: UInt8, extras: frozenset[str]) -> None:
    """Raise `ValueError` unless these are a frame and extras that `Engine.fuse` accepts."""
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
        raise ValueError(
            f"frame is {frame.dtype} of shape {frame.shape}; "
            "accepted: uint8 of shape (H, W, 3), 1x1 or larger"
        )
    unknown = sorted(extras - set(EXTRAS))
    if unknown:
        raise ValueError(f"extras are {unknown}; accepted: {', '.join(EXTRAS)}")


def _require(condition: bool, name: str, value: object, accepted: str) -> None:  # noqa: FBT001
    if not condition:
        raise EngineError(f"{name} is {value!r}; accepted: {accepted}")
