"""Passes progress on: repeats it during a long step, and remembers if the receiver raised."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from magicfuse_ros.runtime.contract import Progress

EVERY_S = 5.0


@contextlib.contextmanager
def heartbeat(progress: Progress, every_s: float = EVERY_S) -> Iterator[Progress]:
    """Pass progress on, and repeat the last text after every `every_s` seconds of silence.

    What `progress` raises reaches the caller that passes the text. What it raises on a repetition
    is dropped; the next text will raise it in the working thread.
    """
    beat = _Heartbeat(progress, every_s)
    thread = threading.Thread(target=beat.run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield beat.tell
    finally:
        beat.over.set()
        thread.join()


class _Heartbeat:
    def __init__(self, progress: Progress, every_s: float) -> None:
        self._progress, self._every_s = progress, every_s
        self._text, self._since = "working", time.monotonic()
        self._reported_at = self._since
        self.over = threading.Event()

    def tell(self, text: str) -> None:
        self._text, self._since = text, time.monotonic()
        self._reported_at = self._since
        self._progress(text)

    def run(self) -> None:
        while not self.over.wait(max(0.0, self._reported_at + self._every_s - time.monotonic())):
            now = time.monotonic()
            if now - self._reported_at >= self._every_s:
                self._reported_at = now
                with contextlib.suppress(Exception):
                    self._progress(f"{self._text} ({now - self._since:.0f} s so far)")


class NotesStop:
    """Passes progress on, and sets `stopped` if the receiver raises, which is how it asks to stop.

    This lets an engine tell a request to stop from a fault of its backend.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self.stopped = False

    def __call__(self, text: str) -> None:
        """Pass a text on; raises what the receiver raises."""
        try:
            self._progress(text)
        except BaseException:
            self.stopped = True
            raise
