"""What was recorded is kept, and what can be read is read: full disks, kills, edited files."""

import contextlib
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from backports import zstd
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from rosbags.rosbag2 import StoragePlugin, Writer

from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.bags.writer import STORAGES, BagWriter

ROOT = Path(__file__).parents[1]
STRING = "std_msgs/msg/String"
SIZE = 20_000
both_storages = pytest.mark.parametrize("storage", sorted(STORAGES))


def text(index):
    """A serialised String that fills its bytes with its number."""
    return b"\0\1\0\0" + SIZE.to_bytes(4, "little") + bytes([97 + index % 26]) * (SIZE - 1) + b"\0"


def fill(bag, count, *, flush_every=10):
    bag.add_topic(Topic("/t", STRING))
    for index in range(count):
        bag.write("/t", 1000 + index, text(index))
        if index % flush_every == flush_every - 1:
            bag.flush()


def bag_of(path, storage="mcap", count=6):
    with BagWriter(path, storage) as bag:
        fill(bag, count)
    return path


def read(path):
    """Return the numbers of the messages, which must be whole, and the remarks."""
    with BagReader(path) as bag:
        messages = list(bag.messages())
        assert len(messages) == bag.message_count == sum(topic.count for topic in bag.topics)
        for message in messages:
            assert message.data == text(message.received_ns - 1000)
        return [message.received_ns - 1000 for message in messages], " ".join(bag.remarks)


def file_of(bag):
    return next(file for file in bag.iterdir() if file.suffix in (".mcap", ".db3"))


@contextlib.contextmanager
def largest_file(size):
    """No file gets longer, as on a disk that is full: the kernel refuses the rest."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# --- writing -------------------------------------------------------------------------------------


@both_storages
@pytest.mark.parametrize("room_to_close", [False, True])
def test_a_full_disk_ends_a_closed_bag_of_what_was_written(tmp_path, storage, room_to_close):
    bag = BagWriter(tmp_path / "bag", storage)
    with contextlib.ExitStack() as disk, pytest.raises(BagError, match="cannot write to bag"):  # noqa: PT012
        disk.enter_context(largest_file(2_500_000))
        with bag:
            try:
                # The mcap file's chunks are written by themselves, amid a message.
                fill(bag, 1000, flush_every=10 if storage == "sqlite3" else 1000)
            finally:
                if room_to_close:
                    disk.close()
    kept, remarks = read(tmp_path / "bag")
    assert bag.count == len(kept) > 90
    assert kept == list(range(len(kept)))
    if room_to_close:
        assert remarks == ""
        assert (tmp_path / "bag" / "metadata.yaml").is_file()
        assert len(kept) > 2_500_000 / SIZE or storage == "sqlite3"  # what was in memory too


@both_storages
def test_where_not_even_the_index_finds_room_the_messages_stay(tmp_path, storage):
    bag = BagWriter(tmp_path / "bag", storage)
    fill(bag, 30)
    with largest_file(500), pytest.raises(BagError, match="cannot finish bag"):
        bag.close()
    kept, remarks = read(tmp_path / "bag")
    assert kept == list(range(30))
    assert "metadata.yaml is missing" in remarks


@both_storages
def test_messages_that_find_no_room_at_the_end_are_an_error_and_the_others_stay(tmp_path, storage):
    bag = BagWriter(tmp_path / "bag", storage)
    fill(bag, 35)
    for index in range(35, 60):
        bag.write("/t", 1000 + index, text(index))
    with largest_file(760_000), pytest.raises(BagError, match="cannot finish bag"):
        bag.close()
    assert read(tmp_path / "bag")[0] == list(range(30))


@both_storages
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_exception_leaves_the_messages_and_removes_a_bag_without(tmp_path, storage, error):
    for count in (0, 3):
        path = tmp_path / f"{count}"
        with pytest.raises(error), BagWriter(path, storage) as bag:  # noqa: PT012
            fill(bag, count)
            raise error
        assert path.exists() == (count > 0)
    assert read(tmp_path / "3") == ([0, 1, 2], "")


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, "test")
from test_bag_kept import fill
from magicfuse_ros.bags.writer import BagWriter
bag = BagWriter(Path(sys.argv[1]), sys.argv[2])
fill(bag, 205)
os.kill(os.getpid(), signal.SIGKILL)
"""


