"""The node's benchmark: a camera process, `fuse_node` in another, and this one that listens."""

from __future__ import annotations

import itertools
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.client import Client

from magicfuse_ros.bags.from_video import write_bag
from magicfuse_ros.bags.recorder import Recorder
from magicfuse_ros.commands.benchmark_camera import CameraProcess
from magicfuse_ros.commands.node_session import (
    CONFIDENCE,
    MAGIMG,
    MASK,
    NODE,
    NodeSession,
    Progress,
    Session,
    SessionError,
)
from magicfuse_ros.evaluation.benchmark import metrics
from magicfuse_ros.evaluation.benchmark.machine import Usage, busy_and_total_s, load, usage
from magicfuse_ros.evaluation.benchmark.plan import Size
from magicfuse_ros.evaluation.benchmark.process import CACHE_VARIABLE
from magicfuse_ros.ros.dds import isolate, use_shipped_profile
from magicfuse_ros.ros.node.node_process import NodeProcess, fuse_node_command
from magicfuse_ros.sources.source import open_source

TOPIC = "/image"
OUTPUTS = (MAGIMG, MASK, CONFIDENCE)
BAG_RATE_HZ, BAG_FRAMES = 10.0, 40
_SERVICE_TIMEOUT_S = 60.0
_SAMPLE_S = 1.0


@dataclass(frozen=True, kw_only=True)
class NodeRun:
    """One run: a camera of this size at this rate.

    Attributes
    ----------
    camera
        (width, height) in pixels.
    rate_hz
        Frames a second.
    seconds
        How long frames are sent that count; before them come `warm_up_s` of frames that do not.
    """

    camera: Size
    rate_hz: float
    seconds: float
    warm_up_s: float = 3.0

    def __str__(self) -> str:
        return f"{self.camera[0]}x{self.camera[1]} at {self.rate_hz:g} Hz, {self.seconds:g} s"


@dataclass(frozen=True)
class Sample:
    """The node's and the camera's processes, and the whole machine, at one moment."""

    at_s: float
    node: Usage
    camera: Usage
    busy_s: float
    total_s: float


class BenchmarkSession(NodeSession):
    """A session in which a camera process plays to the node; nothing is kept of the pictures."""

    def __init__(
        self, node_process: NodeProcess, stop: threading.Event, progress: Progress
    ) -> None:
        self._heard, self._last_words = 0, dict[str, str]()
        super().__init__(node_process, stop, progress)
        self._change_state: Client[Any, Any] = self._node.create_client(
            ChangeState, f"{NODE}/change_state"
        )

    def run(self, camera: CameraProcess, run: NodeRun) -> tuple[list[Sample], list[Sample]]:
        """Warm up, then play `run` and watch; what came of it is in `session` afterwards.

        Returns
        -------
        Two samples of the idle system, and those taken every second while the camera played.

        Raises
        ------
        SessionError
            A process died, topics did not connect, or no frame came out.
        """
        recorder = Recorder(self._node, None, OUTPUTS, self._on_output)

        def subscribed() -> bool:
            return bool(self._ask(camera, None))

        try:
            self._connect(recorder, OUTPUTS, subscribed)
            idle = [self._sample(camera)]
            self._pause(_SAMPLE_S)
            idle.append(self._sample(camera))
            self._play(camera, run.warm_up_s, "warming up")
            # Frames of another aspect have networks compiled beside them; that is start-up.
            while self._words().get("preparing"):
                self._play(camera, run.warm_up_s, "warming up")
            self._restart()
            self._connect(recorder, OUTPUTS, subscribed)
            samples = self._play(camera, run.seconds, str(run))
        finally:
            recorder.close()
        if self.session.recorded == 0:
            raise SessionError(f"no frame came out of {len(self.session.sent_ns)} sent")
        return idle, samples

    def _play(self, camera: CameraProcess, seconds: float, what: str) -> list[Sample]:
        self.session = Session(before=self._words())
        samples: list[Sample] = []

        def watch() -> None:
            if not samples or time.monotonic() - samples[-1].at_s >= _SAMPLE_S:
                samples.append(self._sample(camera))
                self._progress(f"node: {what}, {self.session.recorded} frames out")

        sent = self._ask(camera, seconds, watch)
        samples.append(self._sample(camera))
        self.session.sent_ns = sent
        self._drain()
        return samples

    def _ask(
        self, camera: CameraProcess, seconds: float | None, watch: Callable[[], None] | None = None
    ) -> Any:
        number = camera.ask(seconds)
        while not camera.answered(number):
            if not camera.alive:
                raise SessionError("the camera process ended unexpectedly; see its words above")
            if watch is not None:
                watch()
            self._pause(0.02)
        return camera.answer(number)

    def _restart(self) -> None:
        """Deactivate and activate the node: its statistics begin anew, its engine stays warm."""
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=transition))
            response = self._call(self._change_state, request, _SERVICE_TIMEOUT_S)
            if response is None or not response.success:
                raise SessionError(f"the node refused lifecycle transition {transition}")

    def _words(self) -> dict[str, str]:
        """Wait for diagnostics that are newer than this call."""
        heard, end = self._heard, time.monotonic() + _SERVICE_TIMEOUT_S
        while self._heard <= heard:
            if time.monotonic() > end:
                raise SessionError(f"the node said nothing for {_SERVICE_TIMEOUT_S:.0f} s")
            self._pause(0.02)
        return self._last_words

    def _sample(self, camera: CameraProcess) -> Sample:
        now = time.monotonic()
        return Sample(now, usage(self._process.pid), usage(camera.pid), *busy_and_total_s())

    def _on_words(self, values: dict[str, str]) -> None:
        super()._on_words(values)
        self._last_words = values
        self._heard += 1


