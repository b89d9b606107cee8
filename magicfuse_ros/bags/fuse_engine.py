"""The engine of `bag fuse`: it is loaded when a frame needs it, and never replaced by another."""

from __future__ import annotations

import threading

from magicfuse_ros.ros.node.session import EngineFactory, load_engine
from magicfuse_ros.runtime.contract import EngineSettings, Progress
from magicfuse_ros.runtime.engine_type import Engine


class Interrupted(Exception):  # noqa: N818 - nothing is wrong
    """The work was asked to stop; its results so far are kept."""


class LazyEngine:
    """An engine that is loaded for the first frame that needs it, and kept for the next bags.

    Setting `stop` ends the loading with `Interrupted`. Without a `factory`,
    `runtime.engine.load_engine` makes the engine.
    """

    def __init__(
        self,
        settings: EngineSettings,
        stop: threading.Event,
        say: Progress,
        factory: EngineFactory = load_engine,
    ) -> None:
        self.settings = settings
        self._stop, self._say, self._factory = stop, say, factory
        self._engine: Engine | None = None

    def get(self) -> Engine:
        """Return the engine, warmed up; it does not change its backend any more."""
        if self._engine is None:
            self._engine = self._load()
        return self._engine

    def _load(self) -> Engine:
        engine = self._factory(self.settings, self._progress)
        try:
            engine.warm_up(self._progress)
        except BaseException:
            engine.close()
            raise
        if not engine.trained:
            self._say("WARNING: the weights of this model are untrained, its results mean nothing")
        if engine.steps_warning:
            self._say(f"WARNING: {engine.steps_warning}")
        return engine

    def close(self) -> None:
        """Release the engine."""
        if self._engine is not None:
            self._engine.close()
            self._engine = None

    def _progress(self, text: str) -> None:
        if self._stop.is_set():
            raise Interrupted
        self._say(text)
