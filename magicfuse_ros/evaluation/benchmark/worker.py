"""The benchmark's measurements, made in a process of its own so that none warms or fills another.

`python -m magicfuse_ros.evaluation.benchmark.worker` reads jobs from stdin, one a line as JSON,
`{"job": name, ...arguments}`, and answers each with a line of JSON on stdout: its result, or
`{"error": why}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.evaluation.benchmark.machine import load, usage
from magicfuse_ros.evaluation.benchmark.plan import Size, camera_of

if TYPE_CHECKING:
    import torch

    from magicfuse_ros.model.magicfuse import MagicFuse
    from magicfuse_ros.runtime.backends import Candidate
    from magicfuse_ros.runtime.engine import FuseEngine

UNCOUNTED = 2
"""Frames before those that count: caches fill, memory is taken."""
NETWORK_STAGES = ("encode", "denoise", "fuse", "decode")
_MATMUL_SIDE = 2048
_MATMUL_S = 2.0


def survey(*, model: str, device: str, threads: int, resolutions: list[Size]) -> dict[str, Any]:
    """Say what can be measured here: the model and its work, the backends, the machine's peak.

    Parameters
    ----------
    model, device, threads
        As in `EngineSettings`.
    resolutions
        What is to be measured besides the model's own resolution, which comes first in `inputs`.
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
    inputs = []
    for resolution in (config.resolution, *resolutions):
        width, height = camera_of((resolution[0], resolution[1]))
        camera, within = (height, width), (resolution[0], resolution[1])
        size = Letterbox.fitting(camera, within, config.multiple_of).padded
        work = part_gflop(network, size)
        work["segformer-b0"] = _gflop(peer, torch.empty((1, 3, *size), device="meta"))
        inputs.append({"input": [size[1], size[0]], "gflop": work})
    return {
        "model": config.name,
        "trained": config.trained,
        "steps": config.diffusion.steps,
        "resolution": list(config.resolution),
        "classes": len(labels),
        "sides": {each.name: _sides(each, threads) for each in found if each.device == where},
        "backends": [each.name for each in found if each.device == where],
        "device": str(where),
        "device_name": torch.cuda.get_device_name(where) if where.type == "cuda" else "",
        "threads": torch.get_num_threads(),
        "matmul_gflops": _matmul_gflops(where),
        "inputs": inputs,
    }


def engine(
    *,
    settings: dict[str, Any],
    frames: str,
    seconds: float,
    least: int,
    spawned: float,
) -> dict[str, Any]:
    """Load an engine and fuse frames one after the other: start-up, times, memory.

    Parameters
    ----------
    settings
        Of `EngineSettings`.
    frames
        .npy file of (N, H, W, 3) uint8 camera frames.
    seconds, least
        How long to go on, and the frames to fuse even if that takes longer. 0 and 0 measure only
        the start.
    spawned
        `time.time()` when this process was asked for.
    """
    pictures = np.load(frames)
    from magicfuse_ros.runtime.engine import EngineSettings, load_engine

    times = {"import": time.time()}
    wanted = EngineSettings(**_plain(settings))
    it = load_engine(wanted, _tell)
    times["load"] = time.time()
    it.warm_up(_tell)
    times["warm_up"] = time.time()
    it.fuse(pictures[0])
    times["first_frame"] = time.time()
    if wanted.backend not in ("auto", it.backend_name.partition(" ")[0]):
        raise RuntimeError(f"backend {wanted.backend} failed and fell back to {it.backend_name}")
    start_s, before = {"total": times["first_frame"] - spawned}, spawned
    for name, at in times.items():
        start_s[name], before = at - before, at
    result: dict[str, Any] = {
        "backend": it.backend_name,
        "side_by_side": it.side_by_side,
        "start_s": start_s,
    }
    if least:
        result |= _fuse_on(it, pictures, seconds, least)
    it.close()
    return result


