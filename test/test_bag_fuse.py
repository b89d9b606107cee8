"""`magicfuse bag fuse`: every image of every camera, as the node would publish it."""

import contextlib

import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header
from support.fuse_bags import (
    COMPRESSED,
    FRAME_NS,
    FRONT,
    IMAGE,
    REAR,
    START_NS,
    by_topic,
    calibration,
    command,
    contents,
    drive,
    fuse,
    header,
    options,
    picture,
    spoil,
)
from support.messages import encode_image
from support.noop_node import FAIL, NoopEngine
from support.system import FuseNodeProcess, Listener, random_domain

from magicfuse_ros import cli
from magicfuse_ros.bags.fuse_plan import OUTPUTS, node_names
from magicfuse_ros.bags.fuse_segments import partial_of
from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.bags.writer import STORAGES, BagWriter
from magicfuse_ros.ros.images.codec import encode_compressed
from magicfuse_ros.runtime.contract import EngineError


@pytest.mark.parametrize("storage", sorted(STORAGES))
@pytest.mark.parametrize("into", sorted(STORAGES))
def test_every_image_of_every_camera_is_fused_and_the_rest_is_copied(tmp_path, storage, into):
    source = drive(tmp_path / "in", storage)
    summary = fuse(source, tmp_path / "out", options(storage=into))

    assert (summary.fused, summary.left_out, summary.resumed) == (20, 0, 0)
    before, after = by_topic(source), by_topic(tmp_path / "out")
    assert set(after) == {*FRONT, *REAR, "/front/camera_info", "/depth/image", "/notes", "/odd"}
    for name in ("/front/camera_info", "/depth/image", "/notes", "/odd"):
        assert after[name] == before[name]
    cameras = dict.fromkeys(FRONT, "/front/image_raw")
    cameras |= dict.fromkeys(REAR, "/rear/image_raw/compressed")
    for name, camera in cameras.items():
        assert [at for at, _ in after[name]] == [at for at, _ in before[camera]]
    for index, (_, data) in enumerate(after["/front/fuse_node/magimg"]):
        assert deserialize_message(data, Image) == encode_image(
            picture(index), "rgb8", header(index, "front_eye")
        )
    mask = deserialize_message(after["/rear/fuse_node/semantic/mask"][3][1], Image)
    assert (mask.width, mask.height, mask.encoding) == (48, 20, "mono8")
    assert mask.header == header(3, "rear_eye")

    _, definitions, topics, made_as, _ = contents(tmp_path / "out")
    assert made_as == into
    assert definitions >= {
        each for each in contents(source)[1] if each[0] in ("/odd", "/notes", "/depth/image")
    }
    kept = {topic.name: topic for topic in topics}
    assert kept["/notes"].durability == "transient_local"
    assert not partial_of(tmp_path / "out").exists()


def test_the_calibration_is_the_newest_so_far_scaled_to_the_picture(tmp_path):
    fuse(drive(tmp_path / "in"), tmp_path / "out")
    infos = [
        deserialize_message(data, CameraInfo)
        for _, data in by_topic(tmp_path / "out")["/front/fuse_node/camera_info"]
    ]
    assert {(info.width, info.height) for info in infos} == {(32, 24)}
    assert [info.header for info in infos] == [header(index, "front_eye") for index in range(10)]
    # The first frame came before any CameraInfo and takes the first; the others their forerunner's.
    assert [info.k[0] for info in infos] == [25.0] * 6 + [25.5] * 4


