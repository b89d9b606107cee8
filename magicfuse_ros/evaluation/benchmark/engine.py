"""The engine's benchmark: parity, start-up, speed, memory and work, and the peers beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError
from magicfuse_ros.evaluation.benchmark.plan import (
    Case,
    Effort,
    Size,
    camera_of,
    plan,
    resolutions,
    starts_of,
)
from magicfuse_ros.evaluation.benchmark.process import Workers

MAGIMG_TOLERANCE = 1.0
"""Parity: mean difference of MagImgs that is accepted, in grey levels of 255."""
MASK_TOLERANCE = 0.98
"""Parity: share of pixels whose class must be the same."""


@dataclass(frozen=True, kw_only=True)
class EngineBenchmark:
    """The engine's half of the benchmark.

    Attributes
    ----------
    model, device, threads
        As in `EngineSettings`.
    effort
        How much to measure.
    frames
        Camera size → .npy file of its frames.
    folder
        For the workers' files; the artifact cache of what runs by default stays in `folder/cache`.
    check
        As for `Workers`.
    show
        Told what is being measured.
    """

    model: str
    device: str
    threads: int
    effort: Effort
    frames: Callable[[Size], Path]
    folder: Path
    check: Callable[[], None]
    show: Callable[[str], None]

    def run(self) -> dict[str, Any]:
        """Measure everything but backends that fail parity; what fails is a row that says why.

        Raises
        ------
        BenchmarkError
            Not even the model or the device can be had.
        """
        reuse = self.effort.grid == "quick"
        with Workers(self.folder, self.check, reuse=reuse) as workers:
            return self._run(workers)

    def _run(self, workers: Workers) -> dict[str, Any]:
        self.show("engine: surveying the model and the machine")
        sizes = resolutions(self.effort.grid)
        survey = workers.run(
            "survey",
            self._cache,
            model=self.model,
            device=self.device,
            threads=self.threads,
            resolutions=sizes,
        )
        inputs = {
            tuple(size): found
            for size, found in zip((survey["resolution"], *sizes), survey["inputs"], strict=True)
        }
        parity = list(self._parities(workers, survey))
        refused = {row["asked"] for row in parity if not row["passed"]}
        planned = plan(self.effort.grid, survey)
        cases = [case for case in planned if case.backend not in refused]
        starts = [self._start(workers, case) for case in starts_of(cases, survey)]
        rows = [self._measure(workers, case, survey, inputs[case.resolution]) for case in cases]
        backends = survey["backends"][:1] if self.effort.grid == "quick" else survey["backends"]
        peers = [
            self._peer(workers, backend, survey) for backend in backends if backend not in refused
        ]
        return {
            "survey": survey,
            "parity": parity,
            "start": starts,
            "engine": rows,
            "peers": peers,
        }

    @property
    def _cache(self) -> Path:
        return self.folder / "cache"

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

    def _parities(self, workers: Workers, survey: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Compare every backend with `eager` on the CPU, before any is timed."""
        own: Size = (survey["resolution"][0], survey["resolution"][1])
        on_cpu = survey["device"] == "cpu"
        for backend in survey["backends"]:
            if on_cpu and backend == "eager":
                continue
            self.show(f"engine: parity of {backend} on {survey['device']}")
            case = Case(
                backend=backend, steps=survey["steps"], resolution=own, camera=camera_of(own)
            )
            try:
                found = workers.run(
                    "parity",
                    self.folder / "cache_parity",
                    settings=self._settings(case),
                    frames=str(self.frames(case.camera)),
                )
            except BenchmarkError as error:
                yield {"asked": backend, "passed": False, "error": str(error)}
                continue
            close = found["magimg_mean"] <= MAGIMG_TOLERANCE
            agree = found["mask_agreement"] >= MASK_TOLERANCE
            yield {"asked": backend, "passed": close and agree, **found}

    def _start(self, workers: Workers, case: Case) -> dict[str, Any]:
        """Start up twice: with nothing in the artifact cache, and with what that left there."""
        self.show(f"engine: start-up of {case}")
        row: dict[str, Any] = case.as_json()
        try:
            for temperature in ("cold", "warm"):
                found = self._engine(workers, case, seconds=0.0, least=0)
                row["backend"], row[temperature] = found["backend"], found["start_s"]
        except BenchmarkError as error:
            row["error"] = str(error)
        return row

    def _measure(
        self, workers: Workers, case: Case, survey: Mapping[str, Any], found: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Time a configuration and set its work against the machine's peak."""
        row = case.as_json() | {"input": found["input"]}
        self.show(f"engine: {case}")
        try:
            measured = self._engine(
                workers, case, seconds=self.effort.seconds, least=self.effort.least
            )
        except BenchmarkError as error:
            return row | {"error": str(error)}
        del measured["start_s"]  # whether it was warm depends on the rows before
        gflop = frame_gflop(found["gflop"], case.steps)
        return row | measured | against_peak(gflop, measured["network_ms"], survey)

    def _engine(
        self, workers: Workers, case: Case, *, seconds: float, least: int
    ) -> dict[str, Any]:
        return workers.run(
            "engine",
            self._cache,
            settings=self._settings(case),
            frames=str(self.frames(case.camera)),
            seconds=seconds,
            least=least,
            spawned=time.time(),
        )

    def _peer(self, workers: Workers, backend: str, survey: Mapping[str, Any]) -> dict[str, Any]:
        """Time SegFormer-B0 where the model itself was timed, on an input of the same size."""
        found = survey["inputs"][0]
        row = {"name": "segformer-b0", "asked": backend, "input": found["input"]}
        self.show(f"engine: SegFormer-B0 on {backend}")
        try:
            measured = workers.run(
                "segformer",
                self._cache,
                backend=backend,
                device=self.device,
                threads=self.threads,
                classes=survey["classes"],
                size=found["input"],
                seconds=self.effort.seconds,
                least=self.effort.least,
            )
        except BenchmarkError as error:
            return row | {"error": str(error)}
        gflop = found["gflop"]["segformer-b0"]
        return row | measured | against_peak(gflop, measured["ms"]["p50"], survey)


def frame_gflop(parts: Mapping[str, float], steps: int) -> float:
    """Add up a frame's work: E and D once, Ψ, Φ and F & S at every step; in 10^9 operations."""
    step = parts["psi"] + parts["phi"] + parts["fusion"]
    return parts["encoder"] + steps * step + parts["decoder"]


def against_peak(gflop: float, milliseconds: float, survey: Mapping[str, Any]) -> dict[str, float]:
    """Set work done in a time against what the machine's matrix product does."""
    rate = gflop / milliseconds * 1e3
    return {"gflop": gflop, "gflops": rate, "peak_share": rate / survey["matmul_gflops"]}
