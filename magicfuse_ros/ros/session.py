"""What exists between configure and cleanup: an engine in its worker, the pipeline, the outputs."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable

from rclpy.node import Node
from sensor_msgs.msg import CameraInfo

from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.parameters import Settings
from magicfuse_ros.ros.pipeline import Pipeline
from magicfuse_ros.ros.publishers import FusePublishers
from magicfuse_ros.ros.statistics import Timings
from magicfuse_ros.ros.worker import EngineWorker
from magicfuse_ros.runtime.contract import Engine, EngineSettings, Progress

EngineFactory = Callable[[EngineSettings, Progress], Engine]

_STOP_TIMEOUT_S = 4.0
"""How long a stop waits for the engine; `ros2 launch` loses patience after 5 s."""


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
        self.worker = EngineWorker(
            load=self._load_engine,
            process=self.pipeline.process,
            log=lambda text: node.get_logger().info(text),
        )

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
                if round(shown - started) % 5 == 0:
                    self._node.get_logger().info(
                        f"{self.worker.last_progress} ({shown - started:.0f} s so far)"
                    )
        error = self.worker.error
        if error is None:
            return ""
        trace = "".join(traceback.format_exception(error))
        self._node.get_logger().debug(f"Loading failed:\n{trace}")
        return " ".join(str(error).split()) or type(error).__name__

    def pause(self) -> None:
        """See the frame under way to its end; nothing is published afterwards."""
        self.pipeline.active = False
        self.worker.wait_idle(_STOP_TIMEOUT_S)

    def close(self) -> bool:
        """Close the engine and the outputs; False if the engine does not come back in time."""
        closed = self.worker.stop(_STOP_TIMEOUT_S)
        if not closed:
            self._node.get_logger().error(
                f"The engine did not come back within {_STOP_TIMEOUT_S:.0f} s; going on without it"
            )
        self.outputs.destroy()
        return closed

    def _load_engine(self, progress: Progress) -> Engine:
        """Make a warm engine; runs in the worker thread, where importing PyTorch delays nobody."""
        settings = self.settings
        wanted = EngineSettings(
            model=settings.model,
            device=settings.device,
            backend=settings.backend,
            steps=settings.steps,
            tau=settings.tau,
            seed=settings.seed,
            resolution=settings.resolution,
            labels=settings.labels,
            threads=settings.threads,
        )
        engine = (self._engine_factory or _load_engine)(wanted, progress)
        try:
            settings.id_map.table(engine.labels.names())
            wanted_backend = engine.backend_name
            engine.warm_up(progress)
        except BaseException:
            engine.close()
            raise
        if engine.backend_name != wanted_backend:
            self.pipeline.degrade(
                f"backend {wanted_backend} failed, running on {engine.backend_name}"
            )
        return engine


def _load_engine(settings: EngineSettings, progress: Progress) -> Engine:
    # Not at the top: it imports PyTorch.
    from magicfuse_ros.runtime.engine import load_engine

    return load_engine(settings, progress)
