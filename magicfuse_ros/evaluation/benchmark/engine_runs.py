"""Which measurements of the engine are made, in which order, and the rows they become.

Parity comes first: a backend that does not give what `eager` gives on the CPU is not timed. Every
row then runs in a new process. The default configuration comes first among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError
from magicfuse_ros.evaluation.benchmark.measurements import measure

Size = tuple[int, int]
"""(width, height) in pixels."""

VGA, HD = (640, 480), (1280, 720)
RESOLUTIONS: tuple[Size, ...] = ((160, 120), (320, 240), VGA, HD)
STEPS = (1, 2, 4, 8, 25)
REFERENCE_STEPS = 25
MAGIMG_TOLERANCE = 1.0
"""Parity: mean difference of MagImgs that is accepted, in grey levels of 255."""
MASK_TOLERANCE = 0.98
"""Parity: share of pixels whose class must be the same."""


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
        (width, height) that frames are fitted into, which is the size the networks work at.
    parallel
        `on`: Ψ and Φ side by side; `off`: one after the other; `auto`: as the engine chooses.
    """

    backend: str
    steps: int
    resolution: Size
    parallel: str = "auto"

    @property
    def camera(self) -> Size:
        """Size of the frames: 720p for 16:9, VGA otherwise, so that a frame fills the input."""
        return HD if self.resolution[0] * 9 == self.resolution[1] * 16 else VGA

    def __str__(self) -> str:
        width, height = self.resolution
        in_turn = ", Ψ and Φ in turn" if self.parallel == "off" else ""
        return f"{self.backend}, {self.steps} steps at {width}x{height}{in_turn}"

    def as_json(self) -> dict[str, Any]:
        """Return the fields that a row of the results begins with."""
        return {
            "asked": self.backend,
            "steps": self.steps,
            "resolution": list(self.resolution),
            "camera": list(self.camera),
            "parallel": self.parallel,
        }


def plan(survey: Mapping[str, Any], *, quick: bool) -> list[Case]:
    """List the configurations to measure; the one that runs by default comes first.

    Every backend is measured with each number of steps at the model's own resolution, and at each
    resolution with the model's own steps. Two rows exist for the claims: the default with Ψ and Φ
    in turn, and the reference, `eager` in turn with `REFERENCE_STEPS` steps.

    Parameters
    ----------
    survey
        What `measurements.survey` found.
    quick
        Only the default and the reference.
    """
    own: Size = (survey["resolution"][0], survey["resolution"][1])
    steps, best = survey["steps"], survey["backends"][0]
    default = Case(backend="auto", steps=steps, resolution=own)
    reference = Case(backend="eager", steps=REFERENCE_STEPS, resolution=own, parallel="off")
    if quick:
        return [default, reference]
    cases = [default]
    if best != "eager":
        cases.append(Case(backend=best, steps=steps, resolution=own, parallel="off"))
    for backend in survey["backends"]:
        parallel = "off" if backend == "eager" else "auto"
        settings = [(count, own) for count in dict.fromkeys((steps, *STEPS))]
        settings += [(steps, size) for size in RESOLUTIONS if size != own]
        cases += [
            Case(backend=backend, steps=count, resolution=size, parallel=parallel)
            for count, size in settings
            if (backend, count, size) != (best, steps, own) or parallel == "off"
        ]
    return list(dict.fromkeys((*cases, reference)))


