"""Running a node until somebody asks it to stop."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import rclpy
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor

try:
    from rclpy.experimental.events_executor import EventsExecutor
except ImportError:  # before Kilted
    EventsExecutor = SingleThreadedExecutor


def make_executor() -> Executor:
    """Return the executor that costs least for one busy subscription."""
    return EventsExecutor()


def spin_until(executor: Executor, stop: Callable[[], bool]) -> None:
    """Run callbacks until `stop()` is true or the context is shut down."""
    # EventsExecutor.spin() does not return in rclpy 9.1; spin_once does.
    with contextlib.suppress(ExternalShutdownException):
        while rclpy.ok() and not stop():
            executor.spin_once(timeout_sec=0.1)
