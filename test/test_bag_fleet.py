"""`magicfuse bag fuse` over many bags: one after another, and on Ray."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

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
from magicfuse_ros.bags.fuse_engine import Interrupted
from magicfuse_ros.bags.fuse_plan import FuseOptions
from magicfuse_ros.bags.fuse_segments import partial_of
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


def test_a_fleet_on_ray_makes_what_one_machine_makes_also_when_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray", reason=RAY)
    three_bags(tmp_path / "in")
    drive(tmp_path / "in" / "wednesday", frames=20)
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(tmp_path / "model")  # random weights
    chosen = ["--model", tmp_path / "model", "--backend", "eager", "--device", "cpu"]
    words = ["bag", "fuse", f"{tmp_path}/in/*", tmp_path / "out", *chosen, "--ray", "local"]
    process = subprocess.Popen(
        [sys.executable, "-m", "magicfuse_ros", *map(str, words)],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    killed = False
    while not killed and process.poll() is None and not (tmp_path / "out" / "wednesday").exists():
        killed = kill_holder(partial_of(tmp_path / "out" / "wednesday") / "lock")
        time.sleep(0.01)
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 2, output + errors
    assert output.splitlines()[-1].split() == ["51", "3", "3", "of", "4", "bags"]
    assert killed
    assert "FAILED: bag" in output
    settings = EngineSettings(
        model=str(tmp_path / "model"), backend="eager", device="cpu", threads=1
    )
    for name in ("monday", "tuesday", "wednesday"):
        fuse(tmp_path / "in" / name, tmp_path / name, FuseOptions(engine=settings), load_engine)
        assert contents(tmp_path / name) == contents(tmp_path / "out" / name)
    note = json.loads(contents(tmp_path / "out" / "monday")[4]["magicfuse_bag_fuse"])
    assert note["identity"]["runs_on"] == "eager on cpu"
    assert note["identity"]["parallel"] == "off"  # `auto` may choose otherwise another time
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "monday", "tuesday", "wednesday"
    ]  # fmt: skip


def test_a_fleet_that_is_stopped_cancels_its_tasks(tmp_path, monkeypatch):
    """With a double of Ray: what a task loses by it is a kill's, which is tested."""
    stop, cancelled = threading.Event(), []

    class Task:
        def remote(self, job, _options):
            return job.source.name

    ray = SimpleNamespace(
        cluster_resources=dict,
        remote=lambda **_: lambda _function: Task(),
        cancel=lambda reference, force: cancelled.append((reference, force)),
        wait=lambda running, timeout: (stop.set(), ([], running))[1],  # noqa: ARG005
        shutdown=lambda: cancelled.append("shutdown"),
    )
    monkeypatch.setattr(fleet, "_started", lambda _address, _engine: ray)
    todo = fleet.jobs([tmp_path / "a", tmp_path / "b"], tmp_path / "out")
    options = FuseOptions(engine=EngineSettings())
    with pytest.raises(Interrupted):
        list(fleet.on_ray(todo, options, "local", stop=stop, progress=lambda _text: None))
    assert cancelled == [("a", True), ("b", True), "shutdown"]


def test_a_cluster_that_does_not_start_is_one_line(monkeypatch):
    def init(**_):
        raise Exception("The node timed out during startup.\nMore")  # noqa: TRY002 - Ray's own

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(init=init))
    with pytest.raises(BagError, match=r"no Ray cluster at 'local' .*timed out") as told:
        fleet._started("local", EngineSettings())
    assert "\n" not in str(told.value)


def kill_holder(path):
    """Kill the process that has `path` open; say whether there was one."""
    if not path.exists():
        return False
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # gone meanwhile
            for link in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if link.readlink() == path:
                        os.kill(int(process.name), signal.SIGKILL)
                        return True
    return False
