"""DDS as the package's processes use it: Fast DDS's profile, its shared memory, ROS domains."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from pathlib import Path

from magicfuse_ros.resources import share_dir

PROFILE_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"
PROFILE_VARIABLES = (PROFILE_VARIABLE, "FASTRTPS_DEFAULT_PROFILES_FILE")

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Fast DDS keeps its segments
SEGMENT_BYTES = 36 * 2**20
"""Shared memory of one process with the shipped profile: 32 MiB of messages and the accounting."""
_FULL_BYTES = 2**20

_SEGMENT_LOCK = re.compile(r"fast(?:rtps|dds)_[0-9a-z]{16}_el")
_YOUNGEST_S = 2.0
"""A lock file younger than this may belong to a process that has yet to lock it."""


def prepare(environment: MutableMapping[str, str]) -> list[str]:
    """Make a command's process ready for its first node; return warnings for its user.

    This sets the shipped Fast DDS profile unless the user chose one, makes sure that ROS can write
    its logs, and clears shared memory of what killed processes left in it.
    """
    use_shipped_profile(environment)
    return [
        text
        for text in (writable_log_folder(environment), clear_shared_memory(environment))
        if text
    ]


def use_shipped_profile(environment: MutableMapping[str, str]) -> None:
    """Point Fast DDS at ``config/fastdds.xml`` unless the user chose a profile.

    Without a profile, Fast DDS has 512 KiB of shared memory, and most larger images that are sent
    best effort get lost. Call this before the process makes its first node.
    """
    if not has_profile(environment):
        environment[PROFILE_VARIABLE] = str(share_dir() / "config" / "fastdds.xml")


def writable_log_folder(environment: MutableMapping[str, str]) -> str:
    """Let ROS log to a temporary folder if it cannot write to its own; return a warning then.

    rclpy refuses to start without a folder for logs. But a read-only home must not stop a node,
    whose log goes to the terminal as well.
    """
    home = environment.get("ROS_HOME") or Path(environment.get("HOME", "/"), ".ros")
    folder = Path(environment.get("ROS_LOG_DIR") or Path(home, "log")).expanduser()
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder, os.W_OK | os.X_OK):
            return ""
    environment["ROS_LOG_DIR"] = tempfile.mkdtemp(prefix="ros_log_")
    return f"{folder} cannot be written: ROS logs to {environment['ROS_LOG_DIR']}"


def clear_shared_memory(environment: Mapping[str, str], folder: Path = SHARED_MEMORY) -> str:
    """Remove what killed processes left of Fast DDS in `folder`; warn if that is still too full.

    Only segments whose lock nobody holds are removed, as ``fastdds shm clean`` does it: a process
    locks the file ``<segment>_el`` for as long as it lives.
    """
    with suppress(OSError):  # there is no such folder, or it is none of ours
        for lock in folder.iterdir():
            if _SEGMENT_LOCK.fullmatch(lock.name):
                with suppress(OSError):  # somebody holds it, or it is another user's
                    _remove_if_dead(lock)
    return shared_memory_warning(folder, SEGMENT_BYTES if has_profile(environment) else _FULL_BYTES)


def has_profile(environment: Mapping[str, str]) -> bool:
    """Whether a Fast DDS profile is set, such as the shipped one with room for large images."""
    return any(environment.get(name) for name in PROFILE_VARIABLES)


def shared_memory_warning(folder: Path = SHARED_MEMORY, needed_bytes: int = _FULL_BYTES) -> str:
    """Say that shared memory is full; empty if `needed_bytes` are free, or if there is none."""
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    if free >= needed_bytes:
        return ""
    return (
        f"shared memory is full: {folder} has {free / 2**20:.0f} MiB free and Fast DDS takes "
        f"{needed_bytes // 2**20} MiB a process, without which images arrive late or not at all; "
        f"see what fills it with: ls -lhS {folder}"
    )


def _remove_if_dead(lock: Path) -> None:
    if time.time() - lock.stat().st_mtime < _YOUNGEST_S:
        return
    descriptor = os.open(lock, os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        lock.with_name(lock.name.removesuffix("_el")).unlink(missing_ok=True)
        lock.unlink()
    finally:
        os.close(descriptor)


def isolate(environment: MutableMapping[str, str], domain_id: int) -> None:
    """Keep the traffic on this machine and in a ROS domain of its own, by changing `environment`.

    `domain_id` is 0 to 101, the numbers that are safe on every platform; others raise `ValueError`.
    """
    if not 0 <= domain_id <= 101:
        raise ValueError(f"ROS domain {domain_id}: accepted are 0 to 101")
    environment["ROS_DOMAIN_ID"] = str(domain_id)
    environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    environment.pop("ROS_STATIC_PEERS", None)
