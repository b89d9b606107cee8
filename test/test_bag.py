"""Bags: what is written is read back from both storages; what cannot be read is one clear error."""

import contextlib
import sqlite3
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String
from support.bag_frames import frames
from support.messages import encode_image
from support.videos import UNEVEN, evenly, write_video

from magicfuse_ros import cli
from magicfuse_ros.bags import image_topics
from magicfuse_ros.bags.from_video import write_bag
from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.bags.writer import STORAGES, BagWriter
from magicfuse_ros.commands import bag as bag_command
from magicfuse_ros.commands.exit_status import StopRequest
from magicfuse_ros.resources import sample_video
from magicfuse_ros.ros import stamps
from magicfuse_ros.ros.images.codec import decode_compressed, decode_image
from magicfuse_ros.sources.frame import SourceError
from magicfuse_ros.sources.pictures import picture_files
from magicfuse_ros.sources.source import open_source

START_NS = 1_700_000_000_123_456_789


def picture(index, width=64, height=48):
    """A smooth picture that differs from frame to frame and survives JPEG."""
    y, x = np.mgrid[0:height, 0:width]
    channels = [x * 3 + index * 5, y * 4, x + y + index * 9]
    return np.stack([channel % 200 for channel in channels], -1).astype(np.uint8)


def picture_folder(folder, count, width=64, height=48):
    folder.mkdir()
    for index in range(count):
        rgb = picture(index, width, height)
        cv2.imwrite(str(folder / f"f{index}.png"), cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
    return folder


@pytest.fixture
def magicfuse(capsys, monkeypatch):
    """`magicfuse bag …` in this process: exit status, stdout, stderr."""
    monkeypatch.setattr(bag_command, "stop_on_signals", lambda **_: StopRequest())

    def run(*arguments):
        capsys.readouterr()
        status = cli.main(["bag", *map(str, arguments)])
        return (status, *capsys.readouterr())

    return run


# --- round trips ---------------------------------------------------------------------------------

MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["/a", "/b/c"]),
        st.integers(0, 2**62),
        st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=40),
    ),
    max_size=12,
)


@pytest.mark.parametrize("storage", sorted(STORAGES))
@settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(messages=MESSAGES)
def test_what_is_written_is_read_back_in_order_of_time(tmp_path_factory, storage, messages):
    path = tmp_path_factory.mktemp("bag") / "out.bag"
    with BagWriter(path, storage) as bag:
        for name in ("/a", "/b/c"):
            bag.add_topic(Topic(name, "std_msgs/msg/String"))
        for name, received_ns, text in messages:
            bag.write(name, received_ns, serialize_message(String(data=text)))
    with BagReader(path) as bag:
        read = [
            (
                message.topic.name,
                message.received_ns,
                deserialize_message(message.data, String).data,
            )
            for message in bag.messages()
        ]
        times = [message[1] for message in read]
        assert sorted(read) == sorted(messages)
        assert times == sorted(times)
        assert bag.message_count == len(messages)
        assert bag.storage == storage
        assert {topic.name: topic.count for topic in bag.topics} == {
            name: sum(message[0] == name for message in messages) for name in ("/a", "/b/c")
        }
        assert (bag.start_ns, bag.end_ns) == ((min(times), max(times)) if times else (0, 0))
        only_a = [message.topic.name for message in bag.messages(["/a"])]
        assert only_a == ["/a"] * sum(message[0] == "/a" for message in messages)


@pytest.mark.parametrize("storage", sorted(STORAGES))
@pytest.mark.parametrize("reliability", ["reliable", "best_effort"])
@pytest.mark.parametrize("durability", ["volatile", "transient_local"])
def test_qos_of_a_topic_is_kept(tmp_path, storage, reliability, durability):
    topic = Topic("/t", "std_msgs/msg/String", reliability=reliability, durability=durability)
    with BagWriter(tmp_path / "bag", storage) as bag:
        bag.add_topic(topic)
    with BagReader(tmp_path / "bag") as bag:
        assert bag.topics == (topic,)


