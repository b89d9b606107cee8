"""What the package does about DDS before its first node, on folders of the test itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from magicfuse_ros.ros import dds

ID = "0123456789abcdef"
MINUTE_AGO = time.time() - 60.0


def segment(folder, name, moment=MINUTE_AGO):
    """Lay down a segment and its lock as Fast DDS names them."""
    (folder / name).write_bytes(bytes(1000))
    lock = folder / f"{name}_el"
    lock.touch()
    os.utime(lock, (moment, moment))
    return lock


@pytest.mark.fault
def test_segments_of_killed_processes_go_and_all_others_stay(tmp_path):
    holder = (
        "import fcntl, sys; f = open(sys.argv[1]); fcntl.flock(f, 2); print(flush=True); input()"
    )
    for kind in ("fastrtps", "fastdds"):
        segment(tmp_path, f"{kind}_{ID}")
        lock = segment(tmp_path, f"{kind}_f{ID[1:]}")
        segment(tmp_path, f"{kind}_e{ID[1:]}", time.time())  # a process that is just starting
        with subprocess.Popen(
            [sys.executable, "-c", holder, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            process.stdout.readline()
            dds.clear_shared_memory({}, tmp_path)
            left = {f"{kind}_{first}{ID[1:]}{end}" for first in "ef" for end in ("", "_el")}
            assert {path.name for path in tmp_path.iterdir()} == left
            process.kill()
        dds.clear_shared_memory({}, tmp_path)
        young = {f"{kind}_e{ID[1:]}", f"{kind}_e{ID[1:]}_el"}
        assert {path.name for path in tmp_path.iterdir()} == young
        for path in tmp_path.iterdir():
            path.unlink()


def test_what_is_not_a_segment_is_not_touched(tmp_path):
    names = [f"fastrtps_{ID}_elx", "fastrtps_port7411_el", "sem.fastrtps_port7411_mutex", "x_el"]
    for name in names:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (MINUTE_AGO, MINUTE_AGO))
    dds.clear_shared_memory({}, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert dds.clear_shared_memory({}, tmp_path / "missing") == ""


def test_full_shared_memory_is_named(tmp_path, monkeypatch):
    assert dds.shared_memory_warning(tmp_path) == ""
    monkeypatch.setattr(dds.shutil, "disk_usage", lambda _folder: Free(3 * 2**20))
    assert dds.shared_memory_warning(tmp_path) == ""  # what a process has is enough for it
    assert dds.clear_shared_memory({}, tmp_path) == ""
    text = dds.clear_shared_memory({dds.PROFILE_VARIABLE: "x.xml"}, tmp_path)
    assert text.startswith(f"shared memory is full: {tmp_path} has 3 MiB free")
    assert f"ls -lhS {tmp_path}" in text


class Free:
    def __init__(self, free):
        self.free = free


def test_a_log_folder_that_cannot_be_written_is_replaced(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home)}
    assert dds.writable_log_folder(environment) == ""
    assert environment == {"HOME": str(home)}
    # A file in its place stops root too, whom no permission stops.
    blocked = tmp_path / "blocked"
    blocked.touch()
    for variables in ({"HOME": str(blocked)}, {"HOME": str(home), "ROS_LOG_DIR": f"{blocked}/x"}):
        text = dds.writable_log_folder(variables)
        assert str(blocked) in text
        assert variables["ROS_LOG_DIR"] in text
        assert os.access(variables["ROS_LOG_DIR"], os.W_OK)
        Path(variables["ROS_LOG_DIR"]).rmdir()
