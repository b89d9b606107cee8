"""Passes progress on: repeats it during a long step, and remembers if the receiver raised."""

from __future__ import annotations

import contextlib
import queue
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
    texts: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None ends the repeating

    def tell(text: str) -> None:
        texts.put(text)
        progress(text)

    def repeat() -> None:
        text: str | None = "working"
        since = time.monotonic()
        while text is not None:
            try:
                text, since = texts.get(timeout=every_s), time.monotonic()
            except queue.Empty:
                with contextlib.suppress(Exception):
                    progress(f"{text} ({time.monotonic() - since:.0f} s so far)")

    thread = threading.Thread(target=repeat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield tell
    finally:
        texts.put(None)
        thread.join()


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
