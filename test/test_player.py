"""`magicfuse bag play` and `record` as processes of their own, over DDS, with real listeners."""

import os
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message, serialize_message
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String
from support.messages import encode_image

from magicfuse_ros.bags.player import Player, PlayerSettings
from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.ros.dds import PROFILE_VARIABLE, isolate, use_shipped_profile
from magicfuse_ros.ros.images.codec import decode_image

START_NS = 1_700_000_000_000_000_000
PERIOD_NS = 50_000_000
CAMERA_DELAY_NS = 7_000_000  # a message is received after its stamp


@pytest.fixture(autouse=True)
def ros_domain(monkeypatch):
    environment = dict(os.environ)
    isolate(environment, 20 + os.getpid() % 80)
    for name in ("ROS_DOMAIN_ID", "ROS_AUTOMATIC_DISCOVERY_RANGE"):
        monkeypatch.setenv(name, environment[name])


@pytest.fixture
def node():
    context = Context()
    rclpy.init(context=context)
    node = Node("listener", context=context)
    node.spinner = SingleThreadedExecutor(context=context)
    node.spinner.add_node(node)
    yield node
    node.spinner.shutdown()
    node.destroy_node()
    context.try_shutdown()


def spin_until(node, condition, timeout_s=90.0):
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "nothing came in time"
        node.spinner.spin_once(timeout_sec=0.05)