@dataclass(frozen=True, kw_only=True)
class NodeBenchmark:
    """The node's half of the benchmark.

    Attributes
    ----------
    parameters
        Of the node.
    video
        What the camera sees.
    folder
        For bags, logs and the artifact cache in `folder/cache`.
    stop
        Ends everything with `Stopped`.
    show
        Told what is being measured.
    """

    parameters: Mapping[str, str]
    video: Path
    folder: Path
    stop: threading.Event
    show: Progress

    def run(self, run: NodeRun) -> dict[str, Any]:
        """Measure one run, in processes of its own.

        Returns
        -------
        What NVIDIA's ros2_benchmark reports for a fixed rate, by its names, and under `custom` what
        it has no name for; `error` alone where the run failed.
        """
        try:
            session, samples, active_s = self._measure(run)
        except SessionError as error:
            return {"error": str(error)}
        return report(run, session, *samples, active_s=active_s)

    def soak(self, run: NodeRun) -> dict[str, Any]:
        """Measure one long run, and how it drifts."""
        try:
            session, samples, active_s = self._measure(run)
        except SessionError as error:
            return {"error": str(error)}
        playing = samples[1]
        seconds = [sample.at_s - playing[0].at_s for sample in playing]
        usages = [sample.node._asdict() for sample in playing]
        drift = metrics.drift(seconds, usages, _received(session))
        return report(run, session, *samples, active_s=active_s) | {"drift": drift}

    def _measure(self, run: NodeRun) -> tuple[Session, tuple[list[Sample], list[Sample]], float]:
        use_shipped_profile(os.environ)  # in this process too: it listens
        isolate(os.environ, 1 + os.getpid() % 100)
        environment = os.environ | {CACHE_VARIABLE: str(self.folder / "cache")}
        bag = self._bag(run.camera)
        log = self.folder / "node.log"
        command = fuse_node_command({"image": TOPIC}, self.parameters)
        started = time.monotonic()
        with NodeProcess(command, environment, log) as process:
            session = BenchmarkSession(process, self.stop, self.show)
            try:
                session.wait_until_active()
                active_s = time.monotonic() - started
                rate = run.rate_hz / BAG_RATE_HZ
                with CameraProcess(bag, TOPIC, rate, environment) as camera:
                    samples = session.run(camera, run)
            except SessionError as error:
                words = "; ".join(process.last_lines(3))
                raise SessionError(f"{error} (the node's last words: {words})") from error
            finally:
                session.close()
        return session.session, samples, active_s

    def _bag(self, size: Size) -> Path:
        """Make the camera's pictures, once for each size."""
        bag = self.folder / f"camera_{size[0]}x{size[1]}"
        if not bag.exists():
            self.show(f"node: making the camera's pictures, {size[0]}x{size[1]}")
            enough = threading.Event()

            def count(written: int) -> None:
                if written >= BAG_FRAMES or self.stop.is_set():
                    enough.set()

            source = open_source(self.video).at_rate(BAG_RATE_HZ).of_size(size)
            write_bag(
                source, bag, start_ns=time.time_ns(), topic=TOPIC, stop=enough, progress=count
            )
        return bag