def test_the_messages_are_those_that_the_node_publishes(tmp_path):
    source = drive(tmp_path / "in", frames=4)
    chosen = {"id_map": "person:6, *:9", "min_confidence": 0.5, "jpeg_quality": 60}
    fuse(source, tmp_path / "out", options(steps=7, outputs=tuple(OUTPUTS), **chosen))
    domain = random_domain()
    parameters = {
        "steps": 7,
        "jpeg_quality": chosen["jpeg_quality"],
        "semantic.id_map": f"'{chosen['id_map']}'",
        "semantic.min_confidence": chosen["min_confidence"],
    }
    remapped = ["-r", "__ns:=/front", "-r", "image:=/front/image_raw"]
    with (
        FuseNodeProcess(
            domain, tmp_path / "log", parameters=parameters, arguments=remapped
        ) as node,
        Listener(domain, "/front/fuse_node") as listener,
        BagReader(source) as bag,
    ):
        node.wait_for_log("Active")
        types = {IMAGE: Image, COMPRESSED: CompressedImage}
        heard = {
            name: listener.hear(f"/front/fuse_node/{name}", types.get(kind, CameraInfo))
            for name, kind in OUTPUTS.items()
        }
        infos = listener.node.create_publisher(CameraInfo, "/front/camera_info", 10)
        images = listener.node.create_publisher(Image, "/front/image_raw", 10)
        for publisher in (infos, images):
            listener.wait(lambda p=publisher: p.get_subscription_count() > 0, "no subscription")
        first = encode_image(picture(0), "rgb8", Header(frame_id="first"))
        for _ in range(20):  # until all know each other, and the node has a calibration
            infos.publish(calibration(0))
            images.publish(first)
            with contextlib.suppress(TimeoutError):
                listener.wait(lambda: all(heard.values()), "not every output came", 3.0)
                break

        def of_the_bag(received):
            return [message for message in received if message.header.frame_id != "first"]

        for count, message in enumerate(bag.messages(["/front/image_raw"]), 1):
            images.publish(message.data)
            for name, received in heard.items():
                listener.wait(
                    lambda r=received, n=count: len(of_the_bag(r)) == n, f"{name} is missing"
                )
    made = by_topic(tmp_path / "out")
    for name, received in heard.items():
        kind = types.get(OUTPUTS[name], CameraInfo)
        ours = [deserialize_message(data, kind) for _, data in made[f"/front/fuse_node/{name}"]]
        assert ours == of_the_bag(received), name


def test_with_input_the_pictures_are_beside_their_results(tmp_path):
    source = drive(tmp_path / "in", frames=3)
    assert command(source, tmp_path / "out", "--with-input").returncode == 0
    before, after = by_topic(source), by_topic(tmp_path / "out")
    assert set(after) == {*before, *FRONT, *REAR}
    for name, messages in before.items():
        assert after[name] == messages
    with pytest.raises(BagError, match="with_input was true and is now false"):
        fuse(source, tmp_path / "out", options(seed=None))


def test_pictures_of_12_bits_are_told_and_come_out_bright_when_asked_for(tmp_path):
    said = []
    with BagWriter(tmp_path / "in") as bag:
        bag.add_topic(Topic("/image", IMAGE))
        for index in range(40):
            message = Image(height=4, width=4, encoding="mono16", step=8)
            message.data = (4095).to_bytes(2, "little") * 16
            bag.write("/image", START_NS + index, serialize_message(message))
    chosen = options(outputs=("magimg",), topics=("/image",))
    fuse(tmp_path / "in", tmp_path / "dark", chosen, say=said.append)
    assert sum("/image may come out too dark" in text for text in said) == 1
    chosen = options(outputs=("magimg",), topics=("/image",), input_bits=12)
    fuse(tmp_path / "in", tmp_path / "bright", chosen)
    brightest = [
        max(deserialize_message(by_topic(tmp_path / name)["/fuse_node/magimg"][0][1], Image).data)
        for name in ("dark", "bright")
    ]
    assert brightest == [16, 255]


def test_outputs_topics_and_their_order_are_the_askers(tmp_path):
    source = drive(tmp_path / "in", frames=2)
    chosen = options(
        topics=("/rear/image_raw/compressed",),
        outputs=("infrared", "semantic/mask"),
        storage="mcap",
    )
    assert fuse(source, tmp_path / "out", chosen).fused == 2
    assert set(by_topic(tmp_path / "out")) == {
        "/rear/fuse_node/infrared",
        "/rear/fuse_node/semantic/mask",
        "/front/image_raw",
        "/front/camera_info",
        "/depth/image",
        "/notes",
        "/odd",
    }
    # In another order it is the same request.
    again = options(topics=chosen.topics, outputs=("semantic/mask", "infrared"), storage="mcap")
    assert fuse(source, tmp_path / "out", again).already


