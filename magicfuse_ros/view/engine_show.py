"""Shots made by an engine of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.checkpoint import read_config
from magicfuse_ros.resources import model_path
from magicfuse_ros.runtime.class_colors import colorize
from magicfuse_ros.runtime.contract import (
    EXTRAS,
    MOST_TEMPORAL,
    EngineError,
    FuseResult,
    Progress,
    UInt8,
)
from magicfuse_ros.runtime.engine_type import Engine
from magicfuse_ros.view.feeds import Feed, Playback
from magicfuse_ros.view.shot import PICTURES, Rate, Shot

_IDLE_S = 0.1


class EngineShow:
    """Fuses the frames of a feed in a thread of its own, while somebody looks; see `Show`.

    `load` loads the engine in that thread, and may raise. The feed is closed with the show.
    """

    def __init__(self, feed: Feed, load: Callable[[Progress], Engine]) -> None:
        self.on_shot: Callable[[Shot], None] = lambda _shot: None
        self.failure, self._progress = "", "loading the model"
        self._feed, self._load = feed, load
        self._engine: Engine | None = None
        self._model_tau, self._note = 0.0, ""
        self._tau: float | None = None
        self._temporal = 0.0
        self._wanted: frozenset[str] = frozenset()
        self._closing = threading.Event()
        self._rate, self._number = Rate(), 0
        self._thread = threading.Thread(target=self._run, name="view_engine")
        self._thread.start()

    def state(self) -> dict[str, Any]:
        """See `Show`."""
        engine, feed = self._engine, self._feed
        level, text = feed.said if engine is not None else ("wait", self._progress)
        state: dict[str, Any] = {
            "source": feed.name,
            "level": "error" if self.failure else level,
            "text": self.failure or text,
            "fps": round(self._rate.per_second(), 1),
            "drops": feed.drops,
            "backend": "",
            "warnings": [self._note] if self._note else [],
            "labels": [],
            "tau": self._tau,
            "model_tau": self._model_tau,
            "temporal": self._temporal,
            "most_temporal": MOST_TEMPORAL,
            "playback": None,
        }
        if engine is not None:
            state["backend"] = engine.backend_name
            state["labels"] = [[each.name, each.color] for each in engine.labels.labels]
            if not engine.trained:
                state["warnings"].append("untrained weights: the pictures mean nothing")
            state["warnings"] += filter(None, [engine.steps_warning, engine.parts_warning])
            if engine.under_way:
                state["warnings"].append(f"making networks for {engine.under_way}; less detail yet")
        if isinstance(feed, Playback):
            state["playback"] = [feed.position_s, feed.duration_s, feed.paused]
        return state

    def want(self, pictures: frozenset[str]) -> None:
        """See `Show`."""
        more = pictures - self._wanted
        self._wanted = pictures
        if more:
            self._again()

    def tune(self, tau: float | None, temporal: float) -> None:
        """See `Show`."""
        if self._engine is None:
            raise ValueError("the engine is being loaded; try again in a moment")
        settings = self._engine.settings
        try:
            self._engine.update(
                steps=settings.steps, tau=tau, seed=settings.seed, temporal=temporal
            )
        except EngineError as error:
            raise ValueError(str(error)) from error
        self._tau, self._temporal = tau, temporal
        self._again()

    def play(self, order: str, value: float) -> None:
        """See `Show`."""
        if not isinstance(self._feed, Playback):
            raise ValueError(f"{self._feed.name} is live: it cannot {order}")  # noqa: TRY004
        if order == "pause":
            self._feed.pause(paused=bool(value))
        elif order == "step":
            self._feed.step()
        else:
            self._feed.seek(min(max(value, 0.0), self._feed.duration_s))

    def close(self) -> None:
        """See `Show`."""
        self._closing.set()
        self._feed.close()
        self._thread.join()

    def _again(self) -> None:
        if isinstance(self._feed, Playback):
            self._feed.again()

    def _say(self, text: str) -> None:
        if self._closing.is_set():
            raise EngineError("stopped")
        self._progress = text

    def _run(self) -> None:
        try:
            engine = self._load(self._say)
            self._model_tau = read_config(model_path(engine.settings.model)).diffusion.tau
            self._tau, self._temporal = engine.settings.tau, engine.settings.temporal or 0.0
            try:
                engine.warm_up(self._say)
                self._engine = engine
                self._fuse_all(engine)
            finally:
                engine.close()
        except Exception as error:  # noqa: BLE001 - whatever it is, the page and the command say it
            self.failure = one_line(error)

    def _fuse_all(self, engine: Engine) -> None:
        while not self._closing.is_set():
            if not self._wanted:
                self._feed.rest()
                self._closing.wait(_IDLE_S)
                continue
            taken = self._feed.take()
            if taken is not None:
                rgb, taken_s = taken
                result = self._fuse(engine, rgb, self._wanted & frozenset(EXTRAS))
                self._rate.tick()
                self._number += 1
                self.on_shot(_shot(self._number, taken_s, rgb, result, engine))

    def _fuse(self, engine: Engine, rgb: UInt8, extras: frozenset[str]) -> FuseResult:
        while True:
            try:
                return engine.fuse(rgb, extras, wait=False)
            except Exception as error:
                failed = engine.backend_name
                if engine.fall_back(self._say) is None:
                    raise
                self._note = f"{failed} failed ({one_line(error)}): {engine.backend_name} goes on"


def _shot(number: int, taken_s: float, rgb: UInt8, result: FuseResult, engine: Engine) -> Shot:
    made = {"input": rgb, **{name: getattr(result, name) for name in ("magimg", *EXTRAS)}}
    pictures: dict[str, Callable[[], UInt8]] = {
        name: partial(_same, made[name]) for name in PICTURES if made.get(name) is not None
    }
    palette = engine.labels.palette()
    pictures["semantics"] = partial(colorize, result.mask, result.magimg, palette)
    return Shot(number, taken_s, pictures, partial(_same, result.mask))


def _same(picture: UInt8) -> UInt8:
    return picture
