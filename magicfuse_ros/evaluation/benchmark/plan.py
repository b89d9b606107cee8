"""Which configurations of the engine are measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

Size = tuple[int, int]
"""(width, height) in pixels."""

VGA, HD = (640, 480), (1280, 720)
RESOLUTIONS: tuple[Size, ...] = ((160, 120), (320, 240), VGA, HD)
STEPS = (1, 2, 4, 8, 25)
REFERENCE_STEPS = 25


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How much is measured.

    Attributes
    ----------
    grid
        `quick`: what the ratios need, at the model's own resolution; `cross`: every number of steps
        at the model's own resolution, and every resolution with the model's own steps; `full`:
        every combination.
    seconds, least
        How long each configuration fuses, and the frames it fuses even if that takes longer.
    """

    grid: Literal["quick", "cross", "full"] = "cross"
    seconds: float = 8.0
    least: int = 5


@dataclass(frozen=True, kw_only=True)
class Case:
    """One configuration of the engine.

    Attributes
    ----------
    backend
        Name of a backend, or `auto`.
    steps
        DDIM steps a frame.
    resolution
        (width, height) that frames are fitted into: the size the networks work at.
    camera
        (width, height) of the frames, and of everything that comes out.
    parallel
        `on`: Ψ and Φ side by side; `off`: one after the other; `auto`: as the engine likes.
    """

    backend: str
    steps: int
    resolution: Size
    camera: Size
    parallel: str = "auto"

    def __str__(self) -> str:
        width, height = self.resolution
        side = {"on": "side by side", "off": "in turn", "auto": "as it likes"}[self.parallel]
        return f"{self.backend}, {self.steps} steps at {width}x{height}, Ψ and Φ {side}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields that a row of the results begins with."""
        return {
            "asked": self.backend,
            "steps": self.steps,
            "resolution": list(self.resolution),
            "camera": list(self.camera),
            "parallel": self.parallel,
        }


def camera_of(resolution: Size) -> Size:
    """Choose the camera for a resolution: 720p for 16:9, VGA otherwise.

    A frame keeps its aspect, so that a VGA frame would leave a quarter of 1280x720 unused.
    """
    return HD if resolution[0] * 9 == resolution[1] * 16 else VGA


def resolutions(grid: str) -> tuple[Size, ...]:
    """Return the resolutions that a grid measures besides the model's own."""
    return () if grid == "quick" else RESOLUTIONS


def plan(grid: str, survey: Mapping[str, Any]) -> list[Case]:
    """List the configurations to measure; the one that runs by default comes first.

    Parameters
    ----------
    grid
        See `Effort`.
    survey
        What the worker's `survey` found.
    """
    own: Size = (survey["resolution"][0], survey["resolution"][1])
    steps, backends = survey["steps"], survey["backends"]

    def case(backend: str, count: int, resolution: Size, parallel: str) -> Case:
        return Case(
            backend=backend,
            steps=count,
            resolution=resolution,
            camera=camera_of(resolution),
            parallel=parallel,
        )

    cases = [case("auto", steps, own, "auto")]
    if grid == "quick":
        sides = survey["sides"][backends[0]]
        cases += [case(backends[0], steps, own, parallel) for parallel in sides]
        cases.append(case("eager", REFERENCE_STEPS, own, "off"))
        return list(dict.fromkeys(cases))
    every_size, every_step = dict.fromkeys((own, *RESOLUTIONS)), dict.fromkeys((steps, *STEPS))
    for backend in backends:
        for resolution in every_size:
            for count in every_step:
                if grid == "full" or resolution == own or count == steps:
                    sides = survey["sides"][backend]
                    cases += [case(backend, count, resolution, parallel) for parallel in sides]
    return cases


def starts_of(cases: Iterable[Case], survey: Mapping[str, Any]) -> list[Case]:
    """Choose the configurations whose start-up is measured: each backend at each resolution.

    Steps and sides make no difference to what is compiled. What runs by default stands for its
    backend at the model's own resolution.
    """
    chosen: dict[tuple[str, Size], Case] = {}
    for case in cases:
        backend = survey["backends"][0] if case.backend == "auto" else case.backend
        if case.steps == survey["steps"]:
            chosen.setdefault((backend, case.resolution), replace(case, parallel="auto"))
    return list(chosen.values())
