"""semantic_cloud across processes: a scene with known classes, matching, faults, lifecycle."""

import signal
import sys

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import TransformStamped
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image, PointCloud2
from support import scene
from support.system import (
    ACTIVATE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    CameraProcess,
    FuseNodeProcess,
    Listener,
    random_domain,
    rgb,
    stamp_ns,
)

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.cloud.cloud_codec import read_points
from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS
from magicfuse_ros.ros.example_planner import look_ahead

# Telling how it is five times a second, so that tests wait less.
QUICK = """
import sys
from magicfuse_ros.ros import managed_node
from magicfuse_ros.ros.cloud.semantic_cloud import main

managed_node.TICK_S = 0.2
sys.exit(main())
"""
COMMAND = [sys.executable, "-c", QUICK]
SECOND = 10**9
SIZE = (320, 240)
K = [210.0, 0.0, 159.5, 0.0, 210.0, 119.5, 0.0, 0.0, 1.0]
LENSES = {
    "": [],
    "plumb_bob": [-0.28, 0.07, 0.0002, -0.0003, 0.0],
    "equidistant": [0.01, -0.005, 0.002, -0.0005],
}
# A scanner (x forward, y left, z up) half a metre above the camera and 0.3 m behind it.
POSITION = (0.1, -0.5, -0.3)
EXTRINSIC = "0.1 -0.5 -0.3 1.5707963267948966 -1.5707963267948966 0.0"
SMALL = np.array([[-1.0, 0.0, 5.0], [1.0, 0.0, 5.0], [0.0, 0.0, -5.0]])


def to_scanner(points):
    """Turn (N, 3) points of the camera's frame into the scanner's."""
    x, y, z = (points - np.array(POSITION)).T
    return np.column_stack([z, -x, -y])


class Rig:
    """A camera process, semantic_cloud, and what is heard of it."""

    def __init__(self, node, camera, listener):
        self.node, self.camera, self.listener = node, camera, listener
        self.stamps = iter(range(1, 10**6))
        self.size = None
        self.heard = {
            name: listener.hear(f"/semantic_cloud/{name}", kind)
            for name, kind in (("points", PointCloud2), ("mask", Image), ("confidence", Image))
        }

    def stamp(self):
        return next(self.stamps) * SECOND + 250_000_000

    def info(self, *, k=K, size=SIZE, model="", frame="camera"):
        fields = {"width": size[0], "height": size[1], "k": k, "frame_id": frame}
        fields |= {"distortion_model": model, "d": LENSES[model]}
        self.send("info", "fuse_node/camera_info", fields)

    def send(self, kind, topic, *messages, **options):
        self.camera.publish(*messages, topic=f"/{topic}", kind=kind, **options)

    def frame(self, stamp, mask, confidence=None, color=None, frame="camera"):
        pictures = {
            "mask": mask,
            "confidence": np.full_like(mask, 255) if confidence is None else confidence,
            "color": np.stack([mask] * 3, axis=-1) if color is None else color,
        }
        for name, picture in pictures.items():
            encoding = "rgb8" if name == "color" else "mono8"
            fields = scene.image_fields(picture, encoding, stamp, frame)
            self.send("raw", f"fuse_node/semantic/{name}", fields)

    def cloud(self, stamp, points, frame="camera", **options):
        self.send("cloud", "points", scene.cloud_fields(points, stamp, frame, **options))

    def painted(self, stamp):
        """Wait for the cloud of this stamp, and its mask and confidence."""

        def found():
            return all(
                any(stamp_ns(message) == stamp for message in messages)
                for messages in self.heard.values()
            )

        self.listener.wait(found, lambda: f"no painted cloud:\n{self.node.log}")
        return [
            next(message for message in messages if stamp_ns(message) == stamp)
            for messages in self.heard.values()
        ]

    def set(self, **values):
        results = self.listener.set_parameters(**values)
        assert all(result.successful for result in results), results

    def dropped(self, reason, kind="dropped"):
        return int(self.listener.values().get(f"{kind}.{reason}", 0))

    def wait_dropped(self, reason, count, kind="dropped"):
        key = f"{kind}.{reason}"
        return self.listener.next_status(lambda _, values: int(values.get(key, 0)) >= count)


@pytest.fixture(scope="module")
def rig(tmp_path_factory):
    domain = random_domain()
    log = tmp_path_factory.mktemp("cloud") / "log"
    with (
        FuseNodeProcess(domain, log, command=COMMAND) as node,
        CameraProcess(domain) as camera,
        Listener(domain, "/semantic_cloud") as listener,
    ):
        node.wait_for_log("Active")
        rig = Rig(node, camera, listener)
        rig.info()
        yield rig


