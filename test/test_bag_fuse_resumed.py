"""`magicfuse bag fuse` killed, stopped or out of room: the next run goes on, or says why not."""

import fcntl
import os
import random
import re
import signal
import threading
import time

import pytest
from support import fuse_bags
from support.fuse_bags import (
    ROOT,
    begun,
    command,
    contents,
    drive,
    ended,
    spoil,
)
from support.noop_bag_fuse import Engine
from support.noop_node import NoopEngine

from magicfuse_ros.bags.fuse_engine import Interrupted
from magicfuse_ros.bags.fuse_plan import FuseOptions
from magicfuse_ros.bags.fuse_segments import BusyError, partial_of
from magicfuse_ros.bags.reader import BagError
from magicfuse_ros.bags.writer import STORAGES
from magicfuse_ros.runtime.contract import EngineSettings


def fuse(source, target, chosen=None, factory=Engine, **more):
    """Fuse in this process, with the engine of `command`."""
    return fuse_bags.fuse(source, target, chosen, factory, **more)


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_run_killed_everywhere_ends_as_one_that_was_not(tmp_path, storage):
    source = drive(tmp_path / "in", storage, spoil=spoil)
    whole = command(source, tmp_path / "whole", "--seed", 5)
    assert whole.returncode == 1, whole.stderr
    points = ("fuse:1", "fuse:4", "write:30", "keep:2", "account:2", "finish:1", "cleanup:1")
    for point in points:
        killed = command(source, tmp_path / "out", "--seed", 5, KILL_AT=point, SEGMENT_S="0")
        assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
        assert (tmp_path / "out").exists() == (point == "cleanup:1")
    again = command(source, tmp_path / "out", "--seed", 5)
    assert again.returncode == 1, again.stderr
    assert "is there already" in again.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]
    assert len(list((tmp_path / "out").iterdir())) > 2  # of several segments


def test_a_process_killed_three_times_whenever_ends_as_one_that_was_not(tmp_path):
    source = drive(tmp_path / "in", frames=40)
    fuse(source, tmp_path / "whole")
    dice = random.Random(20261123)
    kills, sizes = 0, [-1]
    account = partial_of(tmp_path / "out") / "account.json"
    while not (tmp_path / "out").exists():
        with (tmp_path / "log").open("w") as log:
            chosen = {"NOOP_DELAY_S": "0.01", "SEGMENT_S": "0.05"}
            process = begun(source, tmp_path / "out", output=log, errors=log, **chosen)
        if kills < 3:
            while not account.exists() or account.stat().st_size <= sizes[-1]:
                time.sleep(0.002)
            time.sleep(dice.random() * 0.05)
            os.kill(process, signal.SIGKILL)
            assert ended(process) == -signal.SIGKILL
            sizes.append(account.stat().st_size)
            kills += 1
        else:
            assert ended(process) == 0, (tmp_path / "log").read_text()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(("point", "done"), [("fuse:6", 6), ("write:30", 5)])
