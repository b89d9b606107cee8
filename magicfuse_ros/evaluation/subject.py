"""What is evaluated: the engine that ships, the model behind it, and the scenes they are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from magicfuse_ros.evaluation.benchmark.measurements import compare
from magicfuse_ros.evaluation.inference import Inference
from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.scenes import Needs, Scene, ValidationSet, has_anything
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.contract import EXTRAS, FuseResult
from magicfuse_ros.runtime.engine_type import Engine

DEGRADED = "mixed"
"""The condition of a table that has only one: training's own mix of coupled degradations."""


@dataclass(frozen=True)
class Products(FuseResult):
    """What a user gets of an image (H, W, 3): all that the engine can make."""

    infrared: U8
    enhanced: U8


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a table is made of.

    The engine is what ships, warmed up: it makes everything that a user would get. The model has
    the same weights in PyTorch, in evaluation mode, on the device that they are to run on: for what
    an engine does not give, such as w_r, ablations, or D(E(x)).
    """

    engine: Engine
    model: MagicFuse
    scenes: ValidationSet
    steps: int | None = None  # DDIM steps; None takes the model's, also for τ
    tau: float | None = None
    # At most so many images a row, evenly from all datasets; 0 takes all. A row of one degradation
    # alone takes a quarter of it.
    limit: int = 0
    # To compare with: F & S that were trained on the condition latent instead of Ψ and Φ.
    unaided: MagicFuse | None = None
    progress: Callable[[str], None] = lambda _line: None  # called with what is being measured

    @property
    def by_engine(self) -> str:
        """Say that a table was made by the engine, and on what it ran."""
        return f"Made by the engine, {self.engine.backend_name}."

    @property
    def by_model(self) -> str:
        """Say that a table was made by PyTorch, and on what it ran."""
        return f"Made by PyTorch in 32 bits on {self.inference().device}, not by the engine."

    def inference(self) -> Inference:
        """Build what runs the model in PyTorch."""
        paper_fusion = self.engine.settings.paper_fusion
        return Inference(self.model, self.steps, paper_fusion=paper_fusion)

    def fuse(self, image: U8, *, temporal: float | None = None) -> Products:
        """Make everything that ships of an RGB image (H, W, 3).

        With a number for `temporal` images are those of one stream, from the last `engine.forget`
        on.
        """
        settings = self.engine.settings
        wanted = (self.steps or 0, self.tau, temporal)
        if (settings.steps, settings.tau, settings.temporal) != wanted:
            steps, tau, _ = wanted
            self.engine.update(steps=steps, tau=tau, seed=settings.seed, temporal=temporal)
        made = self.engine.fuse(image, frozenset(EXTRAS))
        if made.enhanced is None or made.infrared is None:
            raise TypeError(f"{self.engine.backend_name} left out one of {', '.join(EXTRAS)}")
        return Products(**vars(made))

    def under(
        self, condition: str, needs: Needs, purpose: str, share: float = 1.0
    ) -> Iterator[Scene]:
        """Read the scenes of one condition, telling `progress` first; `share`: of the limit."""
        self.progress(f"{purpose}: {condition}")
        limit = max(1, round(self.limit * share)) if self.limit else 0
        yield from self.scenes.scenes(condition, needs, limit)

    def parity(self) -> dict[str, Any]:
        """Compare the engine with the model on one scene, so that their tables may stand together.

        Returns what the benchmark's `compare` does, and in `agree` whether that is accepted.
        """
        scene = next(self.scenes.scenes(DEGRADED, has_anything, 1))
        shipped, plain = self.fuse(scene.degraded), self.inference().fuse(scene.degraded)
        found, agree = compare([(shipped, plain)])
        return {**found, "agree": agree}