@pytest.fixture(autouse=True)
def defaults(request):
    yield
    if "rig" in request.fixturenames:
        spoilt = request.getfixturevalue("rig")
        spoilt.listener.enable(True)
        spoilt.set(
            **{spec.name.replace(".", "__"): spec.default for spec in CLOUD_PARAMETERS if spec.live}
        )


def column(cloud, name):
    field = next(entry for entry in cloud.fields if entry.name == name)
    kinds = {"class_id": np.uint8, "confidence": np.float32, "rgb": np.uint32}
    kind = np.dtype(kinds.get(name, np.float32))
    data = np.frombuffer(cloud.data, np.uint8).reshape(-1, cloud.point_step)
    part = np.ascontiguousarray(data[:, field.offset : field.offset + kind.itemsize])
    return part.view(kind).ravel()


@pytest.mark.parametrize("lens", LENSES)
def test_a_scanners_points_get_the_classes_of_a_known_scene(rig, lens):
    """A 64-line scanner above the camera, through three lenses: 99 % of all points are right."""
    matrix = np.array(K).reshape(3, 3)
    _, classes = scene.cast((0.0, 0.0, 0.0), scene.rays(SIZE, matrix, lens, LENSES[lens]))
    mask = classes.reshape(SIZE[::-1])
    confidence = np.where(mask == scene.PERSON, 100, 200).astype(np.uint8)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(LabelSet.load("drive"))] = LabelSet.load("drive").palette()
    points, labels = scene.scan(POSITION, 64, 1024)
    inside, visible = scene.seen(points, SIZE, matrix, lens, LENSES[lens])
    truth = np.where(visible, labels, 255)
    rig.set(extrinsic=EXTRINSIC, occlusion__gap=10)
    rig.info(model=lens)
    stamp = rig.stamp()

    rig.frame(stamp, mask, confidence, palette[mask])
    rig.cloud(stamp, to_scanner(points), frame="lidar")
    cloud, cloud_mask, cloud_confidence = rig.painted(stamp)

    found = column(cloud, "class_id")
    right = found == truth
    hidden = inside & ~visible
    print(
        f"{lens or 'no'} distortion: {len(points)} points, {right.mean():.4%} right; "
        f"{inside.sum()} inside, {right[inside].mean():.4%}; "
        f"{visible.sum()} visible, {right[visible].mean():.4%}; "
        f"{hidden.sum()} hidden, {right[hidden].mean():.4%}"
    )
    assert right.mean() >= 0.99
    assert right[inside].mean() >= 0.98
    assert right[visible].mean() >= 0.99
    assert np.allclose(read_points(cloud).T, to_scanner(points), atol=1e-5)
    assert np.array_equal(column(cloud, "intensity"), np.arange(len(points)) % 251)
    person = found == scene.PERSON
    assert person.sum() > 50
    # What example_planner makes of it: the person is 6 m before the camera, 0.3 m less to here.
    names = dict(enumerate(LabelSet.load("drive").names()))
    planned = look_ahead(scene.structured(cloud), names, optical=False, lane_m=2.4)
    assert (planned.ends_at, planned.free_m) == ("person", pytest.approx(6.3, abs=0.3))
    assert np.allclose(column(cloud, "confidence")[person], 100 / 255)
    red, green, blue = palette[scene.PERSON].astype(np.uint32)
    assert (column(cloud, "rgb")[person] == red << 16 | green << 8 | blue).all()
    # What Nav2 takes: pictures of one pixel a point, under the cloud's own stamp and frame.
    for message in (cloud_mask, cloud_confidence):
        assert (message.height, message.width) == (cloud.height, cloud.width)
        assert message.header == cloud.header
    assert cloud.header.frame_id == "lidar"
    assert bytes(cloud_mask.data) == found.tobytes()
    assert cloud_confidence.data[int(np.flatnonzero(person)[0])] == 100
    rig.info()


def test_a_depth_cameras_cloud_keeps_its_shape_and_gets_every_pixel(rig):
    """Registered depth: pixel and point are one, so that every class is right."""
    width, height = 64, 48
    k = [42.0, 0.0, 31.5, 0.0, 42.0, 23.5, 0.0, 0.0, 1.0]
    directions = scene.rays((width, height), np.array(k).reshape(3, 3), "", [])
    reach, classes = scene.cast((0.0, 0.0, 0.0), directions)
    points = directions * np.where(np.isfinite(reach), reach, np.nan)[:, None]
    stamp = rig.stamp()
    rig.info(k=k, size=(width, height))

    rig.frame(stamp, classes.reshape(height, width))
    rig.cloud(stamp, points, height=height)
    cloud, mask, _ = rig.painted(stamp)

    assert (cloud.height, cloud.width) == (mask.height, mask.width) == (height, width)
    assert np.array_equal(column(cloud, "class_id"), classes)
    rig.info()


