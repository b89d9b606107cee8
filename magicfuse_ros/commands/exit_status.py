"""How every command ends: one scheme of exit statuses, and what a signal does.

This module is imported first, before anything that takes time, so that signals are handled early.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

DONE = 0
INCOMPLETE = 1
"""Some of the input could not be read; the rest is done."""
FAILED = 2
"""Nothing could be done: a wrong argument, nothing to read, an output that cannot be written."""
SIGNALLED = 128
"""Plus the signal's number: 130 after SIGINT (Ctrl-C), 143 after SIGTERM."""

SCHEME = (
    "Exit status: 0 all is done, 1 some of the input could not be read, 2 nothing could be done, "
    "130 stopped by SIGINT (Ctrl-C), 143 stopped by SIGTERM."
)

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(KeyboardInterrupt):
    """SIGINT, SIGTERM or SIGHUP asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


class StopRequest(threading.Event):
    """Set by the first signal that asks this process to end."""

    status = DONE  # then the exit status for that signal


def status_of(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a stopped command; a plain KeyboardInterrupt counts as SIGINT."""
    return SIGNALLED + getattr(stop, "number", signal.SIGINT)


def raise_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP raise `Stopped`, so that what is open is closed.

    While modules are being imported there is nothing to close, and libraries would turn an
    exception into errors of their own. A signal then ends the process at once, with the same
    status.
    """
    _on_signals(_raise)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # in case the parent blocked them


def ignore_signals() -> None:
    """Ignore SIGINT, SIGTERM and SIGHUP from now on, as the last thing before the process ends.

    Python removes its handlers when it ends; a signal would then turn a success into a failure.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def stop_on_signals(*, impatient: bool = True) -> StopRequest:
    """Return an event that the first SIGINT, SIGTERM or SIGHUP sets, for work that ends in steps.

    A second SIGINT raises `Stopped`, unless `impatient` is False, which is for work that ends soon
    after the first and has to finish.
    """
    stop = StopRequest()

    def request(number: int, _frame: FrameType | None) -> None:
        if impatient and stop.is_set() and number == signal.SIGINT:
            raise Stopped(number)
        stop.status = SIGNALLED + number
        stop.set()

    _on_signals(request)
    return stop


def _on_signals(handler: signal._HANDLER) -> None:
    for number in SIGNALS:
        # What nohup asks for is kept. SIGINT is ignored in whatever a script starts with `&`, and
        # `kill -INT` is how scripts end recorders and players all the same.
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            os._exit(SIGNALLED + number)
        frame = frame.f_back
    raise Stopped(number)