@contextmanager
def magicfuse(*arguments):
    process = subprocess.Popen(
        [sys.executable, "-m", "magicfuse_ros", "bag", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def pictures_bag(path, count=10, storage="mcap", reliability="reliable"):
    rng = np.random.default_rng(3)
    frames = rng.integers(0, 256, (count, 48, 64, 3), dtype=np.uint8)
    with BagWriter(path, storage) as bag:
        bag.add_topic(Topic("/image", "sensor_msgs/msg/Image", reliability=reliability))
        for index, frame in enumerate(frames):
            header = Header(frame_id="eye")
            header.stamp.sec, header.stamp.nanosec = divmod(stamp(index), 10**9)
            message = serialize_message(encode_image(frame, "rgb8", header))
            bag.write("/image", stamp(index) + CAMERA_DELAY_NS, message)
    return frames


def stamp(index):
    return START_NS + index * PERIOD_NS


def clock_ns(tick):
    return tick.clock.sec * 10**9 + tick.clock.nanosec


def stamp_of(message):
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
BEST_EFFORT = QoSProfile(depth=50, reliability=ReliabilityPolicy.BEST_EFFORT)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_every_message_arrives_as_recorded_and_the_clock_tells_the_bags_time(
    tmp_path, node, storage
):
    frames = pictures_bag(tmp_path / "bag", storage=storage)
    got, ticks = [], []
    node.create_subscription(Image, "/image", got.append, RELIABLE)
    node.create_subscription(Clock, "/clock", ticks.append, RELIABLE)
    start = time.monotonic()
    last = stamp(9) + CAMERA_DELAY_NS
    with magicfuse("play", tmp_path / "bag", "--wait-for-subscribers", 60, "--rate", 2) as player:
        spin_until(node, lambda: len(got) == len(frames) and ticks and clock_ns(ticks[-1]) == last)
        assert player.wait(60) == 0
        assert "sent 10 messages" in player.stdout.read()
    # played at rate 2, the 0.45 s between the first and the last take at least half of that
    assert time.monotonic() - start >= 9 * PERIOD_NS / 1e9 / 2
    for index, message in enumerate(got):
        np.testing.assert_array_equal(decode_image(message), frames[index])
        assert (stamp_of(message), message.header.frame_id) == (stamp(index), "eye")
    times = [clock_ns(tick) for tick in ticks]
    assert times == sorted(times)
    assert all(stamp(0) + CAMERA_DELAY_NS <= each <= last for each in times)


def test_the_clock_ticks_between_messages_too(tmp_path, node):
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic(Topic("/note", "std_msgs/msg/String"))
        for second in range(3):
            at = START_NS + second * 10**9
            bag.write("/note", at, serialize_message(String(data=f"{second}")))
    ticks = []
    node.create_subscription(Clock, "/clock", ticks.append, RELIABLE)

    def between():
        whole = 10**9  # messages, and the laps, are whole seconds apart
        return {clock_ns(tick) // whole for tick in ticks if clock_ns(tick) % whole}

    # Of a loop: a player that gets no CPU for a second skips the ticks of that one.
    with magicfuse("play", tmp_path / "bag", "--loop"):
        spin_until(node, lambda: len(between()) >= 4)
    times = [clock_ns(tick) for tick in ticks]
    assert times == sorted(times)


def test_a_node_on_simulated_time_lives_in_the_bags_time(tmp_path, node):
    pictures_bag(tmp_path / "bag")
    node.set_parameters([Parameter("use_sim_time", value=True)])
    times = []

    def receive(_message):
        times.append(node.get_clock().now().nanoseconds)

    node.create_subscription(Image, "/image", receive, RELIABLE)
    start = time.monotonic()
    # A loop, because nobody waits for the node's own subscription to /clock.
    with magicfuse("play", tmp_path / "bag", "--loop", "--wait-for-subscribers", 60):
        spin_until(node, lambda: sum(map(bool, times)) >= 10)  # 0 until the first tick came
    passed_ns = round((time.monotonic() - start) * 1e9)
    told = [each for each in times if each]
    assert told == sorted(told)
    assert all(stamp(0) <= each <= stamp(0) + CAMERA_DELAY_NS + passed_ns for each in told)


def test_restamped_messages_carry_the_wall_time_and_no_clock_is_published(tmp_path, node):
    frames = pictures_bag(tmp_path / "bag")
    got, before_ns = [], time.time_ns()
    node.create_subscription(Image, "/image", lambda m: got.append((m, time.time_ns())), RELIABLE)
    with magicfuse("play", tmp_path / "bag", "--restamp", "--wait-for-subscribers", 60) as player:
        spin_until(node, lambda: len(got) >= 1)
        assert node.get_publishers_info_by_topic("/clock") == []
        spin_until(node, lambda: len(got) == len(frames))
        assert player.wait(60) == 0
    stamps = [stamp_of(message) for message, _ in got]
    assert stamps == sorted(set(stamps))
    for (message, received_ns), frame in zip(got, frames, strict=True):
        assert before_ns < stamp_of(message) < received_ns
        np.testing.assert_array_equal(decode_image(message), frame)


def test_a_loop_goes_on_in_time_until_it_is_interrupted(tmp_path, node):
    pictures_bag(tmp_path / "bag", count=3)
    stamps = []
    node.create_subscription(Image, "/image", lambda m: stamps.append(stamp_of(m)), RELIABLE)
    with magicfuse(
        "play", tmp_path / "bag", "--loop", "--rate", 5, "--wait-for-subscribers", 60
    ) as player:
        spin_until(node, lambda: joined(stamps) >= 8)
        player.send_signal(signal.SIGINT)
        assert player.wait(60) == 130
        assert player.stderr.read() == ""
    assert stamps == sorted(set(stamps))


def joined(stamps):
    """Return how many follow one another at the end, each a period of the bag after the last."""
    count = 1
    while count < len(stamps) and stamps[-count] - stamps[-count - 1] == PERIOD_NS:
        count += 1
    return count if stamps else 0


@pytest.mark.parametrize(
    ("recorded", "wish", "offered"),
    [
        ("best_effort", [], "BEST_EFFORT"),
        ("reliable", [], "RELIABLE"),
        ("best_effort", ["--reliability", "reliable"], "RELIABLE"),
        ("reliable", ["--reliability", "best_effort"], "BEST_EFFORT"),
    ],
)
def test_reliability_is_the_recorded_one_unless_another_is_asked_for(
    tmp_path, node, recorded, wish, offered
):
    pictures_bag(tmp_path / "bag", reliability=recorded)
    got = []
    node.create_subscription(Image, "/image", got.append, BEST_EFFORT)
    # A loop: what is sent best effort before the listener knows the player is not heard.
    with magicfuse("play", tmp_path / "bag", *wish, "--loop", "--wait-for-subscribers", 60):
        spin_until(node, lambda: got)
        infos = node.get_publishers_info_by_topic("/image")
        assert [info.qos_profile.reliability.name for info in infos] == [offered]


def test_a_latched_message_without_header_reaches_a_late_subscriber(tmp_path, node):
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic(Topic("/note", "std_msgs/msg/String", durability="transient_local"))
        bag.add_topic(Topic("/tail", "std_msgs/msg/String"))
        bag.write("/note", START_NS, serialize_message(String(data="hello")))
        bag.write("/tail", START_NS + 600 * 10**9, serialize_message(String(data="end")))
    tail, notes = [], []
    node.create_subscription(Clock, "/clock", tail.append, RELIABLE)
    with magicfuse("play", tmp_path / "bag"):
        spin_until(node, lambda: tail)  # it plays already
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(String, "/note", notes.append, latched)
        spin_until(node, lambda: notes)
    assert notes[0].data == "hello"


def test_types_that_are_not_installed_are_named_and_left_out(tmp_path, node):
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic(Topic("/tf", "tf2_msgs/msg/TFMessage"))
        bag.add_topic(Topic("/note", "std_msgs/msg/String"))
        bag.write("/tf", START_NS, b"\0\1\0\0\0\0\0\0")
        bag.write("/note", START_NS, serialize_message(String(data="hello")))
    got = []
    node.create_subscription(String, "/note", got.append, RELIABLE)
    with magicfuse("play", tmp_path / "bag", "--wait-for-subscribers", 60) as player:
        spin_until(node, lambda: got)
        assert player.wait(60) == 0
        assert "not playing /tf: tf2_msgs/msg/TFMessage is not installed" in player.stderr.read()
    with magicfuse("play", tmp_path / "bag", "--topics", "/tf") as player:
        assert player.wait(60) == 2
        assert "nothing to play: /tf (tf2_msgs/msg/TFMessage" in player.stderr.read()


def test_waiting_for_a_subscriber_in_vain_is_an_error(tmp_path):
    pictures_bag(tmp_path / "bag")
    with magicfuse("play", tmp_path / "bag", "--wait-for-subscribers", 0.5) as player:
        assert player.wait(60) == 2
        assert "no subscriber on every topic within 0.5 s" in player.stderr.read()


def test_a_time_that_ros_cannot_tell_is_refused(tmp_path, node):
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic(Topic("/t", "std_msgs/msg/String"))
        bag.write("/t", 2**62, serialize_message(String()))
    with BagReader(tmp_path / "bag") as bag:
        player = Player(bag, node, PlayerSettings())
        with pytest.raises(BagError, match="/clock cannot tell"):
            player.play(threading.Event())


def test_a_bag_damaged_further_on_plays_up_to_there_and_says_so(tmp_path):
    pictures_bag(tmp_path / "bag", count=400)  # several chunks
    file = next((tmp_path / "bag").glob("*.mcap"))
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 200_000] = bytes(200_000)
    file.write_bytes(content)
    with magicfuse("play", tmp_path / "bag", "--rate", 200) as player:
        assert player.wait(60) == 2
        lines = player.stderr.read().strip().splitlines()
    assert len(lines) == 1
    assert "damaged" in lines[0]


def test_bytes_that_are_no_image_are_one_clear_error(tmp_path):
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic(Topic("/image", "sensor_msgs/msg/Image"))
        bag.write("/image", START_NS, b"\0\1\0\0")
    for action, text in (("play", "has no header"), ("info", "are no sensor_msgs/msg/Image")):
        with magicfuse(action, tmp_path / "bag") as run:
            assert run.wait(60) == 1
            assert text in run.stderr.read()


def test_the_dds_environment_is_isolated_and_keeps_the_users_profile():
    environment = {"ROS_STATIC_PEERS": "10.0.0.1"}
    isolate(environment, 7)
    assert environment == {"ROS_DOMAIN_ID": "7", "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    with pytest.raises(ValueError, match="0 to 101"):
        isolate(environment, 102)
    use_shipped_profile(environment)
    assert Path(environment[PROFILE_VARIABLE]).is_file()
    for variable in (PROFILE_VARIABLE, "FASTRTPS_DEFAULT_PROFILES_FILE"):
        own = {variable: "/my/profile.xml"}
        use_shipped_profile(own)
        assert own == {variable: "/my/profile.xml"}


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"rate": float("nan")}, {"reliability": "yes"}])
def test_settings_name_what_they_accept(wrong):
    with pytest.raises(ValueError, match="accepted are"):
        PlayerSettings(**wrong)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_record_takes_what_is_published_until_ctrl_c(tmp_path, node, storage):
    out = tmp_path / "out.bag"
    images = node.create_publisher(Image, "/eye/image", RELIABLE)
    gusts = node.create_publisher(String, "/gusts", BEST_EFFORT)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
    note = node.create_publisher(String, "/note", latched)
    note.publish(String(data="before"))
    publishers = images, gusts, note
    topics = [publisher.topic_name for publisher in publishers]
    with magicfuse("record", out, *topics, "--storage", storage) as recorder:
        spin_until(node, lambda: all(each.get_subscription_count() for each in publishers))
        before_ns = time.time_ns()
        sent = [np.full((30, 40, 3), value, np.uint8) for value in range(20)]
        for index, frame in enumerate(sent):
            header = Header()
            header.stamp.sec = index
            # Nobody sends this again; it goes the same way as the image behind it, though, which is
            # waited for.
            gusts.publish(String(data=f"{index}"))
            images.publish(encode_image(frame, "rgb8", header))
            node.spinner.spin_once(timeout_sec=0.02)
        for publisher in (images, note):
            assert publisher.wait_for_all_acked(Duration(seconds=60))
        for _ in range(3):  # Ctrl-C that bounces, or one of a terminal and one of a launch file
            recorder.send_signal(signal.SIGINT)
            time.sleep(0.01)
        assert recorder.wait(60) == 0, recorder.stderr.read()
    with BagReader(out) as bag:
        assert {topic.name: topic.reliability for topic in bag.topics} == {
            "/eye/image": "reliable",
            "/gusts": "best_effort",
            "/note": "reliable",
        }
        assert bag.topic("/note").durability == "transient_local"
        pictures = [
            (message.received_ns, deserialize_message(message.data, Image))
            for message in bag.messages(["/eye/image"])
        ]
        notes, blown = (
            [deserialize_message(message.data, String).data for message in bag.messages([topic])]
            for topic in ("/note", "/gusts")
        )
    assert notes == ["before"]
    assert blown == [f"{index}" for index in range(20)]
    assert [message.header.stamp.sec for _, message in pictures] == list(range(20))
    for (received_ns, message), frame in zip(pictures, sent, strict=True):
        np.testing.assert_array_equal(decode_image(message), frame)
        assert before_ns < received_ns < time.time_ns()


