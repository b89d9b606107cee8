"""Standard output and errors that no reader and no locale can bring down."""

from __future__ import annotations

import io
import os
import sys
from typing import Any


def make_patient() -> None:
    """Let this process print any text at any time.

    What the locale cannot show is written as an escape. When the reader of a pipe has gone
    (`| head -1`), the text goes nowhere and the work goes on. A stream that was closed before the
    start is one of those too.
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
    """Write out what was printed; False, with the reason on stderr, where that is impossible."""
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