@pytest.mark.parametrize(
    ("names", "nodes"),
    [
        (["/image"], ["/fuse_node"]),
        (["/front/image_raw", "/rear/image_rect"], ["/front/fuse_node", "/rear/fuse_node"]),
        (["/left", "/right"], ["/left/fuse_node", "/right/fuse_node"]),
        (["/image_left", "/image_right"], ["/image_left/fuse_node", "/image_right/fuse_node"]),
        (["/a/image_raw", "/a/image", "/b/image"], ["/a/image_raw", "/a/image", "/b"]),
        (["/a/image", "/a"], ["/a/image", "/a"]),
        (["/a/image/image", "/a/image_raw", "/a/image"], None),
    ],
)
def test_nodes_are_named_after_their_cameras_and_never_alike(names, nodes):
    named = node_names([Topic(name, IMAGE) for name in names])
    assert list(named) == names
    assert len(set(named.values())) == len(names)
    if nodes is not None:
        assert [name.removesuffix("/fuse_node") for name in named.values()] == [
            node.removesuffix("/fuse_node") for node in nodes
        ]


def test_the_twin_of_a_camera_and_what_was_fused_before_are_no_cameras(tmp_path):
    said = []
    with BagWriter(tmp_path / "in") as bag:
        for name, kind in (
            ("/image", IMAGE),
            ("/image/compressed", COMPRESSED),
            ("/fuse_node/magimg", IMAGE),
            ("/fuse_node/semantic/color", IMAGE),
            ("/other/fuse_node/magimg", IMAGE),
        ):
            bag.add_topic(Topic(name, kind))
            message = (
                encode_compressed(picture(0), Header(), 80)
                if kind == COMPRESSED
                else encode_image(picture(0), "rgb8", Header())
            )
            bag.write(name, START_NS, serialize_message(message))
    assert fuse(tmp_path / "in", tmp_path / "out", say=said.append).fused == 1
    made = set(by_topic(tmp_path / "out"))
    assert {"/image/compressed", "/other/fuse_node/magimg", "/fuse_node/magimg"} <= made
    assert not {"/image", "/fuse_node/semantic/color"} & made
    assert any("/image/compressed is copied" in text for text in said)
    assert any("made anew: /fuse_node/magimg, /fuse_node/semantic/color" in text for text in said)
    # A second fusion of that output makes the same of the twin, by name.
    twin = options(topics=("/image/compressed",))
    assert fuse(tmp_path / "out", tmp_path / "twin", twin).fused == 1


def test_a_frame_that_cannot_be_fused_is_counted_told_and_left_out(tmp_path):
    said = []
    source = drive(tmp_path / "in", spoil=spoil)
    summary = fuse(source, tmp_path / "out", say=said.append)
    reasons = dict(summary.reasons)

    assert (summary.fused, summary.left_out) == (15, 5)
    for reason in ("undecodable", "unknown_encoding", "too_large", "unsupported_frame"):
        assert reasons.pop(reason) == 1
    assert sum(reasons.values()) == 1  # the JPEG
    assert sum("left out, " in text for text in said) == 5
    assert any("smell8" in text and "/front/image_raw at 1700000000.4234" in text for text in said)
    after = by_topic(tmp_path / "out")
    shown = [0, 2, 4, 6, 8, 9]
    for name in FRONT:
        assert [at for at, _ in after[name]] == [START_NS + index * FRAME_NS for index in shown]
    assert {len(after[name]) for name in REAR} == {9}
    # Done is done, and still says what is missing.
    again = fuse(source, tmp_path / "out")
    assert (again.already, again.fused, again.left_out) == (True, 15, 5)


