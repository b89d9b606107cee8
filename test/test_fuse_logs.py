"""`magicfuse fuse --mcap` and `--rerun`: opened by the readers of Foxglove's and Rerun's makers."""

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from support.noop_node import NoopEngine
from support.videos import evenly, write_video

from magicfuse_ros import cli
from magicfuse_ros.bags.reader import BagReader
from magicfuse_ros.commands import fuse_logs, fuse_session
from magicfuse_ros.commands.fuse_logs import STREAMS
from magicfuse_ros.ros.images.codec import decode_image
from magicfuse_ros.sources.source import open_source

ROOT = Path(__file__).parents[1]
COUNT = 4


@pytest.fixture
def fuse(monkeypatch, capsys, tmp_path):
    """Fuse a video of four frames with an engine whose MagImg is the frame."""
    monkeypatch.setattr(fuse_session, "load_engine", NoopEngine)
    monkeypatch.setattr(cli, "COMMANDS", {"fuse": "fuse"})
    video = write_video(tmp_path / "street.mp4", evenly(COUNT), size=(64, 48))

    def run(*arguments):
        status = cli.main(["fuse", str(video), str(tmp_path / "out"), *map(str, arguments)])
        return status, capsys.readouterr()

    run.video = video
    return run


def test_an_mcap_file_holds_every_stream_under_the_nodes_topics(fuse, tmp_path):
    log = tmp_path / "street.mcap"
    status, said = fuse("--mcap", log)
    assert status == 0, said.err
    assert f"all streams are in {log}" in said.out

    with log.open("rb") as file:
        reader = make_reader(file, decoder_factories=[DecoderFactory()])
        heard = {}
        for _, channel, message, decoded in reader.iter_decoded_messages():
            heard.setdefault(channel.topic, []).append((message.log_time, decoded))
    labels = heard.pop("/fuse_node/semantic/labels")
    assert [each["name"] for each in json.loads(labels[0][1].data)][:2] == ["unlabeled", "car"]
    assert {topic: len(messages) for topic, messages in heard.items()} == dict.fromkeys(
        STREAMS.values(), COUNT
    )
    frames = list(open_source(fuse.video).frames())
    for name in ("input", "magimg"):
        for frame, (time_ns, message) in zip(frames, heard[STREAMS[name]], strict=True):
            assert time_ns == 10**9 + frame.time_ns
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == time_ns
            assert np.array_equal(decode_image(message), frame.rgb)
    assert {message.encoding for _, message in heard[STREAMS["mask"]]} == {"mono8"}
    with BagReader(log) as bag:  # and as a bag, for `magicfuse bag` and `ros2 bag`
        assert bag.message_count == 1 + COUNT * len(STREAMS)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_rerun_file_holds_every_stream_and_the_classes(fuse, tmp_path):
    pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    log = tmp_path / "street.rrd"
    status, said = fuse("--rerun", log)
    assert status == 0, said.err
    assert [path.name for path in tmp_path.glob(".*")] == []

    rerun = [Path(sys.executable).with_name("rerun"), "rrd"]
    environment = os.environ | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "c")}

    def ask(*words):
        asked = subprocess.run(
            [*rerun, *words, log], capture_output=True, text=True, check=True, env=environment
        )
        return asked.stdout + asked.stderr

    assert "1 file verified without error" in ask("verify")
    printed = ask("print", "-vvv")
    logged = re.findall(r"^Chunk\(\w+\) with (\d+) rows .* - (\S+) - ", printed, re.MULTILINE)
    rows = Counter()
    for count, path in logged:
        rows[path] += int(count)
    assert {topic: rows[topic] for topic in STREAMS.values()} == dict.fromkeys(
        STREAMS.values(), COUNT
    )
    assert "label: unlabeled" in printed
    assert "SegmentationImage" in printed


def test_both_at_once_and_nothing_is_replaced(fuse, tmp_path):
    pytest.importorskip("rerun", reason="the extra `rerun` is not installed")
    both = ("--mcap", tmp_path / "a.mcap", "--rerun", tmp_path / "a.rrd")
    assert fuse(*both)[0] == 0
    before = (tmp_path / "a.mcap").read_bytes()
    status, said = fuse(*both)
    assert status == 2
    assert "a.mcap exists; give another --mcap, or --overwrite" in said.err
    assert fuse(*both, "--overwrite")[0] == 0
    assert (tmp_path / "a.mcap").read_bytes() == before  # the same input gives the same file


def test_what_cannot_be_logged_is_told_before_the_model_loads(fuse, tmp_path, monkeypatch):
    monkeypatch.setattr(fuse_session, "load_engine", None)
    status, said = fuse("--mcap", tmp_path / "log.bag")
    assert (status, "accepted is a name that ends in .mcap" in said.err) == (2, True)
    find = fuse_logs.importlib.util.find_spec
    monkeypatch.setattr(
        fuse_logs.importlib.util, "find_spec", lambda name: (name != "rerun" and find(name)) or None
    )
    status, said = fuse("--rerun", tmp_path / "log.rrd")
    assert status == 2
    assert "rerun is not installed; run: pip install 'magicfuse_ros[rerun]'" in said.err


@pytest.mark.parametrize(("stop", "status"), [(KeyboardInterrupt, 130), (OSError, None)])
def test_a_stop_keeps_the_log_and_an_error_removes_it(fuse, tmp_path, monkeypatch, stop, status):
    whole, count = NoopEngine.fuse, iter(range(100))

    def fuse_two(self, frame, extras=frozenset()):
        if next(count) == 2:
            raise stop
        return whole(self, frame, extras)

    monkeypatch.setattr(NoopEngine, "fuse", fuse_two)
    monkeypatch.setattr(NoopEngine, "fall_back", lambda *_: None)
    log = tmp_path / "street.mcap"
    if status is None:
        assert fuse("--mcap", log)[0] == 2
        assert not log.exists()
    else:
        assert fuse("--mcap", log)[0] == status
        with BagReader(log) as bag:
            assert bag.message_count == 1 + 2 * len(STREAMS)
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_foxgloves_layout_shows_what_is_logged():
    layout = json.loads((ROOT / "config" / "foxglove.json").read_text(encoding="utf-8"))

    def panels(part):
        return [part] if isinstance(part, str) else panels(part["first"]) + panels(part["second"])

    shown = panels(layout["layout"])
    assert sorted(shown) == sorted(layout["configById"])
    images = [name for name in shown if name.startswith("Image!")]
    topics = {layout["configById"][name]["imageMode"]["imageTopic"] for name in images}
    assert topics == {STREAMS[name] for name in STREAMS if name not in ("mask", "confidence")}
    (labels,) = (name for name in shown if name.startswith("RawMessages!"))
    assert layout["configById"][labels]["topicPath"] == "/fuse_node/semantic/labels.data"