def segformer(
    *,
    backend: str,
    device: str,
    threads: int,
    classes: int,
    size: Size,
    seconds: float,
    least: int,
) -> dict[str, Any]:
    """Time SegFormer-B0 on a backend: the network alone, from image tensor to logits.

    Parameters
    ----------
    backend, device, threads
        As in `EngineSettings`.
    classes
        Classes it tells apart.
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
    where = chosen.device
    width, height = size
    image = torch.rand((1, 3, height, width), generator=torch.Generator().manual_seed(0)).to(where)
    image = image.contiguous(memory_format=torch.channels_last)
    made = chosen.make(threads)
    network = made.compile(Part("segformer-b0", segformer_b0(classes), (image,)), _tell)

    def once() -> None:
        network(image)
        _wait(where)

    with torch.inference_mode():
        times = _repeat(once, seconds, least)
    result = {
        "backend": str(chosen),
        "threads": torch.get_num_threads(),
        "memory_mb": _memory(),
        "load": load(),
        **summary(times),
    }
    made.close()
    return result


def parity(*, settings: dict[str, Any], frames: str) -> dict[str, Any]:
    """Compare what a backend makes of frames with what `eager` makes of them on the CPU."""
    from magicfuse_ros.runtime.engine import EngineSettings, load_engine

    pictures = np.load(frames)
    plain = _plain(settings)
    outcomes = []
    for chosen in (plain | {"backend": "eager", "device": "cpu"}, plain):
        it = load_engine(EngineSettings(**chosen), _tell)
        it.warm_up(_tell)
        outcomes.append((it.backend_name, [it.fuse(picture) for picture in pictures]))
        it.close()
    (_, references), (name, results) = outcomes
    pairs = list(zip(references, results, strict=True))
    return {
        "backend": name,
        "frames": len(pairs),
        "magimg_mean": float(np.mean([_apart(a.magimg, b.magimg).mean() for a, b in pairs])),
        "magimg_max": int(max(_apart(a.magimg, b.magimg).max() for a, b in pairs)),
        "confidence_max": int(max(_apart(a.confidence, b.confidence).max() for a, b in pairs)),
        "mask_agreement": float(np.mean([(a.mask == b.mask).mean() for a, b in pairs])),
    }


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "survey": survey,
    "engine": engine,
    "segformer": segformer,
    "parity": parity,
}
"""Job → what does it."""


def part_gflop(network: MagicFuse, size: tuple[int, int]) -> dict[str, float]:
    """Count a model's work by part for images of (height, width), in 10^9 operations.

    Multiplications and additions of convolutions and matrix products, two a pair; a part counts
    once, however often a frame runs it.
    """
    import torch

    image = torch.empty((1, 3, *size), device="meta")
    latent, state = (drawn.to("meta") for drawn in network.draw_noise(*size, torch.Generator()))
    noise = network.draw_encoder_noise(*size, torch.Generator())
    noises = () if noise is None else (noise.to("meta"),)
    t = torch.zeros(1, device="meta")
    return {
        "encoder": _gflop(network.encoder, image, *noises),
        "psi": _gflop(network.psi, latent, latent, t),
        "phi": _gflop(network.phi, latent, latent, t),
        "fusion": _gflop(network.fusion, *(latent,) * 5, state, t),
        "decoder": _gflop(network.decoder, latent),
    }


def summary(times_ms: list[float]) -> dict[str, Any]:
    """Return what the tables show of a list of times, in milliseconds."""
    p50, p95 = np.percentile(times_ms, (50.0, 95.0))
    return {
        "frames": len(times_ms),
        "ms": {
            "p50": float(p50),
            "p95": float(p95),
            "mean": float(np.mean(times_ms)),
            "min": min(times_ms),
            "max": max(times_ms),
        },
        "fps": 1e3 / float(np.mean(times_ms)),
    }


def _fuse_on(
    it: FuseEngine, pictures: NDArray[np.uint8], seconds: float, least: int
) -> dict[str, Any]:
    import torch

    stages: list[dict[str, float]] = []

    def once() -> None:
        # The engine's own thread of work: resize, networks, colour and masks, as a node calls it.
        stages.append(it.fuse(pictures[len(stages) % len(pictures)]).stage_ms)

    times = _repeat(once, seconds, least)
    del stages[:UNCOUNTED]
    on_gpu = it.backend_name.partition(" on ")[2].startswith("cuda")
    return {
        **summary(times),
        "stage_ms": {
            name: float(np.median([stage[name] for stage in stages])) for name in stages[0]
        },
        "network_ms": float(
            np.median([sum(stage[name] for name in NETWORK_STAGES) for stage in stages])
        ),
        "threads": torch.get_num_threads(),
        "memory_mb": _memory(),
        "device_memory_mb": torch.cuda.max_memory_allocated() / 2**20 if on_gpu else None,
        "load": load(),
    }


def _repeat(once: Callable[[], None], seconds: float, least: int) -> list[float]:
    for _ in range(UNCOUNTED):
        once()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        once()
        times.append((time.perf_counter() - start) * 1e3)
    return times


def _memory() -> dict[str, float]:
    now = usage()
    return {"steady": now.memory_mb, "peak": now.peak_mb}


def _gflop(module: Any, *inputs: Any) -> float:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        module(*inputs)
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


def _sides(candidate: Candidate, threads: int) -> list[str]:
    """Say which settings of `parallel` differ on a backend: some run networks in turn only."""
    made = candidate.make(threads)
    sides = ["off", "on"] if made.side_by_side else ["off"]
    made.close()
    return sides


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Undo what JSON did to the resolution."""
    return settings | {"resolution": tuple(settings["resolution"])}


def _apart(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.int16]:
    return np.abs(a.astype(np.int16) - b.astype(np.int16))


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201 - the parent shows the last line


def main() -> int:
    """Do the jobs on stdin, a line each; what goes wrong with one is its answer."""
    # Libraries that print must not get between the answers.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        job = json.loads(line)
        try:
            answer = JOBS[job.pop("job")](**job)
        except Exception as error:  # noqa: BLE001 - a backend may raise anything; the row says it
            traceback.print_exc()
            answer = {"error": " ".join(str(error).split()) or type(error).__name__}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
