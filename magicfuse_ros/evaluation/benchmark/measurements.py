"""The engine's measurements, each made in a process of its own so that none warms another.

`python -m magicfuse_ros.evaluation.benchmark.measurements JOB` makes one: JOB is a JSON object
`{"job": name, ...arguments}`. It writes one line of JSON to stdout, which is the result or
`{"error": why}`. `engine_runs.measure` does that from outside.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from magicfuse_ros.evaluation.benchmark.engine_runs import Case
from magicfuse_ros.evaluation.benchmark.machine import load, usage
from magicfuse_ros.messages import one_line

if TYPE_CHECKING:
    import torch

    from magicfuse_ros.model.magicfuse import MagicFuse
    from magicfuse_ros.runtime.engine import FuseEngine

UNCOUNTED = 2
"""Frames before those that count: caches fill and memory is taken."""
NETWORK_STAGES = ("encode", "denoise", "fuse", "decode")
"""Stages of a frame in which networks run."""

_MATMUL_SIDE, _MATMUL_S = 2048, 1.0


def survey(
    *, model: str, device: str, threads: int, resolutions: list[tuple[int, int]]
) -> dict[str, Any]:
    """Find out what can be measured: the model, the backends, the work of a frame, the peak rate.

    Parameters
    ----------
    model, device, threads
        As in `EngineSettings`.
    resolutions
        (width, height) of what is to be measured beside the model's own resolution.

    Returns
    -------
    Among other things `work`: for each resolution, as `320x240`, the networks' `input` (width,
    height), and in 10^9 operations what a frame costs `once`, for each `step`, and what the `peer`
    SegFormer-B0 costs.
    """
    import torch

    from magicfuse_ros.evaluation.segformer import segformer_b0
    from magicfuse_ros.model.checkpoint import read_config, read_labels
    from magicfuse_ros.model.magicfuse import MagicFuse
    from magicfuse_ros.resources import model_path
    from magicfuse_ros.runtime.backends import candidates
    from magicfuse_ros.runtime.letterbox import Letterbox

    if threads:
        torch.set_num_threads(threads)
    found = candidates("auto", device)
    where = found[0].device
    folder = model_path(model)
    config = read_config(folder)
    labels = read_labels(folder, config)
    with torch.device("meta"):
        network = MagicFuse(config, labels).eval()
        peer = segformer_b0(len(labels))
    work = {}
    for width, height in dict.fromkeys((config.resolution, *map(tuple, resolutions))):
        camera = Case("auto", 1, (width, height)).camera
        size = Letterbox.fitting(camera[::-1], (width, height), config.multiple_of).padded
        one, two = (frame_gflop(network, size, steps) for steps in (1, 2))
        image = torch.empty((1, 3, *size), device="meta")
        work[f"{width}x{height}"] = {
            "input": [size[1], size[0]],
            "once": 2 * one - two,
            "step": two - one,
            "peer": _gflop(partial(peer, image)),
        }
    return {
        "model": config.name,
        "trained": config.trained,
        "steps": config.diffusion.steps,
        "resolution": list(config.resolution),
        "classes": len(labels),
        "backends": [each.name for each in found if each.device == where],
        "device": str(where),
        "device_name": torch.cuda.get_device_name(where) if where.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "matmul_gflops": _matmul_gflops(where),
        "work": work,
    }


def parity(*, settings: dict[str, Any], frames: str) -> dict[str, Any]:
    """Compare what a backend makes of frames with what `eager` makes of them on the CPU."""
    pictures = np.load(frames)
    outcomes = []
    for chosen in (settings | {"backend": "eager", "device": "cpu"}, settings):
        it = _ready(chosen)
        outcomes.append([it.fuse(picture) for picture in pictures])
        it.close()
    pairs = list(zip(*outcomes, strict=True))
    apart = [np.abs(a.magimg.astype(np.int16) - b.magimg).mean() for a, b in pairs]
    return {
        "magimg_mean": float(np.mean(apart)),
        "mask_agreement": float(np.mean([(a.mask == b.mask).mean() for a, b in pairs])),
    }


def engine(
    *, settings: dict[str, Any], frames: str, seconds: float, least: int, spawned: float
) -> dict[str, Any]:
    """Load an engine and fuse frames one after the other: start-up, times and memory.

    Parameters
    ----------
    settings
        Of `EngineSettings`.
    frames
        .npy file of (N, H, W, 3) uint8 camera frames.
    seconds, least
        How long to go on, and how many frames to fuse even if that takes longer. With 0 and 0 only
        the start is measured.
    spawned
        `time.time()` when this process was asked for.
    """
    import torch

    import magicfuse_ros.runtime.engine  # noqa: F401 - part of the start, told apart

    pictures = np.load(frames)
    times = {"import": time.time()}
    it = _ready(settings)
    times["warm_up"] = time.time()
    it.fuse(pictures[0])
    times["first_frame"] = time.time()
    if settings["backend"] not in ("auto", it.backend_name.partition(" ")[0]):
        raise RuntimeError(f"it failed and fell back to {it.backend_name}")
    start_s, before = {"total": times["first_frame"] - spawned}, spawned
    for name, at in times.items():
        start_s[name], before = at - before, at
    row: dict[str, Any] = {
        "backend": it.backend_name,
        "side_by_side": it.side_by_side,
        "threads": torch.get_num_threads(),
        "start_s": start_s,
    }
    if least:
        stages: list[dict[str, float]] = []
        row |= _timed(
            lambda: stages.append(it.fuse(pictures[len(stages) % len(pictures)]).stage_ms),
            seconds,
            least,
        )
        counted = stages[UNCOUNTED:]
        row["stage_ms"] = {
            name: float(np.median([stage[name] for stage in counted])) for name in counted[0]
        }
        network_ms = [sum(stage[name] for name in NETWORK_STAGES) for stage in counted]
        row["network_ms"] = float(np.median(network_ms))
        if it.backend_name.partition(" on ")[2].startswith("cuda"):
            row["device_memory_mb"] = torch.cuda.max_memory_allocated() / 2**20
    it.close()
    return row


def peer(
    *,
    backend: str,
    device: str,
    threads: int,
    classes: int,
    size: tuple[int, int],
    seconds: float,
    least: int,
) -> dict[str, Any]:
    """Time SegFormer-B0 on a backend: the network alone, from image tensor to logits.

    Parameters
    ----------
    backend, device, threads
        As in `EngineSettings`.
    classes
        How many classes it tells apart.
    size
        (width, height) of its input.
    seconds, least
        As for `engine`.
    """
    import torch

    from magicfuse_ros.evaluation.segformer import segformer_b0
    from magicfuse_ros.runtime.backends import Part, candidates

    if threads:
        torch.set_num_threads(threads)
    chosen = candidates(backend, device)[0]
    width, height = size
    image = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0))
    image = image.to(chosen.device).contiguous(memory_format=torch.channels_last)
    made = chosen.make(threads)
    network = made.compile(Part("segformer-b0", segformer_b0(classes), (image,)), _tell)

    def once() -> None:
        network(image)
        _wait(chosen.device)

    with torch.inference_mode():
        row = _timed(once, seconds, least)
    made.close()
    return {"backend": str(chosen), "threads": torch.get_num_threads(), **row}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "survey": survey,
    "parity": parity,
    "engine": engine,
    "peer": peer,
}
"""Name of a job → the function that does it."""


def frame_gflop(network: MagicFuse, size: tuple[int, int], steps: int) -> float:
    """Count the work of a frame of (height, width): E, the sampling steps, and D once.

    Returns
    -------
    Multiplications and additions of convolutions and matrix products (two a pair), in 10^9.
    """
    import torch

    from magicfuse_ros.model.sampler import SamplerSettings, sample

    config = network.config
    noise = network.draw_noise(*size, torch.Generator())
    noise = type(noise)(*(drawn.to("meta") for drawn in noise))
    drawn = network.draw_encoder_noise(*size, torch.Generator())
    encoder_noise = None if drawn is None else drawn.to("meta")
    settings = SamplerSettings.of(config, network.labels.thermal_ids(), steps=steps)

    def frame() -> None:
        image = torch.empty((1, 3, *size), device="meta")
        condition = network.encoder(image, encoder_noise)
        network.decoder(sample(network, condition, noise, config, settings).z0_fused)

    return _gflop(frame)


def summary(times_ms: list[float]) -> dict[str, Any]:
    """Return what the tables show of a list of times, in milliseconds."""
    p50, p95 = np.percentile(times_ms, (50.0, 95.0))
    mean = float(np.mean(times_ms))
    return {
        "frames": len(times_ms),
        "ms": {"p50": float(p50), "p95": float(p95), "mean": mean, "max": max(times_ms)},
        "fps": 1e3 / mean,
    }


def _timed(once: Callable[[], object], seconds: float, least: int) -> dict[str, Any]:
    times = _repeat(once, seconds, least)
    now = usage()
    memory = {"steady": now.memory_mb, "peak": now.peak_mb}
    return {**summary(times), "memory_mb": memory, "load": load()}


def _repeat(once: Callable[[], object], seconds: float, least: int) -> list[float]:
    for _ in range(UNCOUNTED):
        once()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        once()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _gflop(work: Callable[[], object]) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        work()
    return counter.get_total_flops() / 1e9


def _matmul_gflops(device: torch.device) -> float:
    """Measure the best rate of a large fp32 matrix product, in 10^9 operations a second."""
    import torch

    a, b = (torch.rand((_MATMUL_SIDE, _MATMUL_SIDE), device=device) for _ in range(2))
    out = torch.empty_like(a)

    def once() -> None:
        torch.mm(a, b, out=out)
        _wait(device)

    best_ms = min(_repeat(once, _MATMUL_S, 3))
    return 2.0 * _MATMUL_SIDE**3 / best_ms / 1e6


def _wait(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ready(settings: dict[str, Any]) -> FuseEngine:
    from magicfuse_ros.runtime.engine import EngineSettings, load_engine

    resolution = tuple(settings["resolution"])  # a list, as it came as JSON
    it = load_engine(EngineSettings(**settings | {"resolution": resolution}), _tell)
    it.warm_up(_tell)
    return it


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - shown if the process dies


def main(argv: list[str]) -> int:
    """Do the job of the command line; what goes wrong with it is its answer."""
    # Libraries that print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    job = json.loads(argv[0])
    name = job.pop("job")
    try:
        if name not in JOBS:
            raise ValueError(f"unknown; accepted: {', '.join(JOBS)}")  # noqa: TRY301
        answer = JOBS[name](**job)
    except Exception as error:  # noqa: BLE001 - a backend may raise anything; the row says it
        traceback.print_exc()
        answer = {"error": one_line(error)}
    answers.write(json.dumps(answer) + "\n")
    answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
