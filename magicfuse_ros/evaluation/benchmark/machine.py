"""What a benchmark's figures were measured on: the machine, its load, and what a process uses.

Read from Linux's /proc. Nothing here names the machine, its users or its folders.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import magicfuse_ros

_PACKAGES = (
    "torch", "openvino", "tensorrt", "transformers", "numpy",
    "opencv-python-headless", "ros-rclpy", "ros-rmw-fastrtps-cpp",
)  # fmt: skip


class BenchmarkError(RuntimeError):
    """A measurement cannot be made; the text says which, why, and what to do."""


class Usage(NamedTuple):
    """What a process uses at one moment.

    Attributes
    ----------
    memory_mb, peak_mb
        Resident memory now, and its largest so far, in MiB.
    threads, descriptors
        Threads, and open file descriptors.
    cpu_s
        Processor time used so far by all of its threads, in seconds.
    """

    memory_mb: float
    peak_mb: float
    threads: int
    descriptors: int
    cpu_s: float


def usage(pid: int | str = "self") -> Usage:
    """Read what a process uses.

    The peak is /proc's and not getrusage's: that one starts at the size of the process it was
    forked from.

    Raises
    ------
    BenchmarkError
        There is no such process, or no /proc.
    """
    folder = Path("/proc") / str(pid)
    try:
        status = (folder / "status").read_text(encoding="ascii", errors="replace")
        # The command's name, in brackets, may hold blanks: count from behind it.
        fields = (folder / "stat").read_text(encoding="ascii", errors="replace")
        ticks = fields.rpartition(")")[2].split()[11:13]
        descriptors = len(list((folder / "fd").iterdir()))
    except OSError as error:
        raise BenchmarkError(
            f"process {pid} cannot be watched ({error.strerror}); the benchmark needs Linux's /proc"
        ) from error
    found = dict(re.findall(r"^(VmRSS|VmHWM|Threads):\s+(\d+)", status, re.MULTILINE))
    return Usage(
        memory_mb=int(found.get("VmRSS", 0)) / 1024,
        peak_mb=int(found.get("VmHWM", 0)) / 1024,
        threads=int(found.get("Threads", 0)),
        descriptors=descriptors,
        cpu_s=sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK"),
    )


def busy_and_total_s() -> tuple[float, float]:
    """Processor time of all cores since the machine started: used, and all there was, in seconds.

    Idle time and time waiting for disks count as not used.
    """
    line = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    ticks = [int(field) for field in line.split()[1:9]]
    hertz = os.sysconf("SC_CLK_TCK")
    total = sum(ticks)
    return (total - ticks[3] - ticks[4]) / hertz, total / hertz


def load() -> float:
    """Load average of the last minute: how many processes wanted a core."""
    return os.getloadavg()[0]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def facts() -> dict[str, Any]:
    """Return what the machine is, the versions of what runs on it, and the time of day."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cpu": _cpu_model(),
        "architecture": platform.machine(),
        "cores": cores(),
        "memory_gb": round(memory, 1),
        "system": platform.system(),
        "load": load(),
        "versions": {
            "magicfuse_ros": magicfuse_ros.__version__,
            "python": platform.python_version(),
            **_versions(),
        },
    }


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
