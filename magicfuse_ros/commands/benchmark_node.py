"""The node's benchmark: one process is the camera, one is `fuse_node`, and this one listens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.client import Client

from magicfuse_ros.bags.from_video import write_bag
from magicfuse_ros.bags.recorder import Recorder
from magicfuse_ros.commands.node_process import NodeProcess, fuse_node_command
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
from magicfuse_ros.evaluation.benchmark.engine_runs import CACHE_VARIABLE, Size
from magicfuse_ros.evaluation.benchmark.machine import Usage, load, usage
from magicfuse_ros.resources import sample_video
from magicfuse_ros.ros.dds import isolate, prepare
from magicfuse_ros.sources.source import open_source

TOPIC = "/image"
OUTPUTS = (MAGIMG, MASK, CONFIDENCE)
BAG_RATE_HZ, BAG_FRAMES = 10.0, 40
SERVICE_TIMEOUT_S = 60.0
SAMPLE_S = 1.0
MOST_POINTS = 120
"""Most points of the memory curve that are kept from a soak."""


class NodeRun(NamedTuple):
    """One run: a camera of this size at this rate.

    Attributes
    ----------
    camera
        (width, height) in pixels.
    rate_hz
        Frames a second.
    seconds
        How long frames are sent and measured.
    warm_up_s
        How long frames are sent before that, which are not measured.
    """

    camera: Size
    rate_hz: float
    seconds: float
    warm_up_s: float = 3.0


class Sample(NamedTuple):
    """What the node's process used at one moment, given in seconds of the monotonic clock."""

    at_s: float
    node: Usage


@dataclass(frozen=True, kw_only=True)
class NodeBenchmark:
    """The node's half of the benchmark.

    Attributes
    ----------
    parameters
        Parameters of the node.
    folder
        Where bags and logs go, and the artifact cache, which is `folder/cache`.
    stop
        Setting it ends everything with `Stopped`.
    show
        Called with a line of text on what is being measured.
    """

    parameters: Mapping[str, str]
    folder: Path
    stop: threading.Event
    show: Progress

    def measure(self, run: NodeRun, *, with_drift: bool = False) -> dict[str, Any]:
        """Measure one run in processes of its own.

        Returns
        -------
        The row of the node's table, with `drift` if asked for, or `error` if the run failed.
        """
        for warning in prepare(os.environ):  # this process listens
            self.show(warning)
        isolate(os.environ, 1 + os.getpid() % 100)
        environment = os.environ | {CACHE_VARIABLE: str(self.folder / "cache")}
        row = {"camera": list(run.camera), "rate_hz": run.rate_hz, "seconds": run.seconds}
        command = fuse_node_command({"image": TOPIC}, self.parameters)
        bag = self._bag(run.camera)
        started = time.monotonic()
        with NodeProcess(command, environment, self.folder / "node.log") as process:
            session = BenchmarkSession(process, self.stop, self.show)
            try:
                session.wait_until_active()
                row["active_s"] = time.monotonic() - started
                samples = session.run(run, bag, environment)
            except SessionError as error:
                words = "; ".join(process.last_lines(3))
                return row | {"error": f"{error} (the node's last words: {words})"}
            finally:
                session.close()
        row |= figures(session.session, samples)
        return row | {"drift": drift(samples, session.session)} if with_drift else row

    def _bag(self, size: Size) -> Path:
        """Make the camera's pictures, once for each size."""
        bag = self.folder / f"camera_{size[0]}x{size[1]}"
        if not bag.exists():
            self.show(f"node: making the camera's pictures, {size[0]}x{size[1]}")
            enough = threading.Event()

            def count(written: int) -> None:
                if written >= BAG_FRAMES or self.stop.is_set():
                    enough.set()

            source = open_source(sample_video()).at_rate(BAG_RATE_HZ).of_size(size)
            write_bag(
                source, bag, start_ns=time.time_ns(), topic=TOPIC, stop=enough, progress=count
            )
        return bag


