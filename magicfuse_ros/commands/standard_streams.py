"""Standard output and errors that no closed pipe and no locale can make fail."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def make_patient() -> None:
    """Let this process print any text at any time.

    Characters that the locale cannot show are escaped. When the reader of a pipe has gone
    (`| head -1`), the text is dropped and the work goes on; likewise if a stream was closed before
    the start.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        old = getattr(sys, name)
        if old is None:
            new = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        else:
            old.flush()
            new = io.TextIOWrapper(
                io.BufferedWriter(_Pipe(number, "w", closefd=False)),
                encoding=old.encoding,
                errors="backslashreplace",
                line_buffering=old.line_buffering or name == "stderr",
                write_through=old.write_through,
            )
        setattr(sys, name, new)


def flushed() -> bool:
    """Write out what was printed; if that is impossible, say why on stderr and return False."""
    try:
        sys.stdout.flush()
    except OSError as error:  # a file on a full disk
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115
        text = f"magicfuse: standard output cannot be written: {error.strerror}"
        print(text, file=sys.stderr, flush=True)
        return False
    return True


class _Pipe(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return len(memoryview(data).cast("B"))
