"""The frame account: every frame is published, dropped for a named reason, or pending."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field

REPLACED = "replaced"
"""A newer frame arrived before the worker took this one."""
DISABLED = "disabled"
"""The node is paused by ~/enable."""
INACTIVE = "inactive"
"""The node was deactivated while the frame was under way."""
UNDECODABLE = "undecodable"
"""The message cannot be decoded, for a reason that `PictureError` has no name for."""
UNSUPPORTED = "unsupported_frame"
"""The engine cannot fuse a frame like this one."""
ENGINE_ERROR = "engine_error"
"""The engine failed on this frame."""
ENGINE_HUNG = "engine_hung"
"""The engine did not come back from this frame in time."""
PUBLISH_ERROR = "publish_error"
"""The results could not be encoded or sent."""


@dataclass(frozen=True)
class Account:
    """The counts at one moment; `frames_in == frames_out + dropped_total + pending`.

    `dropped` are the frames by reason: the names above, or a `PictureError.reason`.
    """

    frames_in: int
    frames_out: int
    dropped: dict[str, int] = field(default_factory=dict)

    @property
    def dropped_total(self) -> int:
        """Frames dropped, for all reasons."""
        return sum(self.dropped.values())

    @property
    def pending(self) -> int:
        """Frames neither published nor dropped yet, in the mailbox or being fused: 0 to 2."""
        return self.frames_in - self.frames_out - self.dropped_total


class Ledger:
    """Counts frames from two threads; one lock makes `account` consistent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._frames_in = 0
        self._frames_out = 0
        self._dropped: Counter[str] = Counter({REPLACED: 0})

    def received(self) -> None:
        """Count a frame that arrived."""
        with self._lock:
            self._frames_in += 1

    def published(self) -> None:
        """Count a frame whose results were published."""
        with self._lock:
            self._frames_out += 1

    def drop(self, reason: str) -> int:
        """Count a frame that was dropped; return how many were dropped for this reason so far."""
        with self._lock:
            self._dropped[reason] += 1
            return self._dropped[reason]

    def account(self) -> Account:
        """Return a consistent copy of all counts."""
        with self._lock:
            return Account(self._frames_in, self._frames_out, dict(self._dropped))


class Throttle:
    """Says when a repeated event may be logged again: at once, then every `period_s` seconds."""

    def __init__(self, period_s: float = 10.0) -> None:
        self._period_s = period_s
        self._last: dict[str, float] = {}

    def allows(self, key: str) -> bool:
        """Whether the event `key` may be logged now; if so, its period starts anew."""
        now = time.monotonic()
        if key in self._last and now - self._last[key] < self._period_s:
            return False
        self._last[key] = now
        return True
