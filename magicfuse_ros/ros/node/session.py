"""What exists between configure and cleanup: an engine in its worker, the pipeline, the outputs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from dataclasses import replace

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.node.parameters import Settings
from magicfuse_ros.ros.node.pipeline import Pipeline
from magicfuse_ros.ros.node.publishers import FusePublishers
from magicfuse_ros.ros.node.worker import EngineWorker
from magicfuse_ros.ros.statistics import Timings
from magicfuse_ros.runtime.contract import Engine, EngineSettings, Progress

EngineFactory = Callable[[EngineSettings, Progress], Engine]

_STOP_TIMEOUT_S = 4.0
"""How long a stop waits for the engine; `ros2 launch` loses patience after 5 s."""

_SILENCE_S = 5.0
"""Longest silence while loading; an engine at work tells how it goes as often by itself."""

_FIRST_FRAMES = 3.0
"""A frame takes no longer than this many first ones, which are the slowest."""

_MOST_HUNG = 3
"""Engines given up, each with its memory, before the node waits for the last one."""


class Session:
    """Made by configure, which then calls `load`; ended by `close`.

    Parameters
    ----------
    node
        Owner of the publishers, the clock and the log.
    settings
        Values in force.
    engine_factory
        Makes the engine; by default `runtime.engine.load_engine`.
    account, timings, camera_info
        Where the pipeline counts and measures, and what it reads CameraInfo from.

    Attributes
    ----------
    trouble
        Why there is no engine any more; empty while there is one or it is being loaded.
    """

    def __init__(
        self,
        node: Node,
        settings: Settings,
        engine_factory: EngineFactory | None,
        *,
        account: Ledger,
        timings: Timings,
        camera_info: Callable[[], CameraInfo | None],
    ) -> None:
        self.settings = settings
        self.trouble = ""
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
        self.worker = self._make_worker(settings, None)

    @property
    def engine(self) -> Engine | None:
        """The engine, once loaded. Only the worker calls it; others read what it says of itself."""
        return self.worker.engine

    def load(self, *, stop_requested: Callable[[], bool], every_second: Callable[[], None]) -> str:
        """Load the engine in the worker thread and wait for it; return what went wrong, or nothing.

        Parameters
        ----------
        stop_requested
            Polled meanwhile; when true, the wait ends.
        every_second
            Called meanwhile, so that diagnostics go on.
        """
        started = shown = time.monotonic()
        self.worker.start()
        while not self.worker.wait_loaded(0.1):
            if stop_requested():
                return "asked to stop while loading"
            if time.monotonic() - shown >= 1.0:
                shown = time.monotonic()
                every_second()
                self.worker.repeat_progress(f"({shown - started:.0f} s so far)", _SILENCE_S)
        error = self.worker.error
        if error is None:
            return ""
        trace = "".join(traceback.format_exception(error))
        self._node.get_logger().debug(f"Loading failed:\n{trace}")
        return _one_line(error)

    def watch(self) -> None:
        """Give up an engine that hangs in a frame, and load one on the next backend.

        Call it once a second. Meanwhile frames are counted as replaced; when there is no other
        backend, the same one is loaded again.
        """
        limit_s = self.pipeline.settings.watchdog_s
        worker, engine = self.worker, self.worker.engine
        if worker.error is not None and self._hung and not self.trouble:
            self.trouble = f"no engine after one hung: {_one_line(worker.error)}"
            self._node.get_logger().error(f"{self.trouble[0].upper()}{self.trouble[1:]}")
        if limit_s == 0.0 or engine is None or len(self._hung) >= _MOST_HUNG:
            return
        limit_s = max(limit_s, _FIRST_FRAMES * engine.first_frame_s)
        if not worker.give_up(limit_s):
            return
        hung, settings = engine.backend_name, self.pipeline.settings
        successor = engine.successor()
        self.pipeline.hung(f"{hung} did not come back from it within {limit_s:.0f} s")
        self._hung.append(worker)
        following = "the same again" if successor is None else successor.backend
        self.pipeline.degrade(f"backend {hung} hung, loading {following} in its place")
        self.worker = self._make_worker(settings, successor, worker)
        self.worker.start()

    def pause(self) -> None:
        """See the frame under way to its end; nothing is published afterwards."""
        self.pipeline.active = False
        self.worker.wait_idle(_STOP_TIMEOUT_S)
        self.pipeline.begin()

    def close(self) -> bool:
        """Close the engine and the outputs; False if the engine does not come back in time."""
        for worker in self._hung:
            worker.stop(0.0)
        closed = self.worker.stop(_STOP_TIMEOUT_S)
        if not closed:
            self._node.get_logger().error(
                f"The engine did not come back within {_STOP_TIMEOUT_S:.0f} s; going on without it"
            )
        self.outputs.destroy()
        return closed and not any(worker.alive for worker in self._hung)

    def _make_worker(
        self,
        settings: Settings,
        successor: EngineSettings | None,
        hung: EngineWorker | None = None,
    ) -> EngineWorker:
        return EngineWorker(
            load=lambda progress: self._load_engine(settings, successor, progress),
            process=self.pipeline.process,
            log=lambda text: self._node.get_logger().info(text),
            mailbox=None if hung is None else hung.mailbox,
        )

    def _load_engine(
        self, settings: Settings, successor: EngineSettings | None, progress: Progress
    ) -> Engine:
        """Make a warm engine; runs in the worker thread, where importing PyTorch delays nobody."""
        wanted = EngineSettings(
            model=settings.model,
            device=settings.device,
            backend=settings.backend,
            steps=settings.steps,
            tau=settings.tau,
            seed=settings.seed,
            temporal=settings.temporal,
            resolution=settings.resolution,
            labels=settings.labels,
            threads=settings.threads,
            parallel=settings.parallel,
        )
        if successor is not None:
            wanted = replace(wanted, backend=successor.backend, device=successor.device)
        engine = (self._engine_factory or _load_engine)(wanted, progress)
        try:
            settings.id_map.table(engine.labels.names())
            wanted_backend = engine.backend_name
            engine.warm_up(progress)
        except BaseException:
            engine.close()
            raise
        self.pipeline.loaded(settings)
        if engine.backend_name != wanted_backend:
            self.pipeline.degrade(
                f"backend {wanted_backend} failed, running on {engine.backend_name}"
            )
        elif self._hung:
            self.pipeline.degrade(f"a backend hung, running on {engine.backend_name}")
        return engine


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _load_engine(settings: EngineSettings, progress: Progress) -> Engine:
    # Not at the top: it imports PyTorch.
    from magicfuse_ros.runtime.engine import load_engine

    return load_engine(settings, progress)