def test_record_keeps_what_it_has_when_the_disk_is_full(tmp_path, node):
    images = node.create_publisher(Image, "/image", RELIABLE)

    with magicfuse("record", tmp_path / "out", "/image") as recorder:
        spin_until(node, images.get_subscription_count)
        # From here on the kernel refuses longer files, as on a full disk.
        limit = 5_000_000, resource.RLIM_INFINITY
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, limit)
        frame = encode_image(np.zeros((300, 400, 3), np.uint8), "rgb8", Header())
        while recorder.poll() is None:
            images.publish(frame)
            node.spinner.spin_once(timeout_sec=0.02)
        assert recorder.returncode == 2
        told = recorder.stderr.read()
    kept = int(re.search(r"cannot write to bag .*; (\d+) messages are kept in it", told)[1])
    assert "Traceback" not in told
    with BagReader(tmp_path / "out") as bag:
        assert len(list(bag.messages())) == kept > 4


def test_record_says_which_topic_never_came_and_can_be_run_again(tmp_path):
    for _ in range(2):
        with magicfuse("record", tmp_path / "out", "/nobody", "--duration", 1) as recorder:
            assert recorder.wait(60) == 1
            assert "nothing was published on /nobody" in recorder.stderr.read()
    with BagReader(tmp_path / "out") as bag:
        assert bag.message_count == 0


def test_a_first_message_at_time_0_is_not_waited_for_years(tmp_path, node):
    """A clock that was set while it was recorded."""
    times = [0, 10**8, START_NS, START_NS + 10**8]
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic(Topic("/t", "std_msgs/msg/String"))
        for at in times:
            bag.write("/t", at, serialize_message(String()))
    with BagReader(tmp_path / "bag") as bag:
        player = Player(bag, node, PlayerSettings(rate=10.0), lambda *sent: told.append(sent[1]))
        told = []
        assert player.play(threading.Event()) == 4
        assert player.duration_s == pytest.approx(0.2)
    assert told == sorted(told)
    assert told[2:] == times[2:]
    assert told[1] - told[0] == 10**8