class BenchmarkSession(NodeSession):
    """A session in which a camera process plays to the node; no picture is kept."""

    def __init__(
        self, node_process: NodeProcess, stop: threading.Event, progress: Progress
    ) -> None:
        self._heard, self._last_words = 0, dict[str, str]()
        super().__init__(node_process, stop, progress)
        self._change_state: Client[Any, Any] = self._node.create_client(
            ChangeState, f"{NODE}/change_state"
        )

    def run(self, run: NodeRun, bag: Path, environment: Mapping[str, str]) -> list[Sample]:
        """Warm up, then play and watch; the result is in `session` afterwards.

        Returns
        -------
        Samples taken every second while frames came out, two or more.

        Raises
        ------
        SessionError
            A process died, topics did not connect, or no frame came out.
        """
        camera = [sys.executable, "-m", "magicfuse_ros.commands.benchmark_camera", str(bag), TOPIC]
        camera.append(str(run.rate_hz / BAG_RATE_HZ))
        sent_to = bag.with_suffix(".sent.json")

        def play(seconds: float, what: str) -> list[Sample]:
            self.session = Session(before=self._words())
            command = [*camera, str(seconds), str(sent_to)]
            process = subprocess.Popen(command, env=dict(environment), start_new_session=True)  # noqa: S603
            samples: list[Sample] = []
            try:
                while process.poll() is None:
                    if self.session.recorded and (
                        not samples or time.monotonic() - samples[-1].at_s >= SAMPLE_S
                    ):
                        samples.append(self._sample())
                        self._progress(f"node: {what}, {self.session.recorded} frames out")
                    self._pause(0.02)
            finally:
                process.kill()
                process.wait()
            if process.returncode:
                raise SessionError("the camera process failed; see its words above")
            samples.append(self._sample())
            self.session.sent_ns = json.loads(sent_to.read_text(encoding="ascii"))
            self._drain()
            return samples

        recorder = Recorder(self._node, None, OUTPUTS, self._on_output)
        try:
            self._connect(recorder, OUTPUTS, lambda: True)
            play(run.warm_up_s, "warming up")
            # Frames of another aspect need networks that are still compiled: that is start-up.
            while self._words().get("preparing"):
                play(run.warm_up_s, "warming up")
            self._restart()
            self._connect(recorder, OUTPUTS, lambda: True)
            width, height = run.camera
            samples = play(run.seconds, f"{width}x{height} at {run.rate_hz:g} Hz")
        finally:
            recorder.close()
        # Some outputs of the warm-up may have come late.
        arrived, sent = self.session.outputs_ns.get(MAGIMG, {}), set(self.session.sent_ns)
        self.session.outputs_ns[MAGIMG] = {k: v for k, v in arrived.items() if k in sent}
        if len(samples) < 2 or not self.session.recorded:
            raise SessionError(f"no frame came out of {len(sent)} sent")
        return samples

    def _restart(self) -> None:
        """Deactivate and activate the node, which resets its statistics and keeps its engine."""
        for transition in (Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=transition))
            response = self._call(self._change_state, request, SERVICE_TIMEOUT_S)
            if response is None or not response.success:
                raise SessionError(f"the node refused lifecycle transition {transition}")

    def _words(self) -> dict[str, str]:
        """Wait for the next diagnostics of the node, and return them by key."""
        heard, end = self._heard, time.monotonic() + SERVICE_TIMEOUT_S
        while self._heard <= heard:
            if time.monotonic() > end:
                raise SessionError(f"the node said nothing for {SERVICE_TIMEOUT_S:.0f} s")
            self._pause(0.02)
        return self._last_words

    def _sample(self) -> Sample:
        return Sample(time.monotonic(), usage(self._process.pid))

    def _on_words(self, values: dict[str, str]) -> None:
        super()._on_words(values)
        self._last_words = values
        self._heard += 1


