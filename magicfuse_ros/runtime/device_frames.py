"""A frame as one piece of work for a GPU: uint8 frame in, uint8 pictures out, one wait at the end.

Copying the frame to the GPU, the model, the pictures at the camera's size and copying them back are
captured as one CUDA graph, with the streams on which networks run side by side. So a frame is one
task for the GPU instead of hundreds, and the CPU waits once. docs/gpu.md says what of it has run on
a GPU; on a CPU, tests run the same function.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.refiner import enlarged
from magicfuse_ros.model.sampler import SamplerSettings, Step
from magicfuse_ros.model.temporal import Memory
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.contract import FuseResult, Progress, UInt8
from magicfuse_ros.runtime.letterbox import Letterbox
from magicfuse_ros.runtime.networks import CompiledNetworks
from magicfuse_ros.runtime.results import NotFinite
from magicfuse_ros.runtime.stopwatch import STAGES, Stopwatch
from magicfuse_ros.runtime.tensor_pictures import TensorPictures

Replay = Callable[[], None]

Capture = Callable[[Callable[[], None], torch.device], Replay]
"""Captures a function that reads and writes tensors in their places; returns what replays it."""

MOST_GRAPHS = 4
"""Graphs kept for one input size: of the ways of asking for frames that came last."""
MOST_STEPS = 50
"""Frames of more steps run without a graph, so that they can be begun anew with fewer."""

_WARM_UPS = 3
"""Runs before a capture, as PyTorch advises: libraries allocate and choose algorithms in them."""


def capture_on_cuda(run: Callable[[], None], device: torch.device) -> Replay:
    """Capture a function on a GPU, with the streams that it forks and joins; see `Capture`."""
    with torch.cuda.device(device):
        caller, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(caller)
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                run()
        caller.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # Other threads may make networks for other sizes during the capture.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            run()
    return graph.replay


class Way(NamedTuple):
    """All that makes one frame's work another than the last one's, besides values of tensors.

    `settings` and `temporal` are as in `Sampling`.
    """

    letterbox: Letterbox
    extras: frozenset[str]
    settings: SamplerSettings
    temporal: float | None


class DeviceFrames:
    """Fuses frames through the networks of one input size. One thread uses it.

    If the work cannot be captured, or the graph gives something else than the work itself, frames
    of this way run without a graph, and `progress` is told. Tests replace what does the capture.
    """

    def __init__(
        self,
        networks: CompiledNetworks,
        device: torch.device,
        progress: Progress,
        capture: Capture = capture_on_cuda,
    ) -> None:
        self._networks, self._device, self._progress = networks, device, progress
        self._capture = capture
        self._works: OrderedDict[Way, _Work] = OrderedDict()
        self._memory = Memory()

    def fuse(self, frame: UInt8, way: Way, seed: int, *, fresh: bool) -> FuseResult:
        """Fuse one frame, (H, W, 3) uint8 RGB.

        The seed is that of the starting noise; with `fresh`, a new stream begins with this frame.

        Raises
        ------
        NotFinite
            The networks gave values that are not finite.
        """
        with self._current():
            self._networks.noise(seed)
            if fresh:
                self._memory.forget()
            work = self._works.get(way)
            if work is None:
                work = _Work(self._networks, way, self._device, self._memory)
                work.put(frame)
                pictures = self._prepared(work)
                self._works[way] = work
            else:
                work.put(frame)
                (work.replay or work.run)()
                pictures = work.pictures()
            self._works.move_to_end(way)
            self._keep(MOST_GRAPHS)
            if not pictures.pop("finite"):
                raise NotFinite
            return FuseResult(**{**_NONE, **pictures}, stage_ms=work.stage_ms())

    def ready(self, way: Way) -> bool:
        """Whether a frame of this way takes no longer than any; the first one makes the graph."""
        return way in self._works

    def close(self) -> None:
        """Let go of graphs and buffers."""
        self._keep(0)

    def _keep(self, count: int) -> None:
        while len(self._works) > count:
            _, work = self._works.popitem(last=False)
            work.replay = None  # which may hold the work, and that its networks, until a collection

    def _prepared(self, work: _Work) -> dict[str, Any]:
        """Return the pictures of a new work's frame; from now on it is a graph, if it can be."""
        before = self._memory.saved()
        work.run()
        wanted = work.pictures()
        if len(work.way.settings.timesteps) > MOST_STEPS:
            return wanted
        after = self._memory.saved()
        self._networks.before_step = _nothing
        try:
            replay = self._captured(work)
            self._memory.restore(before)
            replay()
            found = work.pictures()
            # Not the mask, where a number that is larger by one is another class.
            for name in wanted.keys() - {"finite", "mask"}:
                both = (torch.from_numpy(each[name]) for each in (found, wanted))
                parity.check(f"{name} of the CUDA graph of a frame", *both)
        except Exception as error:  # noqa: BLE001 - CUDA and its libraries may raise anything
            self._progress(f"frames run without a CUDA graph: {one_line(error)}")
            work.timed = True
            self._memory.restore(after)
            return wanted
        work.replay = replay
        return found

    def _captured(self, work: _Work) -> Replay:
        try:
            replay = self._capture(work.run, self._device)
            replay()
            work.pictures()
            work.stage_ms()
        except Exception as error:  # noqa: BLE001 - as above
            # Events with times inside a graph are the newest of what a capture needs.
            self._progress(f"the stages of a frame are not timed: {one_line(error)}")
            work.timed = False
            replay = self._capture(work.run, self._device)
        return replay

    def _current(self) -> AbstractContextManager[Any]:
        return torch.cuda.device(self._device) if self._device.type == "cuda" else nullcontext()