def report(
    run: NodeRun, session: Session, idle: list[Sample], samples: list[Sample], *, active_s: float
) -> dict[str, Any]:
    """Say what became of a run; see `NodeBenchmark.run`."""
    said, received = session.diagnostics, _received(session)
    first, last = samples[0], samples[-1]
    seconds = last.at_s - first.at_s
    sent, fused = len(session.sent_ns), session.count("frames_out")
    dropped = {
        key.partition(".")[2]: session.count(key) for key in said if key.startswith("dropped.")
    }
    lost = sent - session.count("frames_in")
    return {
        **metrics.performance_metrics(session.sent_ns, received),
        **metrics.cpu_metrics(_utilisation(idle), _utilisation(samples)),
        "custom": {
            "camera": list(run.camera),
            "rate_hz": run.rate_hz,
            "seconds": run.seconds,
            "model": Path(said.get("model", "")).name,
            "backend": said.get("backend", ""),
            "fps_out": metrics.frame_rate(received),
            "frames": {
                "sent": sent,
                "out": fused,
                "dropped": dropped,
                "lost_on_the_way": lost,
                "received": len(received),
            },
            "accounted": sent == fused + sum(dropped.values()) + lost,
            "age_at_publish_ms": _summary(said, "age_ms"),
            "age_on_arrival_ms": metrics.percentiles(metrics.ages(received)),
            "stage_ms": {name: _summary(said, f"stage_ms.{name}") for name in _stages(said)},
            "ros_share": ros_share(said),
            "node_cpu_percent": (last.node.cpu_s - first.node.cpu_s) / seconds * 100.0,
            "camera_cpu_percent": (last.camera.cpu_s - first.camera.cpu_s) / seconds * 100.0,
            "memory_mb": {"steady": last.node.memory_mb, "peak": last.node.peak_mb},
            "threads": last.node.threads,
            "descriptors": last.node.descriptors,
            "active_s": active_s,
            "load": load(),
        },
    }


def ros_share(said: Mapping[str, str]) -> float | None:
    """Work out which part of a frame's time is ROS's: reading the message, encoding, publishing.

    Medians of the node's own stages, without the wait for the worker. What rclpy and DDS do before
    the node sees a message is in the node's CPU time only.
    """
    medians = {name: _summary(said, f"stage_ms.{name}")["p50"] for name in _stages(said)}
    frame_ms = sum(value for name, value in medians.items() if name not in ("wait", "total"))
    if not frame_ms:
        return None
    return (medians["read"] + medians["publish"]) / frame_ms


def _received(session: Session) -> dict[int, int]:
    """Return MagImgs that arrived, of frames that this run sent: stamp → time of arrival."""
    arrived = session.outputs_ns[MAGIMG]
    return {stamp: arrived[stamp] for stamp in session.sent_ns if stamp in arrived}


def _stages(said: Mapping[str, str]) -> list[str]:
    return [
        key.removeprefix("stage_ms.").removesuffix(".p50")
        for key in said
        if key.startswith("stage_ms.") and key.endswith(".p50")
    ]


def _summary(said: Mapping[str, str], prefix: str) -> dict[str, float]:
    return {
        name: float(said[f"{prefix}.{name}"])
        for name in ("p50", "p95", "max")
        if f"{prefix}.{name}" in said
    }


def _utilisation(samples: list[Sample]) -> list[float]:
    """Percent of all cores that were in use between each two samples."""
    pairs = itertools.pairwise(samples)
    spans = [
        (after.busy_s - before.busy_s, after.total_s - before.total_s) for before, after in pairs
    ]
    return [busy_s / total_s * 100.0 for busy_s, total_s in spans if total_s > 0.0]