def figures(session: Session, samples: Sequence[Sample]) -> dict[str, Any]:
    """Compute the figures of a run.

    Every frame sent was fused, dropped by the node, or lost on the way to it: `accounted` says
    whether that adds up. `age_ms` is what the node measured, from the camera's stamp to publishing;
    `arrival_age_ms` is measured here.
    """
    said, first, last = session.diagnostics, samples[0], samples[-1]
    sent, out = len(session.sent_ns), session.count("frames_out")
    dropped = {
        key.partition(".")[2]: session.count(key) for key in said if key.startswith("dropped.")
    }
    lost = sent - session.count("frames_in")
    arrived = session.outputs_ns.get(MAGIMG, {})
    ages_ms = [(received - stamp) / 1e6 for stamp, received in arrived.items()]
    levels = {"p50": 50.0, "p95": 95.0, "p99.9": 99.9, "max": 100.0}
    return {
        "backend": said.get("backend", ""),
        "sent": sent,
        "out": out,
        "dropped": dropped,
        "lost": lost,
        "accounted": sent == out + sum(dropped.values()) + lost,
        "received": len(arrived),
        "fps_out": session.fps,
        "age_ms": _summary(said, "age_ms"),
        "arrival_age_ms": {
            name: float(np.percentile(ages_ms, level)) for name, level in levels.items()
        },
        "stage_ms": {name: _summary(said, f"stage_ms.{name}") for name in _stages(said)},
        "ros_share": ros_share(said),
        "cpu_percent": 100.0 * (last.node.cpu_s - first.node.cpu_s) / (last.at_s - first.at_s),
        "memory_mb": {"steady": last.node.memory_mb, "peak": last.node.peak_mb},
        "load": load(),
    }


def ros_share(said: Mapping[str, str]) -> float | None:
    """Compute ROS's share of a frame's time: reading the message, encoding, publishing.

    It is computed from the medians of the node's own stages, without the wait for the worker. What
    rclpy and DDS do before the node sees a message is only in the node's CPU time.
    """
    medians = {name: _summary(said, f"stage_ms.{name}")["p50"] for name in _stages(said)}
    frame_ms = sum(value for name, value in medians.items() if name not in ("wait", "total"))
    return (medians["read"] + medians["publish"]) / frame_ms if frame_ms else None


def drift(samples: Sequence[Sample], session: Session) -> dict[str, Any]:
    """Compute what changed over a long run, after its warm-up.

    The warm-up is the first minute, or the first fifth of a run shorter than five minutes. `fps`
    compares the first and the last tenth of the rest.
    """
    seconds = np.array([sample.at_s for sample in samples]) - samples[0].at_s
    end = float(seconds[-1])
    warm_up_s = min(60.0, 0.2 * end)
    kept = seconds >= warm_up_s
    arrivals = np.sort(np.array(list(session.outputs_ns[MAGIMG].values()), np.int64))
    since_s = (arrivals - arrivals[0]) / 1e9
    tenth = (end - warm_up_s) / 10

    def course(name: str) -> dict[str, float]:
        values = np.array([getattr(sample.node, name) for sample in samples], float)[kept]
        return {"first": values[0], "last": values[-1], "max": float(values.max())}

    def rate(begin: float) -> float:
        return float(((since_s >= begin) & (since_s < begin + tenth)).sum()) / tenth

    memory = np.array([sample.node.memory_mb for sample in samples])
    chosen = np.unique(np.linspace(0, len(seconds) - 1, MOST_POINTS).astype(int))
    return {
        "minutes": end / 60.0,
        "warm_up_s": warm_up_s,
        "memory_slope_mb_per_hour": float(np.polyfit(seconds[kept], memory[kept], 1)[0]) * 3600.0,
        **{name: course(name) for name in ("memory_mb", "descriptors", "threads")},
        "fps": {"first": rate(warm_up_s), "last": rate(end - tenth)},
        "series": {
            "minute": (seconds[chosen] / 60.0).round(3).tolist(),
            "memory_mb": memory[chosen].round(2).tolist(),
        },
    }


def _stages(said: Mapping[str, str]) -> list[str]:
    return [
        key.removeprefix("stage_ms.").removesuffix(".p50")
        for key in said
        if key.startswith("stage_ms.") and key.endswith(".p50")
    ]


def _summary(said: Mapping[str, str], prefix: str) -> dict[str, float]:
    names = ("p50", "p95", "max")
    return {name: float(said[key]) for name in names if (key := f"{prefix}.{name}") in said}
