"""Which measurements of the engine are made, in which order, and the rows they become.

Parity comes first: a backend that does not give what `eager` gives on the CPU is not timed. Every
row then runs in a new process. The default configuration comes first among them.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from magicfuse_ros.resources import model_path, sample_video
from magicfuse_ros.sources.source import Source, open_source

CACHE_VARIABLE = "XDG_CACHE_HOME"
"""Environment variable of the folder under which compiled artifacts are kept."""

Size = tuple[int, int]
"""(width, height) in pixels."""

VGA, HD = (640, 480), (1280, 720)
RESOLUTIONS: tuple[Size, ...] = ((160, 120), (320, 240), VGA, HD)
STEPS = (1, 2, 4, 8, 25)
REFERENCE_STEPS = 25
PICTURES_HZ = 10.0

_MODULE = "magicfuse_ros.evaluation.benchmark.measurements"
_POLL_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """One run of the benchmark, as its two levels, engine and node, need it."""

    settings: Mapping[str, Any]  # `model`, `device`, `threads`, as of `EngineSettings` and the node
    quick: bool  # measures little, for a few frames only
    folder: Path  # for pictures, results and logs, and in its `cache` for compiled artifacts
    stop: threading.Event  # ends the measurement under way with `KeyboardInterrupt`
    show: Callable[[str], None]  # told what is being measured
    errors: list[str]  # takes what could not be measured, and why

    def pictures(self, size: Size, count: int) -> Source:
        """Return the first frames of the sample video, at ten a second in this size."""
        source = open_source(sample_video()).at_rate(PICTURES_HZ).of_size(size)
        return replace(source, frames=lambda _=0: itertools.islice(source.frames(), count))

    def measure(
        self, what: str, job: str, *, cache: str = "cache", **arguments: Any
    ) -> dict[str, Any]:
        """Do a job of `measurements.JOBS` in a new process and return its result.

        `what` says in words what it measures. The result is empty if it failed. `cache` names a
        folder in `folder` for compiled artifacts.
        """
        self.show(f"engine: {what}")
        result, log = self.folder / "result.json", self.folder / "measurement.log"
        told = json.dumps({"job": job, **arguments})
        with (
            log.open("wb") as output,
            subprocess.Popen(  # noqa: S603 - our own command, no shell
                [sys.executable, "-m", _MODULE, str(result), told],
                env=os.environ | {CACHE_VARIABLE: str(self.folder / cache)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            ) as process,
        ):
            try:
                while process.poll() is None:
                    if self.stop.wait(_POLL_S):
                        raise KeyboardInterrupt
            finally:
                process.kill()
        if process.returncode:
            words = log.read_text(encoding="utf-8", errors="replace").strip() or "it said nothing"
            last = words.splitlines()[-1].strip()
            self.errors.append(f"{what}: it ended with status {process.returncode}: {last}")
            return {}
        found: dict[str, Any] = json.loads(result.read_text(encoding="ascii"))
        return found


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
        order = ", in turn" if self.parallel == "off" else ""
        return f"{self.backend}, {self.steps} steps at {width}x{height}{order}"


def survey(model: str, device: str) -> dict[str, Any]:
    """Find out what can be measured with a model and a device, as in `EngineSettings`.

    Raises EngineError, ValueError or OSError if the device cannot be had, or the model cannot be
    read.
    """
    import torch

    from magicfuse_ros.model.checkpoint import read_config, read_labels
    from magicfuse_ros.runtime.backends import candidates

    found = candidates("auto", device)
    where, folder = found[0].device, model_path(model)
    config = read_config(folder)
    return {
        "model": config.name,
        "trained": config.trained,
        "steps": config.diffusion.steps,
        "resolution": config.resolution,
        "classes": len(read_labels(folder, config)),
        "backends": [each.name for each in found if each.device == where],
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else str(where),
    }


def plan(survey: Mapping[str, Any], *, quick: bool) -> list[Case]:
    """List the configurations to measure; the one that runs by default comes first.

    Every backend is measured with each number of steps at the model's own resolution, and at each
    resolution with the model's own steps. Two rows exist for the claims: the default with Ψ and Φ
    in turn, and the reference, `eager` in turn with `REFERENCE_STEPS` steps. A quick run has only
    the default and the reference. `survey` is what the function of that name found.
    """
    own, steps, best = survey["resolution"], survey["steps"], survey["backends"][0]
    default, reference = Case(best, steps, own), Case("eager", REFERENCE_STEPS, own, "off")
    if quick:
        return [default, reference]
    cases = [default, Case(best, steps, own, "off")]
    for backend in survey["backends"]:
        parallel = "off" if backend == "eager" else "auto"
        cases += [Case(backend, count, own, parallel) for count in (steps, *STEPS)]
        cases += [Case(backend, steps, size, parallel) for size in RESOLUTIONS]
    return list(dict.fromkeys((*cases, reference)))


def run_engine(run: Benchmark) -> dict[str, Any]:
    """Measure everything of the engine.

    Raises EngineError, ValueError or OSError if not even the model or the device can be had.
    """
    effort: dict[str, Any] = {"seconds": 8.0, "least": 5}
    if run.quick:
        effort = {"seconds": 0.0, "least": 3}

    def of(case: Case) -> dict[str, Any]:
        frames = run.folder / f"frames_{case.camera[0]}x{case.camera[1]}.npy"
        if not frames.exists():
            source = run.pictures(case.camera, 8)
            np.save(frames, [each.rgb for each in source.frames() if each.rgb is not None])
        return {"settings": {**run.settings, **case._asdict()}, "frames": str(frames)}

    def timed(case: Case, what: str = "", **how: Any) -> dict[str, Any]:
        job = of(case) | effort | how
        return run.measure(f"{what}{case}", "engine", spawned=time.time(), **job)

    run.show("engine: surveying the model and the machine")
    found = survey(run.settings["model"], run.settings["device"])
    parity: dict[str, dict[str, Any]] = {}
    for backend in found["backends"]:
        if (backend, found["device"]) != ("eager", "cpu"):  # with which the others are compared
            case = Case(backend, found["steps"], found["resolution"])
            parity[backend] = run.measure(f"parity of {backend}", "parity", **of(case))
    able = [backend for backend in found["backends"] if parity.get(backend, True)]
    cases = [case for case in plan(found, quick=run.quick) if case.backend in able]
    cold = {}
    if cases and not run.quick:
        cold = timed(cases[0], "cold start of ", seconds=0.0, least=0, cache="cold_cache")
    rows = [case._asdict() | timed(case) for case in cases]
    if rows:
        rows[0]["cold_start_s"] = cold.get("start_s")
    peers = []
    for backend in able[:1] if run.quick else able:
        job = {"settings": {**run.settings, "backend": backend}, "classes": found["classes"]}
        row = {"backend": backend, "resolution": found["resolution"]}
        what = f"SegFormer-B0 on {backend}"
        peers.append(row | run.measure(what, "peer", size=found["resolution"], **job, **effort))
    return {
        "survey": found,
        "parity": parity,
        "engine": [row for row in rows if "ms" in row],
        "peers": [row for row in peers if "ms" in row],
    }
