"""Running a node until somebody asks it to stop."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor

try:
    from rclpy.experimental.events_executor import EventsExecutor
except ImportError:  # before Kilted
    EventsExecutor = SingleThreadedExecutor


class StopRequest:
    """Set by SIGINT or SIGTERM, however often they come.

    rclpy's own handlers shut the context down under a node that is still publishing; with these,
    the node goes through its lifecycle first, and a second Ctrl-C is no KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def __call__(self) -> bool:
        """Whether the process was asked to stop."""
        return self._asked

    def ignore_more(self) -> None:
        """Ignore signals from now on, as the last thing before the process ends.

        Python takes its handlers away on its way out; one more signal then would kill the process
        and make a clean stop look like a crash.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True


def make_executor() -> Executor:
    """Return the executor that costs least for one busy subscription."""
    return EventsExecutor()


def spin_until(executor: Executor, stop: Callable[[], bool]) -> None:
    """Run callbacks until `stop()` is true or the context is shut down."""
    # EventsExecutor.spin() does not return in rclpy 9.1; spin_once does.
    with contextlib.suppress(ExternalShutdownException):
        while rclpy.ok() and not stop():
            executor.spin_once(timeout_sec=0.1)
