"""What happens to one frame, in the worker thread: decode, fuse, publish, account."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.clock import Clock
from rclpy.impl.rcutils_logger import RcutilsLogger
from sensor_msgs.msg import CameraInfo

from magicfuse_ros.messages import one_line
from magicfuse_ros.ros import dds, ledger
from magicfuse_ros.ros.images.bit_depth import BitDepth
from magicfuse_ros.ros.images.codec import decode
from magicfuse_ros.ros.ledger import Ledger, Throttle
from magicfuse_ros.ros.node.frame_messages import FusedFrame
from magicfuse_ros.ros.node.id_map import remap
from magicfuse_ros.ros.node.parameters import Settings
from magicfuse_ros.ros.node.publishers import FusePublishers
from magicfuse_ros.ros.node.worker import Frame, LoadCancelled
from magicfuse_ros.ros.stamps import nanoseconds
from magicfuse_ros.ros.statistics import Timings, age_ms, since_ms
from magicfuse_ros.runtime.contract import FuseResult, Progress
from magicfuse_ros.runtime.engine_type import Engine
from magicfuse_ros.sources.picture_errors import PictureError

_FALL_BACK_AFTER = 2
"""Failures in a row before falling back, so that one passing fault does not cost a fast backend."""

_LONGEST_GAP_NS = 1_000_000_000
"""Longest time between two stamps of one stream; after more, nothing is carried over."""


class Pipeline:
    """Turns frames into published results; counts whatever goes wrong, and takes the next frame.

    Attributes
    ----------
    settings
        Values in force; the executor thread replaces them when they change.
    active
        While False, frames are dropped unpublished.
    degraded
        What is worse than configured; empty while all is well.
    refused
        Why the engine keeps its former sampling parameters; empty while it has those in force.
    advice
        Which parameter the camera's pictures seem to need; empty while all seems well.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        publishers: FusePublishers,
        account: Ledger,
        timings: Timings,
        camera_info: Callable[[], CameraInfo | None],
        clock: Clock,
        log: RcutilsLogger,
    ) -> None:
        self.settings = settings
        self.active = False
        self.degraded = self.refused = self.advice = ""
        self._depth = BitDepth(settings.input_bits)
        self._publishers, self._account, self._timings = publishers, account, timings
        self._camera_info, self._clock, self._log = camera_info, clock, log
        # Two threads update the engine: the worker's before each frame, the executor's at once.
        self._update_lock = threading.Lock()
        self._applied: tuple[Engine, dict[str, Any]] | None = None
        self._proven: dict[str, Any] = {}
        self._failures = 0
        self._stamp_before_ns: int | None = None
        self._throttle = Throttle()

    def process(self, engine: Engine, frame: Frame, progress: Progress) -> None:
        """Handle one frame; never raises."""
        if self._inactive(frame):
            return
        settings = self.settings
        times = {"wait": since_ms(frame.received_at)}
        try:
            started = time.monotonic()
            picture = self._decode(frame.message, settings.input_bits)
            times["read"] = since_ms(started)  # the engine has a stage `decode` of its own
        except PictureError as error:
            self._drop(frame, error.reason, str(error))
            return
        except Exception as error:  # noqa: BLE001 - a camera can send what nobody thought of
            self._drop(frame, ledger.UNDECODABLE, f"{type(error).__name__}: {error}")
            return
        result = self._fuse(engine, frame, picture, progress)
        if result is None or self._inactive(frame) or not frame.claim():
            return
        self._failures, self._proven = 0, self._applied[1] if self._applied else {}
        try:
            times.update(result.stage_ms)
            started = time.monotonic()
            mask = remap(
                result.mask,
                result.confidence,
                settings.id_map.table(engine.labels.names()),
                settings.min_confidence,
            )
            fused = FusedFrame(
                result=result,
                header=frame.message.header,
                mask=mask,
                palette=engine.labels.palette(),
                jpeg_quality=settings.jpeg_quality,
                camera_info=self._camera_info(),
            )
            self._publishers.publish(fused)
        except Exception as error:  # noqa: BLE001 - one result that cannot be sent must not stop the node
            causes = f"{type(error).__name__}: {error}", dds.shared_memory_warning()
            self._count(ledger.PUBLISH_ERROR, "; ".join(filter(None, causes)))
            return
        self._account.published()
        times["publish"] = since_ms(started)
        times["total"] = since_ms(frame.received_at)
        self._timings.add(times, self._age_ms(frame))

    def begin(self) -> None:
        """Treat the next frame as the first of a stream."""
        self._stamp_before_ns = None

    def hung(self, text: str) -> None:
        """Count the frame of an engine that was given up, and log `text`."""
        self._count(ledger.ENGINE_HUNG, text)

    def loaded(self, engine: Engine, settings: Settings) -> None:
        """Note the settings that an engine was loaded with, which are in force in it now."""
        with self._update_lock:
            self._applied = engine, settings.sampling
        self._failures, self._proven, self.refused = 0, settings.sampling, ""

    def hurry(self, engine: Engine) -> None:
        """End a frame of many steps soon, because it will not be published."""
        with self._update_lock, suppress(Exception):
            self._applied = None  # the next frame gets what is in force
            engine.update(**(self.settings.sampling | {"steps": 1}))

    def update(self, engine: Engine) -> bool:
        """Give an engine the sampling parameters in force; return whether it had others."""
        with self._update_lock:
            wanted = self.settings.sampling
            if self._applied == (engine, wanted):
                return False
            self._applied = engine, wanted
            try:
                engine.update(**wanted)
            except Exception as error:  # noqa: BLE001 - a value that it refuses must not end the node
                self.refused = f"the engine keeps its former sampling parameters: {error}"
                self._log.error(f"{self.refused[0].upper()}{self.refused[1:]}")
            else:
                self.refused, self._failures = "", 0
            return True

    def degrade(self, text: str) -> None:
        """Say that the node runs worse than configured, and why."""
        self.degraded = text
        self._log.error(f"Degraded: {text}")

    def _fuse(
        self, engine: Engine, frame: Frame, picture: NDArray[np.uint8], progress: Progress
    ) -> FuseResult | None:
        try:
            self.update(engine)
            self._follow(engine, nanoseconds(frame.message.header.stamp))
            return engine.fuse(picture, self._publishers.wanted_extras(), wait=False)
        except ValueError as error:
            self._drop(frame, ledger.UNSUPPORTED, str(error))
        except LoadCancelled:  # the node stops while networks for another size are made
            if frame.claim():
                self._account.drop(ledger.INACTIVE)
        except Exception as error:  # noqa: BLE001 - any backend may raise anything
            if frame.claim():
                self._engine_failed(engine, error, progress)
        return None

    def _decode(self, message: Any, input_bits: int) -> NDArray[np.uint8]:
        if self._depth.bits != input_bits:
            self._depth = BitDepth(input_bits)
        picture = decode(message, self._depth)
        before, self.advice = self.advice, self._depth.hint()
        if self.advice and not before:
            self._log.warning(f"The pictures may come out too dark: {self.advice}")
        return picture

    def _inactive(self, frame: Frame) -> bool:
        if self.active:
            return False
        if frame.claim():
            self._account.drop(ledger.INACTIVE)
        return True

    def _follow(self, engine: Engine, stamp_ns: int) -> None:
        """Begin a new stream if a frame does not follow the one that was fused before it."""
        before_ns, self._stamp_before_ns = self._stamp_before_ns, stamp_ns
        if before_ns is None or not 0 < stamp_ns - before_ns <= _LONGEST_GAP_NS:
            engine.forget()

    def _drop(self, frame: Frame, reason: str, text: str) -> None:
        if frame.claim():
            self._count(reason, text)

    def _count(self, reason: str, text: str) -> None:
        count = self._account.drop(reason)
        if self._throttle.allows(reason):
            self._log.warning(f"Frame dropped, {reason} ({count} so far): {one_line(text)[:500]}")

    def _engine_failed(self, engine: Engine, error: Exception, progress: Progress) -> None:
        count = self._account.drop(ledger.ENGINE_ERROR)
        self._failures += 1
        text = f"{type(error).__name__}: {one_line(str(error))[:500]}"
        if self._throttle.allows(ledger.ENGINE_ERROR):
            self._log.error(f"The engine failed on a frame ({count} so far): {text}")
        if self._failures < _FALL_BACK_AFTER:
            return
        unproven = self._unproven()
        if unproven:  # another backend would fail too; this one recovers when they are set back
            if self._throttle.allows("unproven"):
                self._log.error(
                    f"The engine has fused nothing since {unproven}; set that back, or choose less"
                )
            return
        failed = engine.backend_name
        try:
            backend = engine.fall_back(progress)
        except Exception as fall_back_error:  # noqa: BLE001 - the fallback may fail like the backend
            backend = None
            text = f"{text}; falling back: {one_line(str(fall_back_error))[:500]}"
        if backend is not None:
            self._failures = 0
            self.degrade(f"backend {failed} failed, running on {backend} ({text})")
        elif self._throttle.allows("no_fallback"):
            self.degrade(f"backend {failed} fails and there is no other ({text})")

    def _unproven(self) -> str:
        """Name the sampling parameters that no frame has been fused with yet, and their values."""
        now = self.settings.sampling
        changed = [name for name in now if now[name] != self._proven.get(name)]
        return ", ".join(f"{name} became {now[name]}" for name in changed)

    def _age_ms(self, frame: Frame) -> float | None:
        stamp_ns, now_ns = nanoseconds(frame.message.header.stamp), self._clock.now().nanoseconds
        age = age_ms(stamp_ns, frame.clock_ns, now_ns) if frame.in_order else None
        if age is None and frame.in_order and stamp_ns != 0 and self._throttle.allows("age"):
            self._log.warning(_explain_clocks((now_ns - stamp_ns) / 1e9, now_ns))
        return age


def _explain_clocks(behind_s: float, now_ns: int) -> str:
    if now_ns == 0:
        return "use_sim_time is set and nothing publishes /clock: the age of frames is unknown"
    if behind_s < 0.0:
        return (
            f"Image stamps are {-behind_s:.3f} s ahead of the node's clock; synchronise the clocks "
            "of camera and node"
        )
    return (
        f"Image stamps are {behind_s:.0f} s behind the node's clock; for a recording, set "
        "use_sim_time and let its player publish /clock"
    )
