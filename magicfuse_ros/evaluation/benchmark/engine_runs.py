"""Which measurements of the engine are made, in which order, and the rows they become.

Parity comes first: a backend that does not give what `eager` gives on the CPU is not timed. Every
row then runs in a new process. The default configuration comes first among them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError

CACHE_VARIABLE = "XDG_CACHE_HOME"
"""Environment variable of the folder under which compiled artifacts are kept."""

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

_MODULE = "magicfuse_ros.evaluation.benchmark.measurements"
_POLL_S = 0.1


class Case(NamedTuple):
    """One configuration of the engine; fields as in `EngineSettings`."""

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
        return f"{self.backend}, {self.steps} steps at {width}x{height}"


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
    default, reference = Case("auto", steps, own), Case("eager", REFERENCE_STEPS, own, "off")
    if quick:
        return [default, reference]
    cases = [default, Case(best, steps, own, "off")]
    for backend in survey["backends"]:
        parallel = "off" if backend == "eager" else "auto"
        cases += [Case(backend, count, own, parallel) for count in dict.fromkeys((steps, *STEPS))]
        cases += [Case(backend, steps, size, parallel) for size in RESOLUTIONS if size != own]
    # The default is measured as `auto`.
    return [case for case in dict.fromkeys((*cases, reference)) if case != (best, *default[1:])]


def measure(
    job: str, folder: Path, check: Callable[[], None], *, cache: str = "cache", **arguments: Any
) -> dict[str, Any]:
    """Do one job in a new process and return its result.

    Parameters
    ----------
    job
        A key of `measurements.JOBS`; `arguments` are those of its function.
    folder
        Takes what the process says on stderr.
    check
        Called ten times a second meanwhile; what it raises ends the process.
    cache
        Name of a folder in `folder` for compiled artifacts.

    Raises
    ------
    BenchmarkError
        The job failed; the text says why.
    """
    log = folder / "stderr.log"
    (folder / cache).mkdir(exist_ok=True)
    with log.open("wb") as stderr:
        process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            [sys.executable, "-m", _MODULE, json.dumps({"job": job, **arguments})],
            env=os.environ | {CACHE_VARIABLE: str(folder / cache)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            start_new_session=True,
        )
    with process:
        try:
            while True:
                check()
                try:
                    answer = process.communicate(timeout=_POLL_S)[0]
                    break
                except subprocess.TimeoutExpired:
                    continue
        finally:
            process.kill()
    if not answer:
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
        last = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        raise BenchmarkError(f"{job} ended with status {process.returncode}: {last}")
    result: dict[str, Any] = json.loads(answer)
    if "error" in result:
        raise BenchmarkError(f"{job}: {result['error']}")
    return result


@dataclass(frozen=True, kw_only=True)
class EngineRuns:
    """The engine's half of the benchmark.

    Attributes
    ----------
    settings
        `model`, `device` and `threads`, as in `EngineSettings`.
    quick
        Measure little, for a few frames only.
    frames
        Camera size → .npy file of its frames.
    show
        Called with a line of text on what is being measured.
    measure
        Makes one measurement: `measure` with its folder and check given.
    """

    settings: Mapping[str, Any]
    quick: bool
    frames: Callable[[Size], Path]
    show: Callable[[str], None]
    measure: Callable[..., dict[str, Any]]

    def run(self) -> dict[str, Any]:
        """Measure everything; what fails is a row whose `error` says why.

        Raises
        ------
        BenchmarkError
            Not even the model or the device can be had.
        """
        self.show("engine: surveying the model and the machine")
        resolutions = () if self.quick else RESOLUTIONS
        survey = self.measure("survey", resolutions=resolutions, **self.settings)
        best = survey["backends"][0]
        parity = [
            self._parity(backend, survey)
            for backend in survey["backends"]
            if backend != "eager" or survey["device"] != "cpu"
        ]
        refused = {row["asked"] for row in parity if not row["passed"]}
        engine: list[dict[str, Any]] = []
        for case in plan(survey, quick=self.quick):
            if (best if case.backend == "auto" else case.backend) in refused:
                continue
            cold = {}
            if not (engine or self.quick):
                cold = self._engine(case, seconds=0.0, least=0, cache="cold_cache")
            row = self._engine(case, **self._effort)
            if "error" not in row:
                row |= _against_peak(row, case, survey)
            engine.append(row | ({"cold_start_s": cold.get("start_s")} if cold else {}))
        backends = survey["backends"][:1] if self.quick else survey["backends"]
        peers = [self._peer(each, survey) for each in backends if each not in refused]
        return {"survey": survey, "parity": parity, "engine": engine, "peers": peers}

    @property
    def _effort(self) -> dict[str, Any]:
        """How long a row fuses, and the frames it fuses even if that takes longer."""
        return {"seconds": 0.0, "least": 3} if self.quick else {"seconds": 8.0, "least": 5}

    def _parity(self, backend: str, survey: Mapping[str, Any]) -> dict[str, Any]:
        """Compare a backend with `eager` on the CPU, before anything is timed."""
        self.show(f"engine: parity of {backend} on {survey['device']}")
        width, height = survey["resolution"]
        row = self._try("parity", Case(backend, survey["steps"], (width, height)))
        close = row.get("magimg_mean", inf) <= MAGIMG_TOLERANCE
        return row | {"passed": close and row["mask_agreement"] >= MASK_TOLERANCE}

    def _engine(self, case: Case, **arguments: Any) -> dict[str, Any]:
        self.show(f"engine: {case}")
        return self._try("engine", case, spawned=time.time(), **arguments)

    def _try(self, job: str, case: Case, **arguments: Any) -> dict[str, Any]:
        """Make a measurement of a configuration; a row of what it is and what came of it."""
        row = {
            "asked": case.backend,
            "steps": case.steps,
            "resolution": list(case.resolution),
            "camera": list(case.camera),
            "parallel": case.parallel,
        }
        settings = {**self.settings, **case._asdict()}
        frames = str(self.frames(case.camera))
        try:
            return row | self.measure(job, settings=settings, frames=frames, **arguments)
        except BenchmarkError as error:
            return row | {"error": str(error)}

    def _peer(self, backend: str, survey: Mapping[str, Any]) -> dict[str, Any]:
        """Time SegFormer-B0 on a backend, on an input of the model's own size."""
        work = survey["work"]["x".join(map(str, survey["resolution"]))]
        row = {"asked": backend, "resolution": work["input"]}
        self.show(f"engine: SegFormer-B0 on {backend}")
        machine = {name: self.settings[name] for name in ("device", "threads")}
        wanted = {"classes": survey["classes"], "size": work["input"]}
        try:
            row |= self.measure("peer", backend=backend, **machine, **wanted, **self._effort)
        except BenchmarkError as error:
            return row | {"error": str(error)}
        return row | _rates(work["peer"], row["ms"]["p50"], survey)


def _against_peak(row: Mapping[str, Any], case: Case, survey: Mapping[str, Any]) -> dict[str, Any]:
    """Set a frame's work, E + steps · (Ψ + Φ + F & S) + D, against what the machine could do."""
    work = survey["work"][f"{case.resolution[0]}x{case.resolution[1]}"]
    gflop = work["once"] + case.steps * work["step"]
    return {"input": work["input"]} | _rates(gflop, row["network_ms"], survey)


def _rates(gflop: float, milliseconds: float, survey: Mapping[str, Any]) -> dict[str, float]:
    rate = gflop / milliseconds * 1e3
    return {"gflop": gflop, "gflops": rate, "peak_share": rate / survey["matmul_gflops"]}
