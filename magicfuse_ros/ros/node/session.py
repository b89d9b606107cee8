"""What the node holds from configure to cleanup: engine and worker, the pipeline, the outputs."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.node.parameters import Settings
from magicfuse_ros.ros.node.pipeline import Pipeline
from magicfuse_ros.ros.node.publishers import FusePublishers
from magicfuse_ros.ros.node.worker import EngineWorker
from magicfuse_ros.ros.statistics import Timings
from magicfuse_ros.runtime.contract import EngineSettings, Progress
from magicfuse_ros.runtime.engine_type import Engine

EngineFactory = Callable[[EngineSettings, Progress], Engine]

_STOP_TIMEOUT_S = 4.0
"""How long a stop waits for the engine; `ros2 launch` loses patience after 5 s."""

_SILENCE_S = 5.0
"""Longest silence in the log while an engine loads; `runtime.heartbeat` has the same period."""

_PATIENCE = 3.0
"""A frame hangs when it takes longer than this many times what it should take."""

_SHORTEST_LIMIT_S = 1.0
"""The watchdog gives up no engine sooner, as a busy machine can stall a frame almost this long."""

_LONGEST_BACKOFF_S = 60.0
"""Longest wait between two attempts to load an engine when there is none."""

_MOST_HUNG = 3
"""Most engines that are given up, each of which keeps its memory; then the node waits instead."""


class Session:
    """Made by configure, which then calls `load`; ended by `close`.

    After the first load, `watch` replaces engines. If one hangs, the next backend is loaded. If one
    cannot be loaded, it is tried again after 1, 2, 4 and so on up to 60 s, and at once when a
    parameter changes. `settings` are those that the first engine was loaded with; `labels` is the
    model's label set, or None until then.
    """

    def __init__(
        self,
        node: Node,
        settings: Settings,
        engine_factory: EngineFactory,
        *,
        account: Ledger,
        timings: Timings,
        camera_info: Callable[[], CameraInfo | None],
    ) -> None:
        self.settings = settings
        self.labels: LabelSet | None = None
        self._node, self._engine_factory = node, engine_factory
        self.outputs = FusePublishers(node)
        self.pipeline = Pipeline(
            settings=settings,
            publishers=self.outputs,
            account=account,
            timings=timings,
            camera_info=camera_info,
            clock=node.get_clock(),
            log=node.get_logger(),
        )
        self._hung: list[EngineWorker] = []
        self._ever_hung = self._hangs = False
        self._attempts, self._next_attempt_at = 0, math.inf
        self.worker = self._make_worker(None)

    @property
    def engine(self) -> Engine | None:
        """The engine, once loaded. Only the worker runs it; other threads read its attributes."""
        return self.worker.engine

    def load(self, *, stop_requested: Callable[[], bool], every_second: Callable[[], None]) -> str:
        """Load the engine in the worker thread and wait for it; return what went wrong, or nothing.

        The wait ends when `stop_requested` returns true. `every_second` is called once a second, so
        that diagnostics go on.
        """
        started = shown = time.monotonic()
        self.worker.start()
        while not self.worker.wait_loaded(0.1):
            if stop_requested():
                return "asked to stop while the engine was loading"
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                every_second()
                self.worker.repeat_progress(f"({shown - started:.0f} s so far)", _SILENCE_S)
        if self.worker.engine is not None:
            self.labels = self.worker.engine.labels
        if self.worker.error is None:
            return ""
        trace = "".join(traceback.format_exception(self.worker.error))
        self._node.get_logger().debug(f"Loading failed:\n{trace}")
        return one_line(self.worker.error)

    @property
    def trouble(self) -> str:
        """Why there is no engine, if the last attempt to load one has failed; else empty."""
        if self.worker.error is None:
            return ""
        again = "it is loaded again now and then, and at once when a parameter changes"
        return f"no engine: {one_line(self.worker.error)}; {again}"

    @property
    def loading(self) -> str:
        """How the loading of an engine goes; empty while none is being loaded."""
        if self.worker.wait_loaded(0.0):
            return ""
        return f"no engine yet, frames are dropped meanwhile: {self.worker.last_progress}"

    def adopt(self, settings: Settings) -> None:
        """Adopt the live parameters; if there is no engine, load it again with them at once."""
        self.pipeline.settings = settings
        if self.worker.engine is not None:
            if self.pipeline.update(self.worker.engine):
                self.worker.begin_anew()
        elif self.worker.error is not None:
            self._load_again()

    def watch(self) -> None:
        """Replace an engine that hangs in a frame or could not be loaded; call it once a second.

        Frames that come meanwhile are counted as replaced. If there is no other backend, the same
        one is loaded again.
        """
        worker, engine = self.worker, self.worker.engine
        self._hung = [each for each in self._hung if each.alive]
        if worker.error is not None:
            if self._next_attempt_at == math.inf:
                self._plan_attempt(worker.error)
            elif time.monotonic() >= self._next_attempt_at:
                self._load_again()
        elif engine is not None:
            self._attempts = 0
            limit_s = self.pipeline.settings.watchdog_s
            if limit_s > 0.0 and len(self._hung) < _MOST_HUNG:
                expected_s = _PATIENCE * engine.expected_frame_s
                self._replace_hung(worker, engine, max(limit_s, expected_s, _SHORTEST_LIMIT_S))

    def _plan_attempt(self, error: Exception) -> None:
        wait_s = min(2.0**self._attempts, _LONGEST_BACKOFF_S)
        self._attempts += 1
        self._next_attempt_at = time.monotonic() + wait_s
        self._node.get_logger().error(
            f"No engine: {one_line(error)}. It is loaded again in {wait_s:.0f} s, and at once "
            "when a parameter changes"
        )

    def _load_again(self) -> None:
        self._next_attempt_at = math.inf
        self.worker = self._make_worker(None, self.worker)
        self.worker.start()

    def _replace_hung(self, worker: EngineWorker, engine: Engine, limit_s: float) -> None:
        if not worker.give_up(limit_s):
            return
        hung, successor = engine.backend_name, engine.successor()
        self.pipeline.hung(f"{hung} did not come back from it within {limit_s:.0f} s")
        self._hung.append(worker)
        self._ever_hung = True
        following = "the same again" if successor is None else successor.backend
        self.pipeline.degrade(f"backend {hung} hung, loading {following} in its place")
        self.worker = self._make_worker(successor, worker)
        self.worker.start()

    def pause(self) -> None:
        """Wait for the frame in progress to end; nothing is published afterwards."""
        self.pipeline.active = False
        if self.worker.engine is not None and self.worker.busy_s:
            self.pipeline.hurry(self.worker.engine)
        self._hangs = not self.worker.wait_idle(_STOP_TIMEOUT_S)
        self.pipeline.begin()

    def close(self) -> bool:
        """Close the engine and the outputs; False if the engine does not come back in time."""
        for worker in self._hung:
            worker.stop(0.0)
        closed = self.worker.stop(0.0 if self._hangs else _STOP_TIMEOUT_S)
        if not closed:
            self._node.get_logger().error(
                f"The engine did not come back within {_STOP_TIMEOUT_S:.0f} s; going on without it"
            )
        self.outputs.destroy()
        return closed and not any(worker.alive for worker in self._hung)

    def _make_worker(
        self, successor: EngineSettings | None, before: EngineWorker | None = None
    ) -> EngineWorker:
        return EngineWorker(
            load=lambda progress: self._load_engine(successor, progress),
            process=self.pipeline.process,
            log=lambda text: self._node.get_logger().info(text),
            mailbox=None if before is None else before.mailbox,
        )

    def _load_engine(self, successor: EngineSettings | None, progress: Progress) -> Engine:
        """Make a warm engine; this runs in the worker thread, as importing PyTorch takes long."""
        settings = self.pipeline.settings
        wanted = settings.engine
        if successor is not None:
            wanted = replace(wanted, backend=successor.backend, device=successor.device)
        engine = self._engine_factory(wanted, progress)
        try:
            settings.id_map.table(engine.labels.names())
            wanted_backend = engine.backend_name
            engine.warm_up(progress)
        except BaseException:
            engine.close()
            raise
        self.pipeline.loaded(engine, settings)
        if engine.backend_name != wanted_backend:
            self.pipeline.degrade(
                f"backend {wanted_backend} failed, running on {engine.backend_name}"
            )
        elif self._ever_hung:
            self.pipeline.degrade(f"a backend hung, running on {engine.backend_name}")
        return engine


def load_engine(settings: EngineSettings, progress: Progress) -> Engine:
    """Load an engine as `runtime.engine` does, importing that, and PyTorch, only now."""
    from magicfuse_ros.runtime.engine import load_engine as load

    return load(settings, progress)
