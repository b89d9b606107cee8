"""What figures were measured on: the machine, its load, and what a process uses of it.

Everything is read from Linux's /proc. Nothing here names the machine, its users or its folders.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import magicfuse_ros

_PACKAGES = (
    "torch", "openvino", "tensorrt", "transformers", "numpy", "opencv-python-headless",
    "ros-rclpy", "ros-rmw-fastrtps-cpp",
)  # fmt: skip


class BenchmarkError(RuntimeError):
    """A measurement cannot be made; the text says which one, why, and what to do about it."""


class Usage(NamedTuple):
    """What a process uses at one moment."""

    at_s: float  # that moment, in seconds of the monotonic clock
    memory_mb: float  # resident, in MiB
    peak_mb: float  # the most that was resident so far, in MiB
    threads: int
    descriptors: int  # of open files
    cpu_s: float  # processor time that all of its threads have used so far, in seconds


def usage(pid: int | str = "self") -> Usage:
    """Read what a process uses.

    The peak is /proc's own and not getrusage's, which starts at the size of the parent process.

    Raises BenchmarkError if there is no such process, or the system has no /proc.
    """
    folder = Path("/proc") / str(pid)
    try:
        status = (folder / "status").read_text(encoding="ascii", errors="replace")
        # The command's name stands in brackets and may hold blanks, so count from behind it.
        fields = (folder / "stat").read_text(encoding="ascii", errors="replace")
        descriptors = len(list((folder / "fd").iterdir()))
    except OSError as error:
        raise BenchmarkError(
            f"process {pid} cannot be watched ({error.strerror}); the benchmark needs Linux's /proc"
        ) from error
    found = dict(re.findall(r"^(VmRSS|VmHWM|Threads):\s+(\d+)", status, re.MULTILINE))
    ticks = map(int, fields.rpartition(")")[2].split()[11:13])
    return Usage(
        at_s=time.monotonic(),
        memory_mb=int(found.get("VmRSS", 0)) / 1024,
        peak_mb=int(found.get("VmHWM", 0)) / 1024,
        threads=int(found.get("Threads", 0)),
        descriptors=descriptors,
        cpu_s=sum(ticks) / os.sysconf("SC_CLK_TCK"),
    )


def describe() -> dict[str, Any]:
    """Return what the machine is, the versions of what runs on it, its load and the time of day."""
    processors = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    cpu = re.search(r"^model name\s*:\s*(.+)$", processors, re.MULTILINE)  # on x86
    versions = {"magicfuse_ros": magicfuse_ros.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": cpu[1].strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30,
        "load": os.getloadavg()[0],
        "versions": versions,
    }
