"""`magicfuse bag fuse` over many bags: one after another, and on Ray."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from support.fuse_bags import (
    command,
    contents,
    drive,
    environment,
    fuse,
    spoil,
)
from support.small_models import SMALL_FEW_STEP

from magicfuse_ros.bags import fleet
from magicfuse_ros.bags.fuse_plan import FuseOptions
from magicfuse_ros.bags.fuse_workspace import partial_of
from magicfuse_ros.bags.reader import BagError, Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.contract import EngineSettings
from magicfuse_ros.runtime.engine import load_engine


def three_bags(folder):
    """Three bags, of which one holds a damaged frame and one nothing that can be fused."""
    folder.mkdir()
    drive(folder / "monday", frames=3)
    drive(folder / "tuesday", "sqlite3", frames=4, spoil=spoil)
    with BagWriter(folder / "notes") as bag:
        bag.add_topic(Topic("/notes", "std_msgs/msg/String"))
    (folder / "readme.txt").touch()
    return folder


def test_a_pattern_is_done_one_bag_after_another(tmp_path):
    three_bags(tmp_path / "in")
    result = command(f"{tmp_path}/in/*", tmp_path / "out")
    assert result.returncode == 2, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["fused", "left", "out", "bag"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["6", "0", "monday"],
        ["0", "0", "notes:"],
        ["5", "3", "tuesday"],
        ["11", "3", "2"],
    ]
    assert "FAILED: bag" in lines[2]
    assert lines[-1].endswith("2 of 3 bags")
    fuse(tmp_path / "in" / "tuesday", tmp_path / "alone")
    # Not the folder's name but all that is in it.
    assert Counter(contents(tmp_path / "alone")[2]) == Counter(
        contents(tmp_path / "out/tuesday")[2]
    )
    again = command(f"{tmp_path}/in/*day", tmp_path / "out")
    assert again.returncode == 1
    assert again.stdout.count("was done before") == 2


def test_two_bags_of_one_name_are_refused(tmp_path):
    with pytest.raises(BagError, match="would all go to"):
        fleet.jobs([tmp_path / "a" / "x.mcap", tmp_path / "b" / "x.mcap"], tmp_path / "out")


RAY = "Ray is not installed; it is in the extra `fleet`"


def on_ray(folder, *arguments):
    """Start a fleet with a small real model, each worker on one thread."""
    if not (folder / "model").exists():  # its weights are random
        MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(folder / "model")
    chosen = ["--model", folder / "model", "--backend", "eager", "--device", "cpu"]
    return subprocess.Popen(
        [sys.executable, "-m", "magicfuse_ros", "bag", "fuse"]
        + [str(each) for each in (*arguments, *chosen, "--ray", "local")],
        cwd=folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def alone(folder, source, target):
    """Fuse as `on_ray` does, in this process."""
    settings = EngineSettings(model=str(folder / "model"), backend="eager", device="cpu", threads=1)
    return fuse(source, target, FuseOptions(engine=settings), load_engine)


def test_a_fleet_on_ray_makes_what_one_machine_makes(tmp_path):
    pytest.importorskip("ray", reason=RAY)
    three_bags(tmp_path / "in")
    process = on_ray(tmp_path, f"{tmp_path}/in/*", tmp_path / "out")
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 2, output + errors
    assert output.splitlines()[-1].split() == ["11", "3", "2", "of", "3", "bags"]
    for name in ("monday", "tuesday"):
        alone(tmp_path, tmp_path / "in" / name, tmp_path / name)
        assert contents(tmp_path / name) == contents(tmp_path / "out" / name)
    note = json.loads(contents(tmp_path / "out" / "monday")[4]["magicfuse_bag_fuse"])
    assert note["identity"]["runs_on"] == "eager on cpu"
    assert note["identity"]["parallel"] == "off"  # `auto` may choose otherwise another time


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_fleet_that_is_stopped_goes_on_with_the_same_command(tmp_path, number):
    pytest.importorskip("ray", reason=RAY)
    drive(tmp_path / "in", frames=60)
    for attempt in range(5):  # the bag may be done before this process gets to stop it
        folder = tmp_path / f"out{attempt}"
        stopped = on_ray(tmp_path, tmp_path / "in", folder)
        journal = partial_of(folder / "in") / "frames.journal"
        while stopped.poll() is None and not (folder / "in").exists():
            if journal.exists() and journal.stat().st_size > 0:
                stopped.send_signal(number)
                break
            time.sleep(0.01)
        output, errors = stopped.communicate(timeout=900)
        if stopped.returncode != 0:
            break
    assert stopped.returncode == 130, output + errors
    assert "the same command goes on" in errors
    assert "0 of 1 bags" in output
    resumed = on_ray(tmp_path, tmp_path / "in", folder)
    output, errors = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, output + errors
    assert "were done before" in errors


def test_a_task_whose_worker_is_killed_goes_on_in_another(tmp_path):
    pytest.importorskip("ray", reason=RAY)
    drive(tmp_path / "in", frames=60)
    for attempt in range(5):  # the bag may be done before this process gets to kill
        folder = tmp_path / f"out{attempt}"
        process = on_ray(tmp_path, tmp_path / "in", folder)
        partial = partial_of(folder / "in")
        killed = False
        while not killed and process.poll() is None and not (folder / "in").exists():
            journal = partial / "frames.journal"
            if journal.exists() and journal.stat().st_size > 0:
                killed = kill_holder(partial / "lock")
            time.sleep(0.01)
        output, errors = process.communicate(timeout=900)
        assert process.returncode == 0, output + errors
        if killed and "were done before" in errors:
            break
    else:
        pytest.fail(f"no worker was killed amid its work:\n{errors}")
    assert output.splitlines()[-1].split() == ["120", "0", "1", "of", "1", "bags"]
    assert int(re.search(r"\((\d+) frames were done before", errors)[1]) < 120
    alone(tmp_path, tmp_path / "in", tmp_path / "alone" / "in")
    assert contents(tmp_path / "alone" / "in") == contents(folder / "in")
    assert [path.name for path in folder.iterdir()] == ["in"]


def kill_holder(path):
    """Kill the process that has `path` open; say whether there was one."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            if link.readlink() == path:
                os.kill(int(link.parts[2]), signal.SIGKILL)
                return True
    return False