def test_unseen_points_are_kept_or_dropped(rig):
    mask = np.full(SIZE[::-1], 3, np.uint8)
    first, second = rig.stamp(), rig.stamp()
    rig.frame(first, mask)
    rig.cloud(first, SMALL)
    kept, _, _ = rig.painted(first)
    assert column(kept, "class_id").tolist() == [3, 3, 255]

    rig.set(unseen="drop")
    rig.frame(second, mask)
    rig.cloud(second, SMALL)
    cloud, cloud_mask, confidence = rig.painted(second)
    assert column(cloud, "class_id").tolist() == [3, 3]
    assert cloud.width == cloud_mask.width == confidence.width == 2


def test_stamps_match_within_slop_and_the_output_has_the_clouds(rig):
    mask = np.full(SIZE[::-1], 4, np.uint8)
    stamp = rig.stamp()
    rig.cloud(stamp - 60_000_000, SMALL)
    rig.cloud(stamp + 20_000_000, SMALL)
    rig.frame(stamp, mask)

    cloud, cloud_mask, _ = rig.painted(stamp + 20_000_000)

    assert stamp_ns(cloud) == stamp_ns(cloud_mask) == stamp + 20_000_000
    rig.wait_dropped("no_mask", 1)


def test_clouds_and_masks_without_a_counterpart_are_counted(rig):
    _, before = rig.listener.next_status()
    mask = np.full(SIZE[::-1], 4, np.uint8)
    lonely, alone, last = rig.stamp(), rig.stamp(), rig.stamp()
    rig.frame(lonely, mask)
    rig.cloud(alone, SMALL)
    rig.frame(last, mask)
    rig.cloud(last, SMALL)
    rig.painted(last)

    _, after = rig.listener.next_status(
        lambda _, values: values["masks_pending"] == values["frames_pending"] == "0"
    )

    def change(key):
        return int(after.get(key, 0)) - int(before.get(key, 0))

    assert change("frames_in") == 2
    assert change("frames_out") == change("dropped.no_mask") == 1
    assert change("masks_in") == 2
    assert change("masks_out") == change("masks_dropped.no_cloud") == 1


def test_without_a_transform_clouds_are_counted_and_the_way_out_is_said(rig):
    stamp = rig.stamp()
    rig.frame(stamp, np.full(SIZE[::-1], 4, np.uint8))
    rig.cloud(stamp, SMALL, frame="lidar")

    status, _ = rig.wait_dropped("no_transform", 1)

    assert status.level == DiagnosticStatus.WARN
    assert "no_transform" in status.message
    assert "set `extrinsic`" in rig.node.log


def test_tf_tells_where_the_scanner_sits(rig):
    tf2_msgs = pytest.importorskip(
        "tf2_msgs.msg", reason="tf2 is not installed (it is not on PyPI); source a ROS 2 to run"
    )
    pytest.importorskip("tf2_ros", reason="tf2_ros is not installed (it is not on PyPI)")
    pose = TransformStamped(child_frame_id="scanner")
    pose.header.frame_id = "camera"
    pose.transform.translation.z = 10.0
    publisher = rig.listener.node.create_publisher(
        tf2_msgs.TFMessage,
        "/tf_static",
        QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL),
    )
    publisher.publish(tf2_msgs.TFMessage(transforms=[pose]))
    rig.listener.wait(lambda: publisher.get_subscription_count() > 0, "nobody listens to tf")
    ids = np.full(SIZE[::-1], 4, np.uint8)
    for _ in range(20):  # the transform takes a moment
        stamp = rig.stamp()
        out = int(rig.listener.values().get("frames_out", 0))
        rig.frame(stamp, ids)
        rig.cloud(stamp, SMALL, frame="scanner")
        _, values = rig.listener.next_status()
        if int(values["frames_out"]) > out:
            break
    assert column(rig.painted(stamp)[0], "class_id").tolist() == [4, 4, 4]
    rig.listener.in_executor(rig.listener.node.destroy_publisher, publisher)