def test_a_broken_first_image_is_one_frame_less_and_the_bag_is_described(tmp_path, capsys):
    def broken(topic, index, data):
        return b"\0\1\0\0" if index == 0 and "image" in topic else data

    source = drive(tmp_path / "in", frames=3, spoil=broken)
    summary = fuse(source, tmp_path / "out")
    assert (summary.fused, summary.reasons) == (4, (("undecodable", 2),))
    assert cli.main(["bag", "info", str(source)]) == 0
    described = capsys.readouterr().out
    assert "32x24 rgb8" in described
    assert "/depth/image" in described


def test_an_output_that_cannot_be_written_is_found_before_the_model_is_loaded(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BagError, match=r"cannot write .*out\.partial: Not a directory"):
        fuse(drive(tmp_path / "in", frames=1), tmp_path / "file" / "out", factory=None)


@pytest.mark.parametrize("with_input", [False, True])
def test_an_engine_that_fails_ends_the_run_and_nothing_is_lost(tmp_path, with_input):
    def failing(topic, index, data):
        if (topic, index) != ("/front/image_raw", 6):
            return data
        shown = picture(0)
        shown[0, 0] = FAIL
        return serialize_message(encode_image(shown, "rgb8", Header()))

    source = drive(tmp_path / "in", spoil=failing)
    with pytest.raises(EngineError, match=r"front/image_raw at 1700000000\.7.*the same command"):
        fuse(source, tmp_path / "out", options(with_input=with_input))
    assert not (tmp_path / "out").exists()

    class Repaired(NoopEngine):
        def fuse(self, frame, extras=frozenset()):
            if tuple(frame[0, 0]) == FAIL:
                frame = picture(0)
            return super().fuse(frame, extras)

    summary = fuse(source, tmp_path / "out", options(with_input=with_input), factory=Repaired)
    assert (summary.fused, summary.resumed) == (20, 12)
    fuse(source, tmp_path / "whole", options(with_input=with_input), factory=Repaired)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{}/none", "{}/out"], "does not exist"),
        (["{}/in", "{}/in"], "is no bag that `bag fuse` made"),
        (["{}/in", "{}/out", "--topics", "/left"], "it has: /depth/image, /front"),
        (["{}/in", "{}/out", "--topics", "/notes"], "no image"),
        (["{}/in", "{}/out", "--outputs", "smell"], "accepted: magimg, "),
        (["{}/in", "{}/out", "--storage", "tape"], "mcap, sqlite3"),
        (["{}/in", "{}/out", "--jpeg-quality", "0"], "jpeg_quality is 0"),
        (["{}/in", "{}/out", "--input-bits", "7"], "7 bits: accepted are 8 to 16"),
        (["{}/in", "{}/out", "--id-map", "person"], "name:id"),
        (["{}/in", "{}/out", "--id-map", "dragon:3"], "'dragon' is not in the label set"),
        (["{}/in", "{}/out", "--steps", "-1"], "steps is -1"),
        (["{}/in", "{}/out", "--model", "missing"], "model 'missing' is not there"),
        (["{}/dark", "{}/out"], "has no camera to fuse; its topics: /notes"),
        (["{}/*.mcap", "{}/out"], "no bag fits"),
        (["{}/in", "{}/dark", "{}/in", "{}"], "choose another folder"),
    ],
)
def test_a_wrong_argument_is_one_line_on_stderr_and_leaves_nothing(wrong_bags, arguments, text):
    arguments = [argument.replace("{}", str(wrong_bags)) for argument in arguments]
    result = command(*arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("magicfuse bag fuse: ")
    assert text in last
    assert sorted(path.name for path in wrong_bags.iterdir()) == ["dark", "in"]


@pytest.fixture(scope="module")
def wrong_bags(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wrong")
    drive(folder / "in", frames=1)
    with BagWriter(folder / "dark") as bag:
        bag.add_topic(Topic("/notes", "std_msgs/msg/String"))
    return folder
