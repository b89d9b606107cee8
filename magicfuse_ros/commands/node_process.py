"""Starts `fuse_node` in a process of its own, watches it, and stops it without leaving anything."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from magicfuse_ros.ros.program import STOP_SIGNALS

_SIGNALS = ((signal.SIGINT, 10.0), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0))
_LOG_PREFIX = re.compile(r"^\[([A-Z]+)\] \[[\d.]+\] \[[^\]]*\]: ", re.MULTILINE)


def fuse_node_command(
    remappings: Mapping[str, str], parameters: Mapping[str, str | float | bool]
) -> list[str]:
    """Return the command that runs `fuse_node` under this Python.

    `remappings` go from names in the node to those to use: ``{"image": "/camera/image"}``.
    """
    command = [sys.executable, "-m", "magicfuse_ros.ros.node.fuse_node", "--ros-args"]
    for name, value in remappings.items():
        command += ["-r", f"{name}:={value}"]
    for name, setting in parameters.items():
        spelled = str(setting).lower() if isinstance(setting, bool) else str(setting)
        command += ["-p", f"{name}:={spelled}"]
    return command


class NodeProcess(AbstractContextManager["NodeProcess"]):
    """A child process with its output in a file; a context manager that ends it.

    The child leads a session of its own, so that Ctrl-C at a terminal reaches it only from here.
    SIGINT and SIGTERM are blocked in the child until its program handles them (`StopRequest`).
    `environment` is the whole of its own; `log` takes its stdout and stderr, and is replaced.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        # Until its program handles them, signals would kill Python's start.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
                    list(command),
                    env=dict(environment),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    @property
    def pid(self) -> int:
        """The process id, as in /proc."""
        return self._process.pid

    @property
    def exit_status(self) -> int | None:
        """The exit status; None while it runs, and negative for the signal that ended it."""
        return self._process.poll()

    def last_lines(self, count: int = 12) -> list[str]:
        """Return the end of its output, without ROS's time stamps."""
        text = _LOG_PREFIX.sub(r"\1: ", self.log.read_text(encoding="utf-8", errors="replace"))
        lines = [line.removeprefix("INFO: ") for line in text.splitlines() if line.strip()]
        return lines[-count:]

    def stop(self) -> None:
        """End it: with SIGINT, then with SIGTERM, then kill it; each goes to its children too."""
        for number, patience_s in _SIGNALS:
            if self.exit_status is None or number == signal.SIGKILL:
                # The process group does not exist if it is empty, as it should be by now.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, number)
            try:
                self._process.wait(patience_s)
            except subprocess.TimeoutExpired:
                continue

    def __exit__(self, *_: object) -> None:
        self.stop()
