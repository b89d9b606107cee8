"""`magicfuse bag fuse` killed, stopped or out of room: the next run goes on, or says why not."""

import fcntl
import random
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from support.fuse_bags import (
    NOOP,
    by_topic,
    command,
    contents,
    drive,
    environment,
    fuse,
    spoil,
)
from support.noop_node import NoopEngine

from magicfuse_ros.bags.fuse_engine import Interrupted
from magicfuse_ros.bags.fuse_journal import Journal, Record
from magicfuse_ros.bags.fuse_workspace import BusyError, partial_of
from magicfuse_ros.bags.reader import BagError
from magicfuse_ros.bags.writer import STORAGES


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_run_killed_everywhere_ends_as_one_that_was_not(tmp_path, storage):
    source = drive(tmp_path / "in", storage, spoil=spoil)
    whole = command(source, tmp_path / "whole", "--seed", 5)
    assert whole.returncode == 1, whole.stderr
    for point in ("fuse:1", "fuse:4", "append:5", "join:30", "finish:1", "cleanup:1"):
        killed = command(source, tmp_path / "out", "--seed", 5, KILL_AT=point)
        assert killed.returncode == -signal.SIGKILL, (point, killed.stderr)
        assert (tmp_path / "out").exists() == (point == "cleanup:1")
    again = command(source, tmp_path / "out", "--seed", 5)
    assert again.returncode == 1, again.stderr
    assert "is there already" in again.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "whole"]