@settings(deadline=None)
@given(
    before=st.integers(0, 2**31 * 10**9 - 1),
    after=st.integers(-(2**31) * 10**9, 2**31 * 10**9 - 1),
    frame_id=st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20),
)
def test_the_stamp_in_a_serialised_message_is_read_and_replaced(before, after, frame_id):
    header = Header(frame_id=frame_id)
    header.stamp.sec, header.stamp.nanosec = divmod(before, 10**9)
    message = CompressedImage(header=header, format="jpeg", data=b"abc")
    data = serialize_message(message)
    assert stamps.read_stamp(data) == before
    moved = deserialize_message(stamps.with_stamp(data, after), CompressedImage)
    assert moved.header.stamp.sec * 10**9 + moved.header.stamp.nanosec == after
    moved.header.stamp = header.stamp
    assert moved == message


def test_a_stamp_outside_ros_time_and_a_message_without_header_are_refused():
    with pytest.raises(ValueError, match="int32"):
        stamps.with_stamp(serialize_message(Image()), 2**31 * 10**9)
    with pytest.raises(ValueError, match="no header"):
        stamps.read_stamp(b"\x00\x01\x00\x00")
    assert stamps.has_header(Image)
    assert not stamps.has_header(String)


# --- frames to bag -------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_raw_frames_come_back_exactly(tmp_path, storage):
    source = open_source(picture_folder(tmp_path / "in", 12)).at_rate(20.0)
    count = write_bag(
        source,
        tmp_path / "bag",
        start_ns=START_NS,
        storage=storage,
        topic="/cam/image",
        frame_id="eye",
    )
    with BagReader(tmp_path / "bag") as bag:
        assert (count, bag.message_count, bag.topics[0].name) == (12, 12, "/cam/image")
        read = list(frames(bag, "/cam/image"))
        for index, frame in enumerate(read):
            np.testing.assert_array_equal(frame.frame, picture(index))
            assert frame.stamp_ns == frame.received_ns == START_NS + index * 50_000_000
        first = deserialize_message(next(bag.messages()).data, Image)
        assert (first.header.frame_id, first.encoding, first.step) == ("eye", "rgb8", 192)
        assert image_topics.describe_images(bag) == {"/cam/image": "64x48 rgb8"}


def test_compressed_frames_come_back_close(tmp_path):
    source = open_source(picture_folder(tmp_path / "in", 3))
    write_bag(
        source, tmp_path / "bag", start_ns=START_NS, topic="/image/compressed", compressed=True
    )
    with BagReader(tmp_path / "bag") as bag:
        assert bag.topics[0].type == "sensor_msgs/msg/CompressedImage"
        assert [topic.name for topic in image_topics.image_topics(bag)] == ["/image/compressed"]
        for index, frame in enumerate(frames(bag, "/image/compressed")):
            error = np.abs(frame.frame.astype(int) - picture(index)).mean()
            assert error < 8
        assert "jpeg" in image_topics.describe_images(bag)["/image/compressed"]


def test_a_video_keeps_its_rate_and_another_rate_keeps_its_speed():
    video = sample_video()
    source = open_source(video)
    assert (source.rate, source.count) == (25.0, 250)
    sizes = {frame.rgb.shape for frame in source.frames()}
    assert sizes == {(272, 640, 3)}
    slower = source.at_rate(10.0).of_size((160, 68))
    read = list(slower.frames())
    assert (len(read), slower.count, read[0].rgb.shape) == (100, 100, (68, 160, 3))
    faster = sum(1 for _ in source.at_rate(50.0).frames())
    assert faster == 500


def test_a_variable_frame_rate_keeps_its_times_in_the_bag(tmp_path):
    video = write_video(tmp_path / "v.mp4", UNEVEN)
    assert cli.main(["bag", "from-video", str(video), str(tmp_path / "bag")]) == 0
    with BagReader(tmp_path / "bag") as bag:
        messages = [
            (message.received_ns, stamps.read_stamp(message.data)) for message in bag.messages()
        ]
    start_ns = messages[0][0]
    assert [(time - start_ns) / 1e9 for time, _ in messages] == pytest.approx(UNEVEN, abs=1e-4)
    assert all(time == stamp for time, stamp in messages)