@pytest.mark.parametrize(
    ("reason", "mask", "cloud"),
    [
        ("short_data", {}, {"data": 8}),
        ("no_coordinates", {}, {"fields": []}),
        ("bad_mask", {"encoding": "rgb8", "step": SIZE[0] * 3}, {}),
        ("picture_size", {"height": 100}, {}),
        ("zero_size", {"height": 0}, {}),
    ],
)
def test_a_bad_message_is_counted_and_the_next_cloud_is_painted(rig, reason, mask, cloud):
    ids = np.full(SIZE[::-1], 4, np.uint8)
    first, second = rig.stamp(), rig.stamp()
    before = rig.dropped(reason)
    rig.frame(first, ids)  # its confidence and color; the mask comes once more, spoilt
    spoilt = scene.image_fields(ids, "mono8", second, "camera") | mask
    plain = scene.image_fields(ids, "mono8", second, "camera")
    rig.send("raw", "fuse_node/semantic/mask", spoilt)
    rig.send("raw", "fuse_node/semantic/confidence", plain)
    rig.send(
        "raw",
        "fuse_node/semantic/color",
        scene.image_fields(np.stack([ids] * 3, axis=-1), "rgb8", second, "camera"),
    )
    rig.cloud(first, SMALL)
    rig.send("cloud", "points", scene.cloud_fields(SMALL, second, "camera") | cloud)
    rig.painted(first)
    rig.wait_dropped(reason, before + 1)

    third = rig.stamp()
    rig.frame(third, ids)
    rig.cloud(third, SMALL)
    rig.painted(third)


def test_a_recording_that_starts_anew_goes_on(rig):
    rig.stamp()
    ids = np.full(SIZE[::-1], 4, np.uint8)
    late = 900_000 * SECOND
    rig.frame(late, ids)
    rig.cloud(late, SMALL)
    rig.painted(late)
    early = rig.stamp()
    rig.frame(early, ids)
    rig.cloud(early, SMALL)
    rig.painted(early)


def test_live_parameters_act_on_the_next_cloud_and_refusals_say_why(rig):
    for changes, text in [
        # rclpy's own words, from the ranges that the node declares.
        ({"slop": -1.0}, "slop out of range"),
        ({"queue": 0}, "queue out of range"),
        ({"unseen": "hide"}, "accepted: keep, drop"),
        ({"extrinsic": "1 2 3"}, "accepted: six numbers"),
        ({"color": False}, "color needs a reconfigure: deactivate and clean up first"),
        ({"autostart": False}, "needs a reconfigure"),
    ]:
        (result,) = rig.listener.set_parameters(**changes)
        assert not result.successful
        assert text in result.reason
    ids = np.full(SIZE[::-1], 4, np.uint8)
    stamp = rig.stamp()
    rig.set(slop=0.0)
    rig.frame(stamp, ids)
    rig.cloud(stamp + 1, SMALL)
    rig.wait_dropped("no_cloud", 1, kind="masks_dropped")
    # Shifted so far aside that the middle of the picture sees nothing but the third point.
    rig.set(extrinsic="0 0 10 0 0 0")
    stamp = rig.stamp()
    rig.frame(stamp, ids)
    rig.cloud(stamp, SMALL)
    assert column(rig.painted(stamp)[0], "class_id").tolist() == [4, 4, 4]


def test_enable_pauses_and_counts(rig):
    ids = np.full(SIZE[::-1], 4, np.uint8)
    before = rig.dropped("disabled")
    assert rig.listener.enable(False).success
    stamp = rig.stamp()
    rig.frame(stamp, ids)
    rig.cloud(stamp, SMALL)
    _, values = rig.wait_dropped("disabled", before + 1)
    assert values["enabled"] == "false"
    # As soon as what other tests did has left the window of what is judged.
    rig.listener.next_status(
        lambda status, _: (
            (status.level, status.message) == (DiagnosticStatus.OK, "paused by ~/enable")
        )
    )
    assert rig.listener.enable(True).success
    stamp = rig.stamp()
    rig.frame(stamp, ids)
    rig.cloud(stamp, SMALL)
    rig.painted(stamp)


def test_silence_is_stale_and_missing_masks_are_said(rig):
    status, _ = rig.listener.next_status(lambda status, _: status.level == DiagnosticStatus.STALE)
    assert "no frames on /points" in status.message
    assert "no mask on /fuse_node/semantic/mask" in status.message


def test_a_part_that_never_comes_is_named(rig):
    """A mask without its color: the clouds expire, and `queue` is not to blame."""
    ids = np.full(SIZE[::-1], 4, np.uint8)

    def named(status):
        return "no color on /fuse_node/semantic/color" in status.message

    for _ in range(30):
        stamp = rig.stamp()
        for name in ("mask", "confidence"):
            fields = scene.image_fields(ids, "mono8", stamp, "camera")
            rig.send("raw", f"fuse_node/semantic/{name}", fields)
        rig.cloud(stamp, SMALL)
        status, _ = rig.listener.next_status()
        if named(status):
            break
    assert named(status)
    assert "raise the parameter queue" not in status.message