def test_a_run_killed_three_times_whenever_ends_as_one_that_was_not(tmp_path):
    source = drive(tmp_path / "in", frames=40)
    assert command(source, tmp_path / "whole").returncode == 0
    dice = random.Random(20261123)
    kills, sizes = 0, []
    journal = partial_of(tmp_path / "out") / "frames.journal"
    while not (tmp_path / "out").exists():
        process = subprocess.Popen(
            [sys.executable, NOOP, source, tmp_path / "out"],
            env=environment(NOOP_DELAY_S="0.02"),
            stderr=subprocess.DEVNULL,
        )
        if kills < 3:
            begun = journal.stat().st_size if journal.exists() else 0
            while not journal.exists() or journal.stat().st_size <= begun:
                assert process.poll() is None
                time.sleep(0.002)
            time.sleep(dice.random() * 0.2)
            process.kill()
            sizes.append(journal.stat().st_size)
            kills += 1
            assert process.wait(600) == -signal.SIGKILL
        else:
            assert process.wait(600) == 0
    assert sizes == sorted(set(sizes))  # each went further than the one before
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize("point", ["fuse:6", "join:30"])
def test_a_signal_ends_the_run_after_the_frame_and_the_next_run_goes_on(tmp_path, point):
    source = drive(tmp_path / "in")
    stopped = command(source, tmp_path / "out", TERM_AT=point)
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert not (tmp_path / "out").exists()
    resumed = command(source, tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    done = 6 if point == "fuse:6" else 20
    assert f"({done} frames were done before)" in resumed.stdout


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


def test_a_damaged_record_and_all_behind_it_are_made_anew(tmp_path):
    source = drive(tmp_path / "in")
    fuse(source, tmp_path / "whole")
    assert command(source, tmp_path / "out", KILL_AT="finish:1").returncode < 0
    journal = partial_of(tmp_path / "out") / "frames.journal"
    content = bytearray(journal.read_bytes())
    content[len(content) // 2] ^= 1
    journal.write_bytes(content)
    summary = fuse(source, tmp_path / "out", factory=NoopEngine)
    assert 5 < summary.resumed < 15
    fused, whole = by_topic(tmp_path / "out"), by_topic(tmp_path / "whole")
    assert fused["/front/fuse_node/semantic/mask"] == whole["/front/fuse_node/semantic/mask"]
    assert {name: len(each) for name, each in fused.items()} == {
        name: len(each) for name, each in whole.items()
    }


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_a_full_disk_ends_the_run_and_the_next_one_with_room_goes_on(tmp_path, storage):
    source = drive(tmp_path / "in", storage)
    assert command(source, tmp_path / "whole").returncode == 0
    size = max(file.stat().st_size for file in (tmp_path / "whole").iterdir())
    # No room for the records; for those, but not for the bag that is made of them.
    for limit, failing in ((size // 3, tmp_path), (size - 1000, "bag")):
        full = command(source, tmp_path / "out", FILE_BYTES=str(limit))
        assert full.returncode == 2, full.stdout + full.stderr
        assert re.search(rf"cannot (write|finish) {failing}.*(File too large|disk)", full.stderr)
        assert not (tmp_path / "out").exists()
        # What is done is kept, and no half a bag takes the room that there is.
        assert {file.name for file in partial_of(tmp_path / "out").iterdir()} == {
            "begun.json",
            "frames.journal",
            "lock",
        }
    resumed = command(source, tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert "(20 frames were done before)" in resumed.stdout
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_else_lies_in_the_folders_is_neither_input_nor_removed(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    target = source / "fused"  # inside the input, which then has a folder more
    assert command(source, target, KILL_AT="fuse:3").returncode == -signal.SIGKILL
    for folder in (source, partial_of(target)):
        (folder / "my_notes.txt").write_text("not yours")
    assert fuse(source, target).resumed == 2
    assert fuse(source, target).already
    assert [path.name for path in partial_of(target).iterdir()] == ["my_notes.txt"]
    assert (source / "my_notes.txt").read_text() == "not yours"


@pytest.mark.parametrize("kept", [0, 1, 20, 55, 56, 60, 200, -1, -2])
def test_a_journal_cut_anywhere_gives_its_whole_records(tmp_path, kept):
    records = [
        Record({"magimg": bytes(range(50)), "semantic/mask": b""}),
        Record(reason="short_data", text="much\ntoo short"),
        Record({"magimg": b"x" * 99}),
    ]
    with Journal(tmp_path / "journal") as journal:
        for place, record in enumerate(records):
            journal.append(place, bytes([place] * 16), record)
    whole = (tmp_path / "journal").read_bytes()
    (tmp_path / "journal").write_bytes(whole[: kept if kept != -1 else None])
    with Journal(tmp_path / "journal") as journal:
        read = list(journal.read())
        assert [record for _, record in read] == records[: len(read)]
        assert (len(read) == 3) == (kept == -1)
        for place in range(len(read), 3):
            journal.append(place, bytes([place] * 16), records[place])
    assert (tmp_path / "journal").read_bytes() == whole


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
    ],
)
def test_going_on_with_another_option_is_refused_by_its_name(begun_run, changes, text):
    source, target, other_model = begun_run
    changes = [change.replace("{}", str(other_model)) for change in changes]
    from magicfuse_ros.cli import main

    arguments = ["--seed", "5"] if "--seed" not in changes else []
    kept = (partial_of(target) / "frames.journal").read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr("sys.stderr.write", said.append)
        status = main(["bag", "fuse", str(source), str(target), *arguments, *changes])
    told = "".join(said)
    assert status == 2
    assert text in told
    assert "remove that folder to start over" in told
    assert (partial_of(target) / "frames.journal").read_bytes() == kept


@pytest.fixture(scope="module")
def begun_run(tmp_path_factory):
    """A run that was killed at its fourth frame, and another model's folder."""
    folder = tmp_path_factory.mktemp("begun")
    source = drive(folder / "in", frames=3)
    killed = command(source, folder / "out", "--seed", 5, KILL_AT="fuse:4")
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return source, folder / "out", folder / "model"


def test_going_on_with_another_backend_or_input_is_refused(tmp_path):
    source = drive(tmp_path / "in", frames=5)
    assert command(source, tmp_path / "out", KILL_AT="fuse:4").returncode == -signal.SIGKILL
    other = command(source, tmp_path / "out", BACKEND="spare on cuda")
    assert other.returncode == 2
    assert 'runs_on was "noop" and is now "spare on cuda"' in other.stderr
    with pytest.raises(BagError, match="input was"):
        fuse(drive(tmp_path / "longer", frames=6), tmp_path / "out")

    def retouched(topic, index, data):
        is_it = (topic, index) == ("/front/image_raw", 1)
        return data[:-1] + bytes([data[-1] ^ 1]) if is_it else data

    # Same topics, times and sizes: only the message itself tells.
    with pytest.raises(BagError, match=r"front/image_raw at 1700000000\.2234.* has changed"):
        fuse(drive(tmp_path / "other" / "in", frames=5, spoil=retouched), tmp_path / "out")
    source.rename(tmp_path / "moved")
    assert fuse(tmp_path / "moved", tmp_path / "out").resumed == 3


def test_a_damaged_account_of_what_was_begun_is_told(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    assert command(source, tmp_path / "out", KILL_AT="fuse:2").returncode == -signal.SIGKILL
    (partial_of(tmp_path / "out") / "begun.json").write_text("{")
    with pytest.raises(BagError, match=r"begun\.json is damaged; remove the folder .*out\.partial"):
        fuse(source, tmp_path / "out")
    assert (partial_of(tmp_path / "out") / "frames.journal").stat().st_size > 0


def test_one_process_at_a_time_makes_a_bag(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    partial = partial_of(tmp_path / "out")
    partial.mkdir()
    with (partial / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BusyError, match="another process is making"):
            fuse(source, tmp_path / "out")
    assert fuse(source, tmp_path / "out").fused == 4