def test_a_video_that_is_cut_short_is_kept_as_far_as_it_goes_and_told(tmp_path, capsys):
    video = write_video(tmp_path / "v.avi", evenly(30), codec="mjpeg")
    video.write_bytes(video.read_bytes()[: video.stat().st_size // 2])
    assert cli.main(["bag", "from-video", str(video), str(tmp_path / "bag")]) == 1
    assert "v.avi is cut short after" in capsys.readouterr().err
    with BagReader(tmp_path / "bag") as bag:
        assert 5 < bag.message_count < 20


def test_images_are_taken_in_natural_order(tmp_path):
    for name in ("f10.png", "f2.png", "f1.PNG", "notes.txt", "a.jpg"):
        (tmp_path / name).touch()
    assert [file.name for file in picture_files(tmp_path)] == [
        "a.jpg",
        "f1.PNG",
        "f2.png",
        "f10.png",
    ]


def test_an_image_folder_may_mix_sizes(tmp_path):
    folder = picture_folder(tmp_path / "in", 1)
    cv2.imwrite(str(folder / "z.png"), np.zeros((10, 20, 3), np.uint8))
    assert [frame.rgb.shape for frame in open_source(folder).frames()] == [(48, 64, 3), (10, 20, 3)]
    scaled = open_source(folder).of_size((30, 40))
    assert [frame.rgb.shape for frame in scaled.frames()] == [(40, 30, 3)] * 2


# --- what cannot be read or written --------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda _path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no pictures"),
        (lambda path: path.write_bytes(b"no video" * 99), "cannot be read as a video"),
    ],
)
def test_an_unreadable_source_is_one_clear_error(tmp_path, make, text):
    make(tmp_path / "in")
    with pytest.raises(SourceError, match=text):
        open_source(tmp_path / "in")


def test_a_broken_image_leaves_no_bag(tmp_path):
    folder = picture_folder(tmp_path / "in", 2)
    (folder / "f9.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(SourceError, match=r"f9\.png is not a readable picture"):
        write_bag(open_source(folder), tmp_path / "bag", start_ns=START_NS)
    assert not (tmp_path / "bag").exists()


def small_bag(path, storage):
    write_bag_frames = [picture(index) for index in range(6)]
    with BagWriter(path, storage) as bag:
        bag.add_topic(Topic("/image", "sensor_msgs/msg/Image"))
        for index, frame in enumerate(write_bag_frames):
            message = encode_image(frame, "rgb8", Header())
            bag.write("/image", START_NS + index, serialize_message(message))
    return path


def storage_file(bag):
    return next(file for file in bag.iterdir() if file.suffix in {".mcap", ".db3"})


@pytest.mark.parametrize("storage", sorted(STORAGES))
@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.97])
def test_a_truncated_bag_is_one_clear_error(tmp_path, storage, kept):
    file = storage_file(small_bag(tmp_path / "bag", storage))
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(BagError) as caught, BagReader(tmp_path / "bag") as bag:
        list(bag.messages())
    text = str(caught.value)
    assert "damaged" in text
    assert "bag" in text
    assert "\n" not in text


@pytest.mark.parametrize("storage", sorted(STORAGES))
@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 0.999), noise=st.binary(min_size=1, max_size=64))
def test_damaged_bytes_are_read_or_refused_but_never_crash(tmp_path_factory, storage, place, noise):
    bag_path = small_bag(tmp_path_factory.mktemp("bag") / "bag", storage)
    file = storage_file(bag_path)
    content = bytearray(file.read_bytes())
    start = int(place * len(content))
    content[start : start + len(noise)] = noise
    file.write_bytes(content)
    refusal, messages = "", []
    try:
        with BagReader(bag_path) as bag:
            messages = list(bag.messages())
    except BagError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal or len(messages) >= 6


@pytest.mark.parametrize("value", [10**12, "text", 1.5])
def test_a_message_that_is_no_bytes_is_refused(tmp_path, value):
    """bytes(10**12) would take a terabyte."""
    file = storage_file(small_bag(tmp_path / "bag", "sqlite3"))
    with contextlib.closing(sqlite3.connect(file)) as base, base:
        base.execute("UPDATE messages SET data = ?", (value,))
    with pytest.raises(BagError, match="not bytes"), BagReader(tmp_path / "bag") as bag:
        list(bag.messages())


@pytest.mark.parametrize("kind", [image_topics.IMAGE_TYPE, image_topics.COMPRESSED_TYPE])
def test_a_message_that_is_shorter_than_its_padding_is_refused(kind):
    """Fast CDR takes the padding off what is not there, and would read on to the process's end."""
    with pytest.raises(BagError, match="4 bytes that are no"):
        image_topics.decode(Topic("/image", kind), b"\0\1\0\3")