@both_storages
def test_a_kill_takes_only_what_came_after_the_last_flush(tmp_path, storage):
    process = subprocess.run(
        [sys.executable, "-c", KILLED, tmp_path / "bag", storage], check=False, cwd=ROOT
    )
    assert process.returncode == -signal.SIGKILL
    kept, remarks = read(tmp_path / "bag")
    assert kept == list(range(200))
    assert "metadata.yaml is missing" in remarks
    assert "was not closed" in remarks
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path / "bag")


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@example(cut=0.3828125, garbage=bytes(4096))  # the zeros fill a chunk up to its length
@given(cut=st.floats(0, 1), garbage=st.sampled_from([b"", bytes(4096), b"\x05" + bytes(30)]))
def test_an_unclosed_mcap_file_cut_anywhere_is_read_up_to_there(tmp_path, cut, garbage):
    whole = tmp_path / "unclosed.mcap"
    if not whole.exists():
        bag = BagWriter(tmp_path / "bag")
        fill(bag, 40, flush_every=3)
        whole.write_bytes(file_of(tmp_path / "bag").read_bytes())
        bag.discard()
    content = whole.read_bytes()
    (tmp_path / "cut.mcap").write_bytes(content[: int(cut * len(content))] + garbage)
    try:
        kept, remarks = read(tmp_path / "cut.mcap")
    except BagError:
        assert cut * len(content) < 100  # not even a header
    else:
        assert kept == list(range(len(kept)))
        assert len(kept) >= int(cut * 39) - 3
        assert f"its {len(kept)} whole messages are read" in remarks


@both_storages
def test_a_bag_without_a_message_does_not_block_the_next(tmp_path, storage):
    path = tmp_path / "bag"
    with BagWriter(path, storage) as silent:
        silent.add_topic(Topic("/t", STRING))
        with pytest.raises(BagError, match="exists already"):
            BagWriter(path)  # this one may get its first message yet
    assert read(path) == ([], "")
    bag_of(path, storage)
    assert read(path)[0] == list(range(6))
    with pytest.raises(BagError, match="exists already"):
        BagWriter(path)
    with BagWriter(tmp_path / "other"):
        pass
    (tmp_path / "other" / "notes.txt").touch()
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path / "other")


def test_an_output_that_cannot_be_written_is_found_at_once(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BagError, match=r"cannot write bag .*Not a directory"):
        BagWriter(tmp_path / "file" / "bag")
    with largest_file(10), pytest.raises(BagError, match="cannot write bag"):
        BagWriter(tmp_path / "full")
    assert not (tmp_path / "full").exists()


# --- reading -------------------------------------------------------------------------------------


def edit(bag, change):
    path = bag / "metadata.yaml"
    document = yaml.safe_load(path.read_text())
    change(document["rosbag2_bagfile_information"])
    path.write_text(yaml.safe_dump(document))


def qos(reliability):
    def change(root):
        offered = root["topics_with_message_count"][0]["topic_metadata"]["offered_qos_profiles"]
        offered[0]["reliability"] = reliability

    return change


@both_storages
def test_the_qos_in_metadata_yaml_is_the_users(tmp_path, storage):
    edit(bag_of(tmp_path / "bag", storage), qos("best_effort"))
    with BagReader(tmp_path / "bag") as bag:
        assert bag.topic("/t").reliability == "best_effort"
        assert len(list(bag.messages(["/t"]))) == 6
        assert bag.remarks == ()


@both_storages
@pytest.mark.parametrize(
    ("change", "remark"),
    [
        (lambda root: root.update(storage_identifier=""), ""),
        (lambda root: root.update(version=10), ""),
        (lambda root: root.update(duration={"nanoseconds": 0}), ""),
        (lambda root: root.update(relative_file_paths=["/home/robot/bag/{}"]), ""),
        (lambda root: root.update(relative_file_paths=["C:\\bags\\bag\\{}"]), ""),
        (lambda root: root.update(relative_file_paths=["bag/{}"]), ""),
        (lambda root: root.update(relative_file_paths=["old_0"]), "none of the files here"),
        (lambda root: root.update(relative_file_paths=[]), "none of the files here"),
        (lambda root: root.pop("topics_with_message_count"), "is damaged"),
        (lambda root: root["topics_with_message_count"][0].update(message_count=9), "there are 6"),
        (qos({"a": 1}), "QoS of /t"),
        (lambda root: root.update(custom_data=[1]), "custom_data is list"),
    ],
)
def test_what_metadata_yaml_says_does_no_harm(tmp_path, storage, change, remark):
    name = file_of(bag_of(tmp_path / "bag", storage)).name

    def named(root):
        change(root)
        root["relative_file_paths"] = [each.format(name) for each in root["relative_file_paths"]]

    edit(tmp_path / "bag", named)
    kept, remarks = read(tmp_path / "bag")
    assert kept == list(range(6))
    assert remark in remarks
    assert bool(remarks) == bool(remark)


@both_storages
@pytest.mark.parametrize("content", [None, b"", b"\0" * 512, b"a: [", b"\xff\xfe"])
def test_without_metadata_yaml_the_messages_are_read(tmp_path, storage, content):
    path = bag_of(tmp_path / "bag", storage) / "metadata.yaml"
    path.unlink() if content is None else path.write_bytes(content)
    kept, remarks = read(tmp_path / "bag")
    assert kept == list(range(6))
    assert "metadata.yaml is " in remarks


