"""The engine's measurements, each made in a process of its own so that none warms another.

`python -m magicfuse_ros.evaluation.benchmark.measurements FILE JOB` makes one: JOB is a JSON object
`{"job": name, ...arguments}`, and FILE takes the result as JSON. Where it fails, the last line that
it prints says why. `engine_runs.measure` does that from outside. In all of them `settings` are
those of `EngineSettings`, and `frames` is an .npy file of (N, H, W, 3) uint8 camera frames.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from magicfuse_ros.evaluation.benchmark.machine import usage
from magicfuse_ros.messages import one_line

if TYPE_CHECKING:
    from magicfuse_ros.runtime.engine import FuseEngine

UNCOUNTED = 2
"""Frames before those that count: caches fill and memory is taken."""
MAGIMG_TOLERANCE = 1.0
"""Parity: mean difference of MagImgs that is accepted, in grey levels of 255."""
MASK_TOLERANCE = 0.98
"""Parity: share of pixels whose class must be the same."""


def parity(*, settings: dict[str, Any], frames: str) -> dict[str, Any]:
    """Compare what a backend makes of frames with what `eager` makes of them on the CPU.

    Returns what `compare` does; raises RuntimeError if they are further apart than the tolerances.
    """
    pictures = np.load(frames)
    outcomes = []
    for chosen in (settings | {"backend": "eager", "device": "cpu"}, settings):
        with closing(_ready(chosen)) as it:
            outcomes.append([it.fuse(picture) for picture in pictures])
    found, agree = compare(zip(*outcomes, strict=True))
    if not agree:
        raise RuntimeError(
            "too far from eager on the CPU, not timed: MagImg differs by "
            f"{found['magimg_mean']:.2f} grey levels, the mask agrees on "
            f"{100.0 * found['mask_agreement']:.1f} %"
        )
    return found


def compare(pairs: Iterable[tuple[Any, Any]]) -> tuple[dict[str, float], bool]:
    """Say how far apart two makers of the same pictures are, and whether that is accepted.

    Each of a pair has a `magimg` (H, W, 3) uint8 and a `mask` (H, W) uint8. `magimg_mean` is the
    mean difference of the first in grey levels of 255, and `mask_agreement` the share of pixels
    whose class is the same.
    """
    two = list(pairs)
    apart = float(np.mean([np.abs(a.magimg.astype(np.int16) - b.magimg).mean() for a, b in two]))
    agreement = float(np.mean([(a.mask == b.mask).mean() for a, b in two]))
    accepted = apart <= MAGIMG_TOLERANCE and agreement >= MASK_TOLERANCE
    return {"magimg_mean": apart, "mask_agreement": agreement}, accepted


def engine(
    *, settings: dict[str, Any], frames: str, seconds: float, least: int, spawned: float
) -> dict[str, Any]:
    """Load an engine and fuse frames one after the other: start-up, times and memory.

    It goes on for so many `seconds`, and for `least` frames at least; with 0 and 0 only the start
    is measured, from `spawned`, the `time.time()` when this process was asked for.
    """
    pictures = np.load(frames)
    with closing(_ready(settings)) as it:
        it.fuse(pictures[0])
        row: dict[str, Any] = {"start_s": time.time() - spawned}
        if it.backend_name.partition(" ")[0] != settings["backend"]:
            raise RuntimeError(f"it failed and fell back to {it.backend_name}")
        if it.parts_warning:  # its time would be that of two backends
            raise RuntimeError(it.parts_warning)
        if least:
            stages: list[dict[str, float]] = []

            def once() -> None:
                stages.append(it.fuse(pictures[len(stages) % len(pictures)]).stage_ms)

            row |= {"side_by_side": it.side_by_side} | timed(once, seconds, least)
            row["stage_ms"] = {
                name: float(np.median([stage[name] for stage in stages[UNCOUNTED:]]))
                for name in stages[0]
            }
        return row


def peer(
    *, settings: dict[str, Any], classes: int, size: tuple[int, int], seconds: float, least: int
) -> dict[str, Any]:
    """Time SegFormer-B0 on a backend: the network alone, from image tensor to logits.

    It tells so many `classes` apart, and its input has this `size`, (width, height). Of the
    settings it takes `backend`, `device` and `threads`.
    """
    import torch

    from magicfuse_ros.evaluation.segformer import segformer_b0
    from magicfuse_ros.runtime.backends import Part, candidates

    threads = settings["threads"]
    if threads:
        torch.set_num_threads(threads)
    chosen = candidates(settings["backend"], settings["device"])[0]
    width, height = size
    image = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0))
    image = image.to(chosen.device).contiguous(memory_format=torch.channels_last)
    with closing(chosen.make(threads)) as made, torch.inference_mode():
        network = made.compile(Part("segformer-b0", segformer_b0(classes), (image,)), _tell)

        def once() -> None:
            network(image)
            if chosen.device.type == "cuda":
                torch.cuda.synchronize(chosen.device)

        return timed(once, seconds, least)


JOBS: dict[str, Callable[..., dict[str, Any]]] = {"parity": parity, "engine": engine, "peer": peer}
"""Name of a job → the function that does it."""


def timed(once: Callable[[], object], seconds: float, least: int) -> dict[str, Any]:
    """Repeat `once`; what the tables show of its times and of what this process uses."""
    import torch

    for _ in range(UNCOUNTED):
        once()
    times_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(times_ms) < least or time.perf_counter() < end:
        start = time.perf_counter()
        once()
        times_ms.append((time.perf_counter() - start) * 1e3)
    p50, p95 = np.percentile(times_ms, (50.0, 95.0))
    now = usage()
    memory_mb = {"steady": now.memory_mb, "peak": now.peak_mb}
    if torch.cuda.is_available():
        memory_mb["gpu_peak"] = torch.cuda.max_memory_allocated() / 2**20
    return {
        "frames": len(times_ms),
        "ms": {"p50": float(p50), "p95": float(p95)},
        "fps": 1e3 / float(np.mean(times_ms)),
        "memory_mb": memory_mb,
        "threads": torch.get_num_threads(),
    }


def _ready(settings: dict[str, Any]) -> FuseEngine:
    from magicfuse_ros.runtime.engine import EngineSettings, load_engine

    resolution = tuple(settings["resolution"])  # a list, as it came as JSON
    it = load_engine(EngineSettings(**settings | {"resolution": resolution}), _tell)
    it.warm_up(_tell)
    return it


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - shown if the process dies


def main(result: str, text: str) -> None:
    """Do the job of the command line; what goes wrong with it is its last word."""
    job = json.loads(text)
    try:
        found = JOBS[job.pop("job")](**job)
    except Exception as error:  # noqa: BLE001 - a backend may raise anything; the page says it
        sys.exit(one_line(error))
    Path(result).write_text(json.dumps(found), encoding="ascii")


if __name__ == "__main__":
    main(*sys.argv[1:])