def test_other_paths_are_named_for_what_they_are(tmp_path):
    with pytest.raises(BagError, match="does not exist"):
        BagReader(tmp_path / "none")
    with pytest.raises(BagError, match="is not a bag"):
        BagReader(tmp_path)
    (tmp_path / "metadata.yaml").write_text("rosbag2_bagfile_information: 7")
    with pytest.raises(BagError, match="damaged"):
        BagReader(tmp_path)
    (tmp_path / "old.bag").write_bytes(b"#ROSBAG V2.0\n")
    with pytest.raises(BagError, match="ROS 1"):
        BagReader(tmp_path / "old.bag")
    (tmp_path / "video.mp4").touch()
    with pytest.raises(BagError, match="is not a bag"):
        BagReader(tmp_path / "video.mp4")


def test_a_bag_is_never_overwritten_and_unknown_things_are_refused(tmp_path):
    with pytest.raises(BagError, match="exists already"):
        BagWriter(tmp_path)
    with pytest.raises(ValueError, match="mcap, sqlite3"):
        BagWriter(tmp_path / "bag", "tape")
    with pytest.raises(ValueError, match="full name"):
        Topic("image", "std_msgs/msg/String")
    with BagWriter(tmp_path / "bag") as bag:
        with pytest.raises(BagError, match="definition of nobody/msg/Knows"):
            bag.add_topic(Topic("/x", "nobody/msg/Knows"))
        bag.add_topic(Topic("/x", "std_msgs/msg/String"))
        with pytest.raises(BagError, match="already"):
            bag.add_topic(Topic("/x", "std_msgs/msg/String"))
        with pytest.raises(BagError, match="not announced"):
            bag.write("/y", 0, b"")
    with BagReader(tmp_path / "bag") as bag, pytest.raises(BagError, match="it has: /x"):
        bag.topic("/y")


# --- the commands --------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", sorted(STORAGES))
def test_from_video_and_info(tmp_path, magicfuse, storage):
    folder = picture_folder(tmp_path / "in", 4)
    out = tmp_path / "out.bag"
    status, _, errors = magicfuse(
        "from-video", folder, out, "--fps", 8, "--size", "32x24", "--storage", storage
    )
    assert (status, errors) == (0, "")
    status, told, errors = magicfuse("info", out)
    assert (status, errors) == (0, "")
    for part in (f"({storage})", "messages  4", "/image", "32x24 rgb8", "8.00 Hz", "reliable"):
        assert part in told


def test_from_video_degrades_the_same_way_every_time(tmp_path, magicfuse):
    folder = picture_folder(tmp_path / "in", 3)
    for name in ("a", "b"):
        made = magicfuse(
            "from-video", folder, tmp_path / name, "--degrade", "low-light:0.8,noise:0.2"
        )
        assert made[0] == 0, made
    with BagReader(tmp_path / "a") as a, BagReader(tmp_path / "b") as b:
        pictures = [[each.frame for each in frames(bag, "/image")] for bag in (a, b)]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert np.mean(pictures[0][0]) < 0.5 * np.mean(picture(0))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["from-video", "{}/none.mp4", "{}/out"], "does not exist"),
        (["from-video", "{}/in", "{}/out", "--fps", "0"], "fps 0.0"),
        (["from-video", "{}/in", "{}/out", "--storage", "tape"], "mcap, sqlite3"),
        (["from-video", "{}/in", "{}/out", "--degrade", "snow"], "snow"),
        (["from-video", "{}/in", "{}/in"], "exists already"),
        (["info", "{}/none"], "does not exist"),
        (["play", "{}/none"], "does not exist"),
        (["record", "{}/in"], "exists already"),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr_and_leaves_nothing(
    tmp_path, magicfuse, arguments, text
):
    picture_folder(tmp_path / "in", 1)
    status, _, errors = magicfuse(*(each.replace("{}", str(tmp_path)) for each in arguments))
    assert status == 2
    assert text in errors
    assert len(errors.strip().splitlines()) == 1
    assert [path.name for path in Path(tmp_path).iterdir()] == ["in"]


def test_decoding_of_the_two_image_types_agrees(tmp_path):
    rgb = picture(0)
    data = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    np.testing.assert_array_equal(decode_compressed(CompressedImage(format="png", data=data)), rgb)
    np.testing.assert_array_equal(decode_image(encode_image(rgb, "rgb8", Header())), rgb)