def test_a_signal_ends_the_run_after_the_frame_and_the_next_run_goes_on(tmp_path, point, done):
    source = drive(tmp_path / "in")
    stopped = command(source, tmp_path / "out", TERM_AT=point)
    assert stopped.returncode == 143, stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert not (tmp_path / "out").exists()
    summary = fuse(source, tmp_path / "out")
    assert (summary.resumed, summary.fused) == (done, 20)
    fuse(source, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_wish_to_stop_is_heard_while_the_model_loads(tmp_path):
    stop = threading.Event()

    class Slow(NoopEngine):
        def warm_up(self, progress):
            stop.set()
            progress("still warming up")
            pytest.fail("went on")

    with pytest.raises(Interrupted):
        fuse(drive(tmp_path / "in", frames=2), tmp_path / "out", factory=Slow, stop=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]


def begin(source, target, *arguments, frames=4):
    """A run that is stopped amid its frames, which keeps them."""
    stopped = command(source, target, *arguments, TERM_AT=f"fuse:{frames}")
    assert stopped.returncode == 143, stopped.stderr


def test_a_segment_that_was_lost_is_made_anew(tmp_path):
    source = drive(tmp_path / "in")
    fuse(source, tmp_path / "whole")
    for frames in (6, 6):
        begin(source, tmp_path / "out", frames=frames)
    lost = partial_of(tmp_path / "out") / "out" / "out_1.mcap"
    lost.write_bytes(lost.read_bytes()[:-1])
    assert fuse(source, tmp_path / "out").resumed == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_full_disk_ends_the_run_and_the_next_one_with_room_goes_on(tmp_path, storage):
    source = drive(tmp_path / "in", storage)
    fuse(source, tmp_path / "whole")
    begin(source, tmp_path / "out", frames=6)
    size = max(file.stat().st_size for file in (tmp_path / "whole").iterdir())
    full = command(source, tmp_path / "out", FILE_BYTES=str(size // 3))
    assert full.returncode == 2, full.stdout + full.stderr
    assert re.search(r"cannot (write|finish).* bag .*(File too large|disk)", full.stderr)
    assert not (tmp_path / "out").exists()
    # What is done is kept, and no half a segment takes the room that there is.
    assert not (partial_of(tmp_path / "out") / "segment").exists()
    assert fuse(source, tmp_path / "out").resumed == 6
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_else_lies_in_the_folders_is_neither_input_nor_removed(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    target = source / "fused"  # inside the input, which then has a folder more
    begin(source, target, frames=2)
    for folder in (source, partial_of(target)):
        (folder / "my_notes.txt").write_text("not yours")
    assert fuse(source, target).resumed == 2
    assert fuse(source, target).already
    assert [path.name for path in partial_of(target).iterdir()] == ["my_notes.txt"]
    assert (source / "my_notes.txt").read_text() == "not yours"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["--steps", "3"], "steps was 0 and is now 3"),
        (["--seed", "6"], "seed was 5 and is now 6"),
        (["--tau", "0.5"], "tau was null and is now 0.5"),
        (["--threads", "2"], "threads was 0 and is now 2"),
        (["--outputs", "magimg"], "outputs was"),
        (["--storage", "sqlite3"], 'storage was "mcap" and is now "sqlite3"'),
        (["--id-map", "person:6"], 'id_map was "" and is now "person:6"'),
        (["--min-confidence", "0.5"], "min_confidence was 0.0 and is now 0.5"),
        (["--jpeg-quality", "50"], "jpeg_quality was 85 and is now 50"),
        (["--topics", "/front/image_raw"], "topics was"),
        (["--model", "{}"], "model was"),
        (["--with-input"], "with_input was false and is now true"),
    ],
)
def test_going_on_with_another_option_is_refused_by_its_name(begun_run, changes, text):
    source, target, other_model = begun_run
    changes = [change.replace("{}", str(other_model)) for change in changes]
    from magicfuse_ros.cli import main

    arguments = ["--seed", "5"] if "--seed" not in changes else []
    kept = (partial_of(target) / "account.json").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("sys.stderr.write", said.append)
        status = main(["bag", "fuse", str(source), str(target), *arguments, *changes])
    told = "".join(said)
    assert status == 2
    assert text in told
    assert "remove that folder to start over" in told
    assert (partial_of(target) / "account.json").read_bytes() == kept


@pytest.fixture(scope="module")
def begun_run(tmp_path_factory):
    """A run that was stopped at its fourth frame, and another model's folder."""
    folder = tmp_path_factory.mktemp("begun")
    source = drive(folder / "in", frames=3)
    begin(source, folder / "out", "--seed", 5)
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return source, folder / "out", folder / "model"


def test_going_on_with_another_backend_or_input_is_refused(tmp_path):
    source = drive(tmp_path / "in", frames=5)
    begin(source, tmp_path / "out")
    other = command(source, tmp_path / "out", BACKEND="spare on cuda")
    assert other.returncode == 2
    assert 'runs_on was "noop" and is now "spare on cuda"' in other.stderr
    with pytest.raises(BagError, match="input was"):
        fuse(drive(tmp_path / "longer", frames=6), tmp_path / "out")

    def retouched(topic, index, data):
        is_it = (topic, index) == ("/front/image_raw", 1)
        return data[:-1] + bytes([data[-1] ^ 1]) if is_it else data

    # Same topics, times and sizes: only the message itself tells.
    with pytest.raises(BagError, match=r"messages up to 1700000000\.\d+ have changed"):
        fuse(drive(tmp_path / "other" / "in", frames=5, spoil=retouched), tmp_path / "out")
    source.rename(tmp_path / "moved")
    assert fuse(tmp_path / "moved", tmp_path / "out").resumed == 4


def test_other_labels_in_a_file_of_the_same_name_are_another_request(tmp_path):
    labels = tmp_path / "mine.yaml"
    text = (ROOT / "magicfuse_ros/model/label_sets/drive.yaml").read_text()
    labels.write_text(text)
    chosen = FuseOptions(engine=EngineSettings(labels=str(labels)))
    source = drive(tmp_path / "in", frames=1)
    fuse(source, tmp_path / "out", chosen)
    assert fuse(source, tmp_path / "out", chosen).already
    labels.write_text(f"{text}\n# the road in another colour\n")
    with pytest.raises(BagError, match=r'labels was "mine\.yaml \w+" and is now "mine\.yaml \w+"'):
        fuse(source, tmp_path / "out", chosen)


def test_a_stream_is_refused_where_each_frame_is_fused_by_itself():
    with pytest.raises(ValueError, match=r"temporal is 0\.5; accepted: None"):
        FuseOptions(engine=EngineSettings(temporal=0.5))


def test_a_damaged_account_of_what_was_begun_is_told(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    begin(source, tmp_path / "out", frames=2)
    (partial_of(tmp_path / "out") / "account.json").write_text("{")
    with pytest.raises(BagError, match=r"account\.json is damaged; remove the folder .*\.partial"):
        fuse(source, tmp_path / "out")
    assert (partial_of(tmp_path / "out") / "out" / "out_0.mcap").exists()


def test_one_process_at_a_time_makes_a_bag(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    partial = partial_of(tmp_path / "out")
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process is making"):
            fuse(source, tmp_path / "out")
    assert fuse(source, tmp_path / "out").fused == 4
