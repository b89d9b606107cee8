"""Rolling statistics of the running node: time of each stage, age at publish, frame rates."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from dataclasses import dataclass

import numpy as np

from magicfuse_ros.ros.ledger import Account

_WINDOW_S = 30.0
_WINDOW_LENGTH = 2000
_RATE_WINDOW_S = 5.0
_OLDEST_MS = 3_600_000.0


@dataclass(frozen=True)
class Summary:
    """Median, 95th percentile and largest of a window of times, in milliseconds."""

    p50: float
    p95: float
    max: float


class Timings:
    """The times of the last 30 s by name; written by the worker, read by the executor.

    `ages_unknown` counts the published frames, since the start, whose age the clocks do not give.
    """

    def __init__(self) -> None:
        self.ages_unknown = 0
        self._lock = threading.Lock()
        self._windows: dict[str, deque[tuple[float, float]]] = {}

    def add(self, times_ms: dict[str, float], age_ms: float | None) -> None:
        """Add one published frame's times and its age, in milliseconds; see `age_ms`."""
        now = time.monotonic()
        self.ages_unknown += age_ms is None
        ages = {} if age_ms is None else {"age": age_ms}
        with self._lock:
            for name, value in (times_ms | ages).items():
                window = self._windows.setdefault(name, deque(maxlen=_WINDOW_LENGTH))
                window.append((now, value))

    def clear(self) -> None:
        """Forget the times."""
        with self._lock:
            self._windows.clear()

    def summaries(self) -> dict[str, Summary]:
        """Summarise each window that holds anything, in the order the names first came."""
        since = time.monotonic() - _WINDOW_S
        with self._lock:
            values = {
                name: [value for at, value in window if at >= since]
                for name, window in self._windows.items()
            }
        return {
            name: Summary(*np.percentile(times, (50.0, 95.0, 100.0)).tolist())
            for name, times in values.items()
            if times
        }


def since_ms(start: float) -> float:
    """Milliseconds since `start`, a time in seconds of `time.monotonic`."""
    return (time.monotonic() - start) * 1e3


def age_ms(stamp_ns: int, received_ns: int, published_ns: int) -> float | None:
    """Age of a frame when its results are published, in milliseconds.

    `stamp_ns` is the image's stamp; `received_ns` and `published_ns` are the node's clock
    (simulated, where `use_sim_time` is set) at receipt and after publishing. The age is None if
    they do not give it: there is no stamp (0), it lies in the future, the clock jumped back while
    the frame was fused, or the age is an hour or more (a recording is replayed without simulated
    time).
    """
    age = (published_ns - stamp_ns) / 1e6
    if stamp_ns == 0 or published_ns < received_ns or not 0.0 <= age < _OLDEST_MS:
        return None
    return age


class Recent:
    """What happened in the last 5 s: a short history of accounts, one for each diagnostics tick."""

    def __init__(self) -> None:
        self._history: deque[tuple[float, Account]] = deque([(time.monotonic(), Account(0, 0))])

    def add(self, account: Account) -> None:
        """Add the present account; forget those older than the window, save the newest of them."""
        now = time.monotonic()
        self._history.append((now, account))
        while len(self._history) > 2 and self._history[1][0] <= now - _RATE_WINDOW_S:
            self._history.popleft()

    def restart(self, account: Account) -> None:
        """Begin the window now, so that a pause does not count in the rates."""
        self._history.clear()
        self._history.append((time.monotonic(), account))

    def rates(self) -> tuple[float, float]:
        """Frames in and out, per second."""
        (start, first), (end, last) = self._history[0], self._history[-1]
        seconds = end - start
        if seconds <= 0.0:
            return 0.0, 0.0
        return (
            (last.frames_in - first.frames_in) / seconds,
            (last.frames_out - first.frames_out) / seconds,
        )

    def dropped(self) -> dict[str, int]:
        """Frames dropped within the window, by reason."""
        first, last = self._history[0][1], self._history[-1][1]
        return dict(Counter(last.dropped) - Counter(first.dropped))