def split(path, storage, *, listed):
    """A bag of three files, whose messages take turns; metadata.yaml lists them or is missing."""
    path.mkdir()
    names = []
    for number in range(3):
        with BagWriter(path / f"part{number}", storage) as bag:
            bag.add_topic(Topic("/t", STRING))
            for index in range(number, 30, 3):
                bag.write("/t", 1000 + index, text(index))
        names.append(f"bag_{number + 9}{file_of(path / f'part{number}').suffix}")
        file_of(path / f"part{number}").rename(path / names[-1])
    if listed:
        document = yaml.safe_load((path / "part0" / "metadata.yaml").read_text())
        document["rosbag2_bagfile_information"]["relative_file_paths"] = names
        (path / "metadata.yaml").write_text(yaml.safe_dump(document))
        edit(path, lambda root: root["topics_with_message_count"][0].update(message_count=30))
    return names


@both_storages
@pytest.mark.parametrize("listed", [False, True])
def test_a_split_bag_is_one_stream_in_order_of_time(tmp_path, storage, listed):
    names = split(tmp_path / "bag", storage, listed=listed)
    kept, remarks = read(tmp_path / "bag")
    assert kept == list(range(30))
    assert bool(remarks) != listed
    if listed:
        (tmp_path / "bag" / names[1]).unlink()
        with pytest.raises(BagError, match=rf"not whole.*missing.*{names[1]}"):
            BagReader(tmp_path / "bag")
    else:
        (tmp_path / "bag" / names[1]).rename(tmp_path / "bag" / f"walk{Path(names[1]).suffix}")
        with pytest.raises(BagError, match="several recordings: give one"):
            BagReader(tmp_path / "bag")


@both_storages
@pytest.mark.parametrize("suffixed", [False, True])
def test_a_compressed_file_is_read(tmp_path, storage, suffixed):
    file = file_of(bag_of(tmp_path / "bag", storage))
    packed = file.with_name(f"{file.name}.zstd")
    packed.write_bytes(zstd.compress(file.read_bytes()))
    file.unlink()
    listed = packed.name if suffixed else file.name
    edit(
        tmp_path / "bag",
        lambda root: root.update(
            relative_file_paths=[listed], compression_mode="FILE", compression_format="zstd"
        ),
    )
    assert read(tmp_path / "bag") == (list(range(6)), "")


@both_storages
def test_a_topic_without_a_slash_is_read_as_one_with(tmp_path, storage):
    """As in bags converted from ROS 1."""
    with Writer(tmp_path / "bag", version=9, storage_plugin=STORAGES[storage]) as bag:
        topic = bag.add_connection("t", STRING, msgdef="string data\n", rihs01=f"RIHS01_{0:064x}")
        bag.write(topic, 1000, text(0))
    with BagReader(tmp_path / "bag") as bag:
        assert [message.topic.name for message in bag.messages(["/t"])] == ["/t"]
        with BagWriter(tmp_path / "copy", storage) as copy:
            copy.add_copies(bag, ())
            for message in bag.messages():
                copy.copy(message)
    assert read(tmp_path / "copy") == ([0], "")


def test_messages_out_of_order_and_of_unknown_languages_are_read(tmp_path):
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as bag:
        topic = bag.add_connection("/t", STRING, msgdef="string data\n", rihs01=f"RIHS01_{0:064x}")
        bag.storage.schemas[0] = bag.storage.schemas[0]._replace(encoding="jsonschema")
        for index in (5, 2, 4, 0, 3, 1):
            bag.write(topic, 1000 + index, text(index))
            bag.storage.close_chunk()
    assert read(tmp_path / "bag") == (list(range(6)), "")
    file = file_of(tmp_path / "bag")
    content = file.read_bytes()
    file.write_bytes(content.replace(b"\x04\0\0\0ros2", b"\x04\0\0\0ros1", 1))
    with pytest.raises(BagError, match=r"profile 'ros1'.*rosbags-convert"):
        BagReader(file)


def test_a_database_in_a_folder_that_cannot_be_written_says_what_to_do(tmp_path, monkeypatch):
    file = file_of(bag_of(tmp_path / "bag", "sqlite3"))
    file.with_name(f"{file.name}-journal").write_bytes(b"x")

    def refuse(*_args, **_kwargs):
        raise sqlite3.OperationalError("attempt to write a readonly database")

    monkeypatch.setattr("magicfuse_ros.bags.bag_files.sqlite3.connect", refuse)
    with pytest.raises(BagError, match="copy the bag to where it can be written"):
        BagReader(tmp_path / "bag")
