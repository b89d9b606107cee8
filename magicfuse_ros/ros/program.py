"""Runs a node as a program that can be stopped from its first moment on and has a `--help`.

It imports nothing of ROS before it handles signals, because that import takes most of a second.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magicfuse_ros.ros.managed_node import ManagedNode
    from magicfuse_ros.ros.parameter_table import ParameterSpec

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)

CANNOT_START = 2
"""Exit status for arguments that ROS cannot read; command lines usually have this one."""


class StopRequest:
    """Set by SIGINT or SIGTERM, however often they come.

    rclpy's own handlers shut the context down while the node is still publishing. With these, the
    node goes through its lifecycle first, and a second Ctrl-C raises no KeyboardInterrupt.
    """

    def __init__(self) -> None:
        self._asked = False
        for number in STOP_SIGNALS:
            signal.signal(number, self._ask)
        # The process that started this one may have blocked these signals until now.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def __call__(self) -> bool:
        """Whether the process was asked to stop."""
        return self._asked

    def ignore_more(self) -> None:
        """Ignore signals from now on, as the last thing before the process ends.

        Python removes its handlers when it ends. One more signal would then kill the process and
        make a clean stop look like a crash.
        """
        for number in STOP_SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def _ask(self, _number: int, _frame: object) -> None:
        self._asked = True


def run(
    name: str,
    load: Callable[[], type[ManagedNode[Any]]],
    argv: Sequence[str] | None = None,
    **node_arguments: Any,
) -> int:
    """Run a node until SIGINT or SIGTERM, and return its exit status.

    The status is 0 if the node was asked to stop, at whatever moment, and after `--help`. It is 2
    if ROS cannot read the arguments. Later problems appear in the node's log and its diagnostics.

    Parameters
    ----------
    load
        Imports and returns the node's class; the node_arguments are passed to it.
    argv
        Command line with its program name; None for `sys.argv`.
    """
    stop = StopRequest()
    words = list(sys.argv if argv is None else argv)
    if {"-h", "--help"} & set(words[1:]):
        print(usage(name, load().parameters))  # noqa: T201 - asked for
        return 0
    abandoned = False
    try:
        abandoned = _run(lambda: load()(stop_requested=stop, **node_arguments), words, stop)
    except _CannotStart as error:
        print(f"{name} cannot start: {error}", file=sys.stderr)  # noqa: T201 - there is no log yet
        return CANNOT_START
    finally:
        stop.ignore_more()
    if abandoned:
        # Its thread is inside native code; Python's orderly exit would tear that down under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


def usage(name: str, parameters: Sequence[ParameterSpec]) -> str:
    """Return what `--help` prints."""
    lines = [
        f"usage: {name} [--ros-args [-r NAME:=TOPIC] [-p PARAMETER:=VALUE] [--params-file FILE]]",
        "",
        "A ROS 2 lifecycle node; its topics are in docs/topics_and_parameters.md. Its parameters:",
        "",
    ]
    for each in parameters:
        lines.append(f"  {each.name} (default: {each.default_text or 'empty'})")
        lines.append(f"      {each.description} Accepted: {each.accepted}.")
    return "\n".join(lines)


class _CannotStart(Exception):  # noqa: N818 - never leaves this file
    pass


def _run(make: Callable[[], ManagedNode[Any]], words: Sequence[str], stop: StopRequest) -> bool:
    """Run the node; return whether one of its threads still runs."""
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from rclpy.signals import SignalHandlerOptions

    from magicfuse_ros.messages import one_line
    from magicfuse_ros.ros import dds

    try:  # this executor costs least for one busy subscription
        from rclpy.experimental.events_executor import EventsExecutor as Executor
    except ImportError:  # before Kilted
        Executor = SingleThreadedExecutor

    if stop():
        return False
    log_warning = dds.writable_log_folder(os.environ)
    memory_warning = dds.clear_shared_memory(os.environ)
    try:
        rclpy.init(args=list(words), signal_handler_options=SignalHandlerOptions.NO)
        node = make()
    except Exception as error:
        rclpy.try_shutdown()
        # rcl has no common type for bad arguments.
        causes = one_line(error), dds.shared_memory_warning()
        raise _CannotStart("; ".join(filter(None, causes))) from error
    node.warn_once(log_warning)
    node.memory_warning = memory_warning
    executor = Executor()
    executor.add_node(node)
    try:
        if not stop():
            node.autostart()
        # EventsExecutor.spin() does not return in rclpy 9.1; spin_once does.
        with suppress(ExternalShutdownException):
            while rclpy.ok() and not stop():
                executor.spin_once(timeout_sec=0.1)
    finally:
        node.stop()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    return node.abandoned
