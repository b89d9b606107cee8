"""Lines of text that say what a long work is at."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TextIO


def say(text: str) -> None:
    """Print a line on stderr, at once."""
    print(text, file=sys.stderr, flush=True)


class ProgressLine:
    """One line that is overwritten on a terminal; elsewhere a new line now and then."""

    def __init__(self, stream: TextIO, period_s: float = 5.0) -> None:
        self._stream, self._period_s = stream, period_s
        self._terminal = stream.isatty()
        self._last = ("", 0.0)

    def __call__(self, text: str) -> None:
        """Show a text; its part before the first comma or colon names the activity."""
        activity = text.replace(":", ",").partition(",")[0]
        if self._terminal:
            columns = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\033[K{text[:columns]}")
        elif activity != self._last[0] or time.monotonic() - self._last[1] > self._period_s:
            self._stream.write(f"{text}\n")
            self._last = (activity, time.monotonic())
        self._stream.flush()

    def end(self, text: str = "") -> None:
        """Clear the line, and print `text` in its place if it is not empty."""
        if self._terminal:
            self._stream.write("\r\033[K")
        if text:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._last = ("", 0.0)
