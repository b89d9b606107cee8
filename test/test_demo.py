"""`magicfuse demo` as its user runs it: another process, real bags, a real node, and its ends."""

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import cv2
import numpy as np
import pytest
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from support.bag_frames import frames
from support.messages import encode_image
from support.small_models import save_few_step

from magicfuse_ros import cli
from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.commands import demo, demo_pictures
from magicfuse_ros.commands.arguments import choose_topic
from magicfuse_ros.commands.demo_session import OUTPUTS, remove_bag, table
from magicfuse_ros.commands.exit_status import StopRequest
from magicfuse_ros.commands.node_session import (
    COLOR,
    ENHANCED,
    INFRARED,
    MAGIMG,
    MASK,
    Session,
)
from magicfuse_ros.commands.progress_line import ProgressLine
from magicfuse_ros.evaluation.clip_degradation import degradation
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.images.codec import encode_compressed
from magicfuse_ros.ros.stamps import read_stamp

ROOT = Path(__file__).parents[1]
NOOP = [sys.executable, str(ROOT / "test" / "support" / "demo_with_noop.py")]
REAL = [sys.executable, "-m", "magicfuse_ros", "demo"]
TIMEOUT_S = 240


class DemoProcess:
    """A demo under test; everything it starts carries a mark in its environment."""

    def __init__(self, command, *arguments, **variables):
        self.mark = f"MAGICFUSE_TEST_MARK={uuid.uuid4()}"
        name, _, value = self.mark.partition("=")
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        environment.pop("ROS_DOMAIN_ID", None)
        search = filter(None, [str(ROOT), environment.get("PYTHONPATH")])
        environment |= {name: value, "PYTHONPATH": os.pathsep.join(search), **variables}
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self):
        self.out, self.err = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode

    def wait_for(self, text):
        """Read stdout up to a line that holds `text`."""
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if text in line:
                return
        raise AssertionError(f"{text!r} did not come: {lines} {self.process.stderr.read()}")

    def children(self):
        """Ids of the marked processes besides the demo's own."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and self.mark.encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue  # it ended meanwhile
        return [pid for pid in found if pid != self.process.pid]


@pytest.fixture
def start():
    demos = []

    def start_demo(*arguments, **variables):
        demos.append(DemoProcess(*arguments, **variables))
        return demos[-1]

    yield start_demo
    for each in demos:
        for pid in each.children():
            os.kill(pid, signal.SIGKILL)
        if each.process.poll() is None:
            each.process.kill()
            each.process.communicate()


def street(index, width=96, height=64):
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 2 + index * 4, y * 3, (x // 8 + y // 8) % 2 * 120 + 60], -1)
    return (rgb % 256).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("frames")
    for index in range(15):
        cv2.imwrite(str(path / f"{index}.png"), street(index)[..., ::-1])
    return path


def row(out, name):
    return re.search(rf"^{re.escape(name)}  +(.*)$", out, re.MULTILINE)[1]


def test_an_image_folder_goes_through_the_real_node(tmp_path, folder, start):
    model = save_few_step(tmp_path)  # untrained
    run = start(REAL, "--input", folder, "--output-dir", tmp_path / "out", "--model", model)
    status = run.finish()
    print(run.out)
    assert status == 0, run.err
    assert run.children() == []

    sent, fused = int(row(run.out, "frames sent")), int(row(run.out, "frames fused"))
    assert sent == 15
    assert 1 <= fused <= sent
    assert int(row(run.out, "frames dropped").split()[0]) == sent - fused
    assert "UNTRAINED" in row(run.out, "model")
    for name in ("age at publish", "age on arrival"):
        p50, p95 = re.match(r"(\d+) / (\d+)", row(run.out, f"{name}, p50 / p95 ms")).groups()
        assert 0 < int(p50) <= int(p95) < 60_000

    *_, view, bag = run.out.split()
    assert (view, bag) == ("view", str(tmp_path / "out" / "input.bag"))
    with BagReader(tmp_path / "out" / "output.bag") as bag:
        sent_frames = {frame.stamp_ns: frame.frame for frame in frames(bag, "/image")}
        assert len(sent_frames) == sent
        for name in OUTPUTS[:-1]:
            outputs = list(frames(bag, name))
            assert outputs, name
            for output in outputs:
                assert output.frame.shape == sent_frames[output.stamp_ns].shape
        assert bag.topic("/diagnostics").count >= 1

    sheet = cv2.imread(str(tmp_path / "out" / "side_by_side.png"))
    assert sheet.shape[1] > 3 * demo_pictures.PICTURE_CELL
    assert tuple(sheet[3, 3][::-1]) == demo_pictures.ALARM  # the banner: untrained
    video = cv2.VideoCapture(str(next((tmp_path / "out").glob("side_by_side.mp4"))))
    assert video.read()[0]


def compressed_bag(path, payload):
    with BagWriter(path, "sqlite3") as bag:
        bag.add_topic(Topic("/eye/image/compressed", "sensor_msgs/msg/CompressedImage"))
        for index in range(10):
            message = serialize_message(payload(index))
            bag.write("/eye/image/compressed", 10**18 + index * 100_000_000, message)
    return path


def test_a_bag_of_jpegs_is_played_as_it_is(tmp_path, start):
    bag = compressed_bag(tmp_path / "in.bag", lambda i: encode_compressed(street(i), Header(), 95))
    run = start(NOOP, "--input", bag, "--output-dir", tmp_path / "out")
    assert run.finish() == 0, run.err
    assert row(run.out, "frames sent") == "10"
    assert row(run.out, "model") == "tiny (noop), trained"
    assert not (tmp_path / "out" / "input.bag").exists()
    # what was sent went through the noop node unchanged, so outputs match inputs by stamp
    with BagReader(tmp_path / "out" / "output.bag") as recorded:
        assert recorded.topic("/eye/image/compressed").count == 10
        pairs = list(demo_pictures.matched(recorded, "/eye/image/compressed"))
    assert pairs
    for pair in pairs:
        np.testing.assert_array_equal(pair["/eye/image/compressed"], pair[MAGIMG])


def test_no_frame_out_is_an_error(tmp_path, start):
    broken = CompressedImage(format="jpeg", data=b"\xff\xd8 not a picture")
    bag = compressed_bag(tmp_path / "in.bag", lambda _index: broken)
    run = start(NOOP, "--input", bag, "--output-dir", tmp_path / "out")
    assert run.finish() == 2
    assert "no frame came out of 10 sent" in run.err
    assert "Frame dropped" in run.err  # the node's last words
    assert run.children() == []


def test_a_model_that_is_not_there_is_an_error_with_the_nodes_words(tmp_path, folder, start):
    run = start(REAL, "--input", folder, "--output-dir", tmp_path, "--model", tmp_path / "none")
    assert run.finish() == 2
    assert "the node stays unconfigured" in run.err
    assert str(tmp_path / "none") in run.err
    assert "Traceback" not in run.err
    assert run.children() == []


def test_a_node_that_dies_is_an_error(tmp_path, folder, start):
    run = start(NOOP, "--input", folder, "--output-dir", tmp_path / "out")
    run.wait_for("playing")
    (node,) = run.children()
    os.kill(node, signal.SIGKILL)
    assert run.finish() == 2
    assert "the node ended unexpectedly (signal 9)" in run.err
    assert "Active: /image" in run.err  # the node's last words
    with BagReader(tmp_path / "out" / "output.bag") as bag:  # as far as it got
        assert bag.topic("/image").count >= 1


@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "playing"), (signal.SIGTERM, "another process")]
)
def test_a_signal_stops_everything(tmp_path, folder, start, number, moment):
    run = start(NOOP, "--input", folder, "--output-dir", tmp_path / "out")
    run.wait_for(moment)
    run.process.send_signal(number)
    assert run.finish() == 128 + number
    assert run.err == ""
    assert run.children() == []


def test_only_bags_make_way_for_a_new_run(tmp_path):
    bag = recorded_bag(tmp_path / "output.bag", {1})
    remove_bag(bag)
    assert not bag.exists()
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").touch()
    remove_bag(tmp_path / "precious")
    assert (tmp_path / "precious" / "file").exists()
    remove_bag(tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--input", "{}/none.mp4"], "does not exist"),
        (["--input", "{}/in.bag", "--degrade", "noise"], "not on a bag"),
        (["--input", "{}/in.bag", "--topic", "/none"], "no images on /none; its topics: /eye/"),
        (["--topic", "/eye"], "not a bag"),
        (["--degrade", "snow"], "snow"),
    ],
)
def test_a_wrong_argument_is_one_line(tmp_path, capsys, monkeypatch, arguments, text):
    monkeypatch.setattr(demo, "stop_on_signals", StopRequest)
    compressed_bag(tmp_path / "in.bag", lambda i: encode_compressed(street(i), Header(), 95))
    arguments = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    assert cli.main(["demo", *arguments, "--output-dir", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert text in err
    assert len(err.strip().splitlines()) == 1


# --- parts ---------------------------------------------------------------------------------------


def recorded_bag(path, complete):
    """Inputs 0 to 9, and outputs of the frames in `complete`; the others lack their MagImg."""
    names = ("/image", ENHANCED, INFRARED, MAGIMG, COLOR, MASK)
    with BagWriter(path) as bag:
        for name in names:
            bag.add_topic(Topic(name, "sensor_msgs/msg/Image"))
        for index in range(10):
            header = Header()
            header.stamp.sec = 100 + index
            for offset, name in enumerate(names):
                if name == MAGIMG and index not in complete:
                    continue
                picture = np.full((8, 16, 3), index * 10 + offset, np.uint8)
                encoding = "rgb8"
                if name in (MASK, INFRARED):
                    picture, encoding = picture[..., 0], "mono8"
                message = serialize_message(encode_image(picture, encoding, header))
                bag.write(name, 10**18 + index * 1000 + offset, message)
    return path


def test_only_complete_sets_of_one_stamp_are_shown(tmp_path):
    with BagReader(recorded_bag(tmp_path / "bag", {1, 4, 5})) as bag:
        sets = list(demo_pictures.matched(bag, "/image"))
        for index, each in zip((1, 4, 5), sets, strict=True):
            for offset, name in enumerate(("/image", ENHANCED, INFRARED, MAGIMG, COLOR)):
                assert (each[name] == index * 10 + offset).all()


def test_structure_is_what_can_be_made_out_and_not_noise():
    scene = street(0, 320, 240)
    hazy = (scene * 0.3 + 150).astype(np.uint8)
    flat = np.full_like(scene, 90)
    noisy = flat + np.random.default_rng(0).integers(0, 8, scene.shape, np.uint8)
    rank = [demo_pictures.structure(picture) for picture in (flat, noisy, hazy, scene)]
    assert rank == sorted(rank)
    assert rank[0] == 0.0
    assert rank[1] < rank[3] / 4


def test_the_picture_is_of_the_frame_that_gained_most(tmp_path):
    """Of the frames 1 to 3, the MagImg of the second shows a street."""
    names, pictures = ("/image", MAGIMG, COLOR, ENHANCED, INFRARED), {}
    with BagWriter(tmp_path / "bag") as bag:
        for name in names:
            bag.add_topic(Topic(name, "sensor_msgs/msg/Image"))
        for second in (1, 2, 3):
            header = Header()
            header.stamp.sec = second
            dark = np.full((64, 96, 3), second, np.uint8)
            for name in names:
                pictures[second, name] = street(0) if (second, name) == (2, MAGIMG) else dark
                message = serialize_message(encode_image(pictures[second, name], "rgb8", header))
                bag.write(name, second * 10**9, message)
    with BagReader(tmp_path / "bag") as bag:
        written = demo_pictures.write_pictures(
            bag,
            tmp_path / "sheet",
            demo_pictures.Texts("/image", ""),
            fps=10.0,
            progress=lambda _: None,
        )
    assert [path.name for path in written] == ["sheet.png", "sheet.mp4"]
    sheet = cv2.imread(str(written[0]))[..., ::-1]
    assert (sheet == 2).all(-1).mean() > 0.2
    assert (sheet == 3).all(-1).mean() < 0.01


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("size", [(640, 272), (320, 240), (120, 180)])
@pytest.mark.parametrize("labels", ["drive", "cityscapes", None])
def test_a_sheet_shows_each_picture_in_its_place(trained, size, labels):
    texts = demo_pictures.Texts(
        "/image",
        "a caption",
        facts=("model tiny", "10 fps"),
        labels=LabelSet.load(labels) if labels else None,
        trained=trained,
    )
    sheet = demo_pictures.Sheet(size, demo_pictures.VIDEO_CELL, texts)
    names = ("/image", MAGIMG, COLOR, ENHANCED, INFRARED)
    tones = dict(zip(names, (70, 110, 150, 190, 230), strict=True))
    drawn = sheet.fill(
        {name: np.full((*size[::-1], 3), tone, np.uint8) for name, tone in tones.items()}
    )
    assert drawn.shape[0] % 2 == drawn.shape[1] % 2 == 0
    cell = (demo_pictures.VIDEO_CELL, round(demo_pictures.VIDEO_CELL * size[1] / size[0]))
    corners = []
    for tone in tones.values():
        rows, columns = np.nonzero((drawn == tone).all(-1))
        # captions are antialiased, so a few of their pixels may have any tone
        top, left = int(np.median(rows)) - cell[1] // 2, int(np.median(columns)) - cell[0] // 2
        inside = drawn[top + 2 : top + cell[1] - 2, left + 2 : left + cell[0] - 2]
        assert (inside == tone).all()
        corners.append((round(top / cell[1]), round(left / cell[0])))
    assert corners == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]  # reading order
    if labels:
        packing = np.array([65536, 256, 1])
        seen = set((drawn.astype(np.int64) @ packing).ravel().tolist())
        assert {int(np.dot(color, packing)) for color in LabelSet.load(labels).palette()} <= seen
    assert ((drawn == demo_pictures.ALARM).all(-1).sum() > 1000) is not trained


def session(**diagnostics):
    stamps = [10**18 + index * 40_000_000 for index in range(10)]
    arrived = {stamp: stamp + 30_000_000 for stamp in stamps[:8:2]}
    return Session(stamps, {MAGIMG: arrived}, diagnostics)


def test_the_table_accounts_for_every_frame():
    said = {"frames_out": "5", "dropped.replaced": "3", "dropped.corrupt_jpeg": "1"}
    said |= {"age_ms.p50": "20.4", "age_ms.p95": "25.6", "trained": "true", "model": "tiny"}
    lines = "\n".join(table("x.mp4", session(**said)))
    assert row(lines, "frames sent") == "10"
    assert row(lines, "frames fused") == "5"
    assert row(lines, "frames recorded") == "4  (1 lost on the way)"
    dropped = "5  (3 replaced by a newer frame, 1 corrupt_jpeg, 1 lost on the way)"
    assert row(lines, "frames dropped") == dropped
    assert row(lines, "fps") == "12.5"
    assert row(lines, "age at publish, p50 / p95 ms").startswith("20 / 26 ")
    assert row(lines, "age on arrival, p50 / p95 ms").startswith("30 / 30 ")
    assert "UNTRAINED" not in lines
    assert "UNTRAINED" in "\n".join(table("x.mp4", session(trained="false")))


def test_the_camera_topic_of_a_bag_is_found():
    raw, jpeg = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
    topics = (
        Topic("/a/compressed", jpeg, 5),
        Topic("/b", raw, 5),
        Topic("/c", raw, 0),
        Topic(MAGIMG, raw, 5),
        Topic("/note", "std_msgs/msg/String", 5),
    )
    assert choose_topic(topics, None, Path("bag")).name == "/b"
    assert choose_topic(topics, "/a/compressed", Path("bag")).name == "/a/compressed"
    assert choose_topic(topics, MAGIMG, Path("bag")).name == MAGIMG
    with pytest.raises(BagError, match="no images on /note"):
        choose_topic(topics, "/note", Path("bag"))
    with pytest.raises(BagError, match="no camera images"):
        choose_topic(topics[2:], None, Path("bag"))


def test_a_degraded_clip_keeps_its_light_but_not_its_noise():
    degrade = degradation("low-light:0.7,noise:0.2")
    scene = street(0, 320, 240)
    a, b = degrade(scene, 0), degrade(scene, 1)
    np.testing.assert_array_equal(a, degrade(scene, 0))
    assert (a != b).mean() > 0.5
    assert abs(a.mean() - b.mean()) < 0.5
    assert a.mean() < 0.6 * scene.mean()
    with pytest.raises(ValueError, match="snow"):
        degradation("snow")
    with pytest.raises(ValueError, match="number from 0 to 1"):
        degradation("noise:much")


def test_every_output_of_the_session_has_a_stamp_to_match_by():
    header = Header()
    header.stamp.sec, header.stamp.nanosec = 5, 7
    message = serialize_message(Image(header=header))
    assert read_stamp(message) == 5_000_000_007


def test_progress_is_short_where_nobody_watches(capsys):
    line = ProgressLine(sys.stdout, period_s=3600)
    for count in range(50):
        line(f"playing: {count} sent")
        time.sleep(0)
    line("waiting for the last frames")
    line.end("done")
    assert capsys.readouterr().out.splitlines() == [
        "playing: 0 sent",
        "waiting for the last frames",
        "done",
    ]