@dataclass(frozen=True, kw_only=True)
class EngineRuns:
    """The engine's half of the benchmark.

    Attributes
    ----------
    model, device, threads
        As in `EngineSettings`.
    quick
        Measure little, for a few frames only.
    frames
        Camera size → .npy file of its frames.
    folder
        For the processes' files and the artifact cache.
    check
        Called often; what it raises ends everything.
    show
        Told what is being measured.
    measure
        Makes one measurement, as `measurements.measure` does.
    """

    model: str
    device: str
    threads: int
    quick: bool
    frames: Callable[[Size], Path]
    folder: Path
    check: Callable[[], None]
    show: Callable[[str], None]
    measure: Callable[..., dict[str, Any]] = measure

    def run(self) -> dict[str, Any]:
        """Measure everything; what fails is a row whose `error` says why.

        Raises
        ------
        BenchmarkError
            Not even the model or the device can be had.
        """
        self.show("engine: surveying the model and the machine")
        survey = self._job(
            "survey",
            model=self.model,
            device=self.device,
            threads=self.threads,
            resolutions=[] if self.quick else RESOLUTIONS,
        )
        best = survey["backends"][0]
        parity = [
            self._parity(backend, survey)
            for backend in survey["backends"]
            if backend != "eager" or survey["device"] != "cpu"
        ]
        refused = {row["asked"] for row in parity if not row["passed"]}
        started: set[str] = set()
        start, engine = [], []
        for case in plan(survey, quick=self.quick):
            backend = best if case.backend == "auto" else case.backend
            if backend in refused:
                continue
            first = backend not in started and case.steps == survey["steps"]
            cold = self._attempt(case, seconds=0.0, least=0) if first else {}
            row = self._timed(case, survey)
            engine.append(row)
            if first:  # the artifacts of the cold start make the row's own start a warm one
                started.add(backend)
                start.append(
                    {"asked": case.backend, "backend": row.get("backend", backend)}
                    | {"cold": cold.get("start_s"), "warm": row.get("start_s")}
                    | ({"error": cold["error"]} if "error" in cold else {})
                )
        backends = survey["backends"][:1] if self.quick else survey["backends"]
        peers = [self._peer(each, survey) for each in backends if each not in refused]
        return {
            "survey": survey, "parity": parity, "start": start, "engine": engine, "peers": peers
        }  # fmt: skip

    def _parity(self, backend: str, survey: Mapping[str, Any]) -> dict[str, Any]:
        """Compare a backend with `eager` on the CPU, before anything is timed."""
        self.show(f"engine: parity of {backend} on {survey['device']}")
        own = (survey["resolution"][0], survey["resolution"][1])
        case = Case(backend=backend, steps=survey["steps"], resolution=own)
        try:
            found = self._job(
                "parity",
                folder=self.folder / "parity",  # leaves the start that is measured a cold one
                settings=self._settings(case),
                frames=str(self.frames(case.camera)),
            )
        except BenchmarkError as error:
            return {"asked": backend, "passed": False, "error": str(error)}
        close = found["magimg_mean"] <= MAGIMG_TOLERANCE
        agree = found["mask_agreement"] >= MASK_TOLERANCE
        return {"asked": backend, "passed": close and agree, **found}

    def _timed(self, case: Case, survey: Mapping[str, Any]) -> dict[str, Any]:
        """Time a configuration, and set its work against the machine's peak."""
        work = survey["work"][f"{case.resolution[0]}x{case.resolution[1]}"]
        self.show(f"engine: {case}")
        row = case.as_json() | {"input": work["input"]} | self._attempt(case, **self._effort)
        if "error" in row:
            return row
        gflop = work["once"] + case.steps * work["step"]
        return row | against_peak(gflop, row["network_ms"], survey)

    def _attempt(self, case: Case, *, seconds: float, least: int) -> dict[str, Any]:
        try:
            return self._job(
                "engine",
                settings=self._settings(case),
                frames=str(self.frames(case.camera)),
                seconds=seconds,
                least=least,
                spawned=time.time(),
            )
        except BenchmarkError as error:
            return {"error": str(error)}

    def _peer(self, backend: str, survey: Mapping[str, Any]) -> dict[str, Any]:
        """Time SegFormer-B0 on a backend, on an input of the model's own size."""
        work = survey["work"]["x".join(map(str, survey["resolution"]))]
        row = {"asked": backend, "input": work["input"]}
        self.show(f"engine: SegFormer-B0 on {backend}")
        try:
            row |= self._job(
                "peer",
                backend=backend,
                device=self.device,
                threads=self.threads,
                classes=survey["classes"],
                size=work["input"],
                **self._effort,
            )
        except BenchmarkError as error:
            return row | {"error": str(error)}
        return row | against_peak(work["peer"], row["ms"]["p50"], survey)

    @property
    def _effort(self) -> dict[str, Any]:
        """How long a row fuses, and the frames it fuses even if that takes longer."""
        return {"seconds": 0.0, "least": 3} if self.quick else {"seconds": 8.0, "least": 5}

    def _job(self, job: str, folder: Path | None = None, **arguments: Any) -> dict[str, Any]:
        folder = folder or self.folder
        (folder / "cache").mkdir(parents=True, exist_ok=True)
        return self.measure(job, folder, self.check, **arguments)

    def _settings(self, case: Case) -> dict[str, Any]:
        return {
            "model": self.model,
            "device": self.device,
            "threads": self.threads,
            "backend": case.backend,
            "steps": case.steps,
            "resolution": case.resolution,
            "parallel": case.parallel,
        }


def against_peak(gflop: float, milliseconds: float, survey: Mapping[str, Any]) -> dict[str, float]:
    """Set work done in a time against what the machine's matrix product reaches."""
    rate = gflop / milliseconds * 1e3
    return {"gflop": gflop, "gflops": rate, "peak_share": rate / survey["matmul_gflops"]}