def test_twenty_lifecycle_rounds_leave_nothing_behind(rig):
    ids = np.full(SIZE[::-1], 4, np.uint8)
    memory = []
    for _ in range(20):
        for transition in (DEACTIVATE, CLEANUP, CONFIGURE, ACTIVATE):
            assert rig.listener.change_state(transition)
        memory.append(float(rig.listener.next_status()[1]["memory_mb"]))
    assert rig.listener.state() == "active"
    rig.listener.wait(
        lambda: len(rig.listener.node.get_publishers_info_by_topic("/semantic_cloud/points")) == 1,
        "publishers are left behind",
    )
    for topic in ("/points", "/fuse_node/semantic/mask", "/fuse_node/camera_info"):
        rig.listener.wait(
            lambda topic=topic: len(rig.listener.node.get_subscriptions_info_by_topic(topic)) == 1,
            f"subscriptions of {topic} are left behind",
        )
    print(f"memory after 1 and 20 rounds: {memory[0]:.1f} and {memory[-1]:.1f} MiB")
    assert memory[-1] - memory[0] < 10.0
    rig.info()
    stamp = rig.stamp()
    rig.frame(stamp, ids)
    rig.cloud(stamp, SMALL)
    rig.painted(stamp)


def test_it_sits_beside_fuse_node_without_a_remapping(tmp_path):
    """fuse_node's own messages, in a namespace, down to the painted cloud, without color."""
    domain = random_domain()
    namespace = ["-r", "__ns:=/front"]
    with (
        FuseNodeProcess(domain, tmp_path / "fuse.log", arguments=namespace) as fuse,
        FuseNodeProcess(
            domain,
            tmp_path / "cloud.log",
            command=COMMAND,
            parameters={"color": False},
            arguments=namespace,
        ) as node,
        CameraProcess(domain) as camera,
        Listener(domain, "/front/semantic_cloud") as listener,
    ):
        fuse.wait_for_log("Active")
        node.wait_for_log("Active")
        points = listener.hear("/front/semantic_cloud/points", PointCloud2)
        picture = np.full((12, 16, 3), 90, np.uint8)
        k = [10.0, 0.0, 7.5, 0.0, 10.0, 5.5, 0.0, 0.0, 1.0]
        info = {"width": 16, "height": 12, "k": k, "frame_id": "camera"}
        at = iter(range(1, 60))

        def painted():
            stamp = next(at) * SECOND
            seconds = [stamp // SECOND, 0]
            camera.publish(info | {"stamp": seconds}, topic="/front/camera_info", kind="info")
            camera.publish(rgb(picture, stamp), topic="/front/image")
            cloud = scene.cloud_fields(SMALL, stamp, "camera")
            camera.publish(cloud, topic="/front/points", kind="cloud")
            return len(points) > 0

        for _ in range(30):  # the first ones come while the nodes find each other
            if painted():
                break
            listener.next_status()
        # fuse_node's no-op engine: class 1 with confidence 255 left, 2 with 100 right.
        cloud = points[0]
        assert column(cloud, "class_id").tolist() == [1, 2, 255]
        assert column(cloud, "confidence").tolist() == pytest.approx([1.0, 100 / 255, 0.0])
        assert column(cloud, "rgb").tolist() == [0, 0, 0]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("autostart", [True, False])
def test_a_signal_ends_it_cleanly(tmp_path, number, autostart):
    with FuseNodeProcess(
        random_domain(),
        tmp_path / "log",
        command=COMMAND,
        parameters={"autostart": autostart},
    ) as node:
        node.wait_for_log("Active" if autostart else "autostart is false")
        node.send(number, number)
        assert node.exit_code() == 0
        assert not node.lines("ERROR")
        assert "Traceback" not in node.log


def test_a_bad_start_value_is_named_and_mended(tmp_path):
    domain = random_domain()
    with (
        FuseNodeProcess(
            domain, tmp_path / "log", command=COMMAND, parameters={"extrinsic": "'1 2'"}
        ) as node,
        Listener(domain, "/semantic_cloud") as listener,
    ):
        node.wait_for_log("Cannot configure: extrinsic is '1 2'; accepted: six numbers")
        # One from before the failure may still be on its way.
        listener.next_status(lambda status, _: status.level == DiagnosticStatus.ERROR)
        (result,) = listener.set_parameters(extrinsic=EXTRINSIC)
        assert result.successful, result.reason
        assert listener.change_state(CONFIGURE)
        assert listener.change_state(ACTIVATE)
        assert listener.state() == "active"
