"""Progress on its way to whoever is told: repeated while a step is long, and noted if it raises."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from magicfuse_ros.runtime.contract import Progress

EVERY_S = 5.0


@contextlib.contextmanager
def heartbeat(progress: Progress, every_s: float = EVERY_S) -> Iterator[Progress]:
    """Pass progress on, and say the last text again when nothing was said for `every_s` seconds.

    What `progress` raises reaches whoever told it; from a repetition it is dropped, so that the
    next text raises it in the thread that works.
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
        self._told = self._since
        self.over = threading.Event()

    def tell(self, text: str) -> None:
        self._text, self._since = text, time.monotonic()
        self._told = self._since
        self._progress(text)

    def run(self) -> None:
        while not self.over.wait(max(0.0, self._told + self._every_s - time.monotonic())):
            now = time.monotonic()
            if now - self._told >= self._every_s:
                self._told = now
                with contextlib.suppress(Exception):
                    self._progress(f"{self._text} ({now - self._since:.0f} s so far)")


class NotesStop:
    """Passes progress on and notes in `stopped` that it raised, which is a wish to stop.

    An engine can so tell that wish from a fault of its backend.
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