_NONE: dict[str, Any] = {"infrared": None, "enhanced": None}


class _Work:
    """One frame's work: `run` does it with tensors that stay in their places.

    Attributes
    ----------
    replay
        Does the same as `run`, as a graph; None where there is none.
    timed
        Whether events are recorded at the ends of stages.
    """

    def __init__(
        self, networks: CompiledNetworks, way: Way, device: torch.device, memory: Memory
    ) -> None:
        self.way, self.timed = way, True
        self.replay: Replay | None = None
        self._networks, self._device, self._memory = networks, device, memory
        self._pictures = TensorPictures(way.letterbox, device)
        shape = (*way.letterbox.camera, 3)
        self._given = self._on_host(shape, torch.uint8)
        self._frame = torch.empty(shape, dtype=torch.uint8, device=device)
        self._made: dict[str, Tensor] = {}
        self._watch, self._began, self._took_ms = Stopwatch(device), 0.0, 0.0

    def put(self, frame: UInt8) -> None:
        """Take a frame for the next run."""
        self._began = time.perf_counter()
        self._given.numpy()[...] = frame

    def run(self) -> None:
        """Fuse the frame; on a GPU, nothing is there before it has been waited for."""
        networks = self._networks
        networks.watch = self._watch = Stopwatch(self._device, timed=self.timed)
        with networks.watch.stage("preprocess"):
            self._frame.copy_(self._given, non_blocking=True)
            image = self._pictures.to_input(self._frame)
        condition = networks.encode(image)
        with networks.watch.stage("fuse"):
            step = networks.sample(condition, self.way.settings)
        made = self._refined(step) if networks.refined else self._decoded(step)
        with networks.watch.stage("postprocess"):
            for name, each in made.items():
                if name not in self._made:  # never in a capture, which is not the first run
                    self._made[name] = self._on_host(each.shape, each.dtype)
                self._made[name].copy_(each.contiguous(), non_blocking=True)

    def pictures(self) -> dict[str, Any]:
        """Wait for the work, and return copies of what it made, by the names of `FuseResult`."""
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self._took_ms = (time.perf_counter() - self._began) * 1e3
        return {name: each.numpy().copy() for name, each in self._made.items()}

    def stage_ms(self) -> dict[str, float]:
        """Return the milliseconds of each stage; all are the stage fuse's where none is timed."""
        if self.timed:
            return self._watch.stage_ms()
        return dict.fromkeys(STAGES, 0.0) | {"fuse": self._took_ms}

    def _refined(self, step: Step) -> dict[str, Tensor]:
        """Make what `results.refined` makes."""
        networks, pictures, extras = self._networks, self._pictures, self.way.extras
        maps, logits = networks.refine(step)
        restored, made = networks.decode(step.z0_psi, partial(self._classes, logits))
        found, image = [maps, restored, logits], networks.image
        if "infrared" in extras:
            imagined, _ = networks.decode(step.z0_phi, _nothing)
            found.append(imagined)
        with networks.watch.stage("postprocess"):
            if self.way.temporal is not None:
                restored = self._memory.steady(step.z0_fused, image, restored)
            picture = shown = pictures.sharpened(self._frame, image, restored)
            heat = maps
            if self.way.temporal:
                size = (restored.shape[-2], restored.shape[-1])
                now = torch.cat([enlarged(maps, size), restored], dim=1)
                _, carried = self._memory.carry(step.z0_fused, self.way.temporal, now)
                now = now if carried is None else carried
                heat, before = now[:, : maps.shape[1]], now[:, maps.shape[1] :]
                shown = pictures.sharpened(self._frame, image, before)
            shown = pictures.magimg(shown, image, heat)
            made["magimg"] = pictures.at_camera(self._frame, shown)
            if "infrared" in extras:
                grey = pictures.infrared(maps, imagined)
                made["infrared"] = pictures.at_camera(self._frame, grey)
            if "enhanced" in extras:
                made["enhanced"] = pictures.at_camera(self._frame, picture)
            made["finite"] = _finite(found)
        return made

    def _decoded(self, step: Step) -> dict[str, Tensor]:
        """Make what `results.decoded` makes."""
        networks, fused = self._networks, step.z0_fused
        if self.way.temporal:
            with networks.watch.stage("fuse"):
                fused, _ = self._memory.carry(fused, self.way.temporal)
        latents = {"magimg": fused, "infrared": step.z0_phi, "enhanced": step.z0_psi}
        decoded, made = networks.decode(fused, partial(self._classes, step.state))
        found = {"magimg": decoded, "state": step.state}
        for name in self.way.extras:
            found[name], _ = networks.decode(latents[name], _nothing)
        with networks.watch.stage("postprocess"):
            made["finite"] = _finite(list(found.values()))
            del found["state"]
            for name, image in found.items():
                shown = image.mean(dim=1, keepdim=True) if name == "infrared" else image
                made[name] = self._pictures.enlarged(shown)
        return made

    def _classes(self, logits: Tensor) -> dict[str, Tensor]:
        with self._networks.watch.stage("postprocess"):
            mask, confidence = self._pictures.classes(logits)
        return {"mask": mask, "confidence": confidence}

    def _on_host(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        # Only pinned memory is copied without the CPU.
        return torch.empty(shape, dtype=dtype, pin_memory=self._device.type == "cuda")


def _finite(values: list[Tensor]) -> Tensor:
    # A value that is not finite makes the sum so too.
    sums = [each.sum(dtype=torch.float32) for each in values]
    return torch.isfinite(torch.stack(sums).sum())


def _nothing() -> None:
    pass
