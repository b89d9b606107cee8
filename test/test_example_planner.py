"""`example_planner`: what it finds in a street of known classes, and as the node that it is."""

import importlib.util
import signal
import sys

import numpy as np
import pytest
from sensor_msgs.msg import PointCloud2, PointField
from std_msgs.msg import Header, String
from support import scene
from support.system import CameraProcess, FuseNodeProcess, Listener, random_domain

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.cloud.cloud_codec import painted_cloud
from magicfuse_ros.ros.cloud.painting import Painted
from magicfuse_ros.ros.example_planner import Ahead, look_ahead, look_at_pictures
from magicfuse_ros.ros.outputs import labels_as_json
from magicfuse_ros.ros.qos import LATCHED_QOS

NAMES = dict(enumerate(LabelSet.load("drive").names()))
IDS = {name: number for number, name in NAMES.items()}
SIZE, FOCAL = (320, 240), 210.0
MISSING = [
    name for name in ("cv_bridge", "sensor_msgs_py") if importlib.util.find_spec(name) is None
]


def painted(points, classes, confidence=None):
    """The PointCloud2 that semantic_cloud makes of (N, 3) points of the optical frame."""
    given = scene.cloud_fields(points, 0, "camera_optical_frame")
    cloud = PointCloud2(header=Header(frame_id=given["frame_id"]), height=1, width=len(points))
    cloud.fields = [PointField(**field) for field in given["fields"]]
    cloud.point_step, cloud.row_step, cloud.is_dense = 16, 16 * len(points), True
    data = np.zeros((len(points), 4), np.float32)
    data[:, :3] = points
    cloud.data = data.tobytes()
    sure = np.ones(len(points), np.float32) if confidence is None else confidence
    paint = Painted(classes, sure, np.zeros(len(points), np.uint32), np.ones(len(points), bool))
    return painted_cloud(cloud, paint, keep_unseen=True)


def street():
    """A scanner's cloud of support/scene.py: a person at 6 m on the right, a car at 14 m."""
    points, classes = scene.scan((0.0, -0.5, 0.0), 64, 720)
    return points, classes


def test_in_a_known_street_the_lane_ends_where_the_scene_says():
    points, classes = street()
    # The person stands 1.0 to 1.6 m to the right, the pole beside the lane.
    seen = look_ahead(scene.structured(painted(points, classes)), NAMES, optical=True, lane_m=2.4)

    assert seen.ends_at == "person"
    assert seen.free_m == pytest.approx(6.0, abs=0.2)
    ((ahead, left),) = seen.people
    assert ahead == pytest.approx(6.0, abs=0.2)
    assert -1.7 < left < -0.9
    narrow = look_ahead(scene.structured(painted(points, classes)), NAMES, optical=True, lane_m=1.6)
    assert narrow.people == seen.people
    assert narrow.ends_at == ""
    assert narrow.free_m > 12.0


def test_a_lidars_axes_and_a_cameras_give_the_same():
    points, classes = street()
    optical = scene.structured(painted(points, classes))
    lidar = scene.structured(
        painted(np.column_stack([points[:, 2], -points[:, 0], -points[:, 1]]), classes)
    )
    one = look_ahead(optical, NAMES, optical=True)
    assert look_ahead(lidar, NAMES, optical=False) == one
    assert one.free_m > 0


def lane(*rows):
    """Points in the middle of the lane: (metres ahead, class, confidence, how many)."""
    flat = [(0.0, 1.5, m, name, sure) for m, name, sure, count in rows for _ in range(count)]
    points = np.array([each[:3] for each in flat], float)
    classes = np.array([IDS.get(each[3], 255) for each in flat], np.uint8)
    return scene.structured(
        painted(points, classes, np.array([each[4] for each in flat], np.float32))
    )


ROAD = [(float(m), "road", 0.9, 2) for m in range(1, 21)]


@pytest.mark.parametrize(
    ("rows", "free_m", "ends_at"),
    [
        (ROAD, 20.0, ""),
        ([*ROAD, (8.0, "car", 0.1, 3)], 8.0, "car"),  # an obstacle need not be sure
        ([*ROAD, (8.0, "car", 0.9, 2)], 20.0, ""),  # two points are an edge's
        ([*ROAD, (8.0, "sky", 0.9, 9), (7.0, "nothing", 0.9, 9)], 20.0, ""),
        ([(m, "road", 0.4, 2) for m, *_ in ROAD], 0.0, ""),  # the road must be sure
        ([*ROAD[:6], *ROAD[14:]], 6.0, ""),  # what lies behind a gap is not known
        ([*ROAD[9:], (9.0, "person", 0.9, 3)], 0.0, ""),
    ],
)
def test_the_road_is_free_as_far_as_it_is_known(rows, free_m, ends_at):
    seen = look_ahead(lane(*rows), NAMES, optical=True)
    assert (seen.free_m, seen.ends_at) == (pytest.approx(free_m), ends_at)


def test_nothing_seen_is_nothing_free():
    nothing = scene.structured(painted(np.zeros((0, 3)), np.zeros(0, np.uint8)))
    assert look_ahead(nothing, NAMES, optical=True) == Ahead(0.0, "", ())
    assert str(Ahead(0.0, "", ())).endswith("then nothing is known; people near it: 0")


def test_what_is_ahead_is_said_in_words():
    ahead = Ahead(8.24, "car", ((6.0, -1.3), (9.0, 2.0)))
    assert str(ahead) == (
        "free road ahead: 8.2 m, then car; "
        "people near it: 2, the nearest 6.0 m ahead and 1.3 m to the right"
    )


def pictures():
    down, right = np.mgrid[: SIZE[1], : SIZE[0]]
    rays = np.stack([right - SIZE[0] / 2, down - SIZE[1] / 2, np.full(down.shape, FOCAL)], -1)
    mask = scene.cast((0.0, 0.0, 0.0), rays.reshape(-1, 3))[1].reshape(SIZE[::-1])
    magimg = np.full((*mask.shape, 3), 40, np.uint8)
    magimg[mask == IDS["road"]] = 90
    return magimg, mask


def test_the_pictures_are_said_in_words():
    magimg, mask = pictures()
    share = f"{(mask == IDS['road']).mean():.0%}"
    expected = f"in the picture: {share} road, of brightness 90; 1 regions of people"
    assert look_at_pictures(magimg, mask, NAMES) == expected


@pytest.mark.skipif(
    bool(MISSING),
    reason=f"{' and '.join(MISSING)} missing: not on PyPI for ROS 2; source a ROS 2 to run",
)
def test_the_node_reads_the_topics_through_cv_bridge_and_sensor_msgs_py(tmp_path):
    domain, stamp = random_domain(), 5 * 10**9
    command = [sys.executable, "-m", "magicfuse_ros.ros.example_planner"]
    magimg, mask = pictures()
    with (
        FuseNodeProcess(domain, tmp_path / "log", command=command) as node,
        CameraProcess(domain) as camera,
        Listener(domain) as listener,
    ):
        labels = listener.node.create_publisher(String, "/fuse_node/semantic/labels", LATCHED_QOS)
        table = np.arange(256, dtype=np.uint8)
        labels.publish(String(data=labels_as_json(LabelSet.load("drive").names(), table)))
        node.wait_for_log("waiting for fuse_node and semantic_cloud")
        cloud = painted(*street())
        paint = listener.node.create_publisher(PointCloud2, "/semantic_cloud/points", 1)
        listener.wait(lambda: paint.get_subscription_count() > 0, "it does not read the cloud")
        while "free road" not in node.log or "in the picture" not in node.log:
            paint.publish(cloud)
            for topic, picture, encoding in (
                ("/fuse_node/magimg", magimg, "rgb8"),
                ("/fuse_node/semantic/mask", mask, "mono8"),
            ):
                camera.publish(scene.image_fields(picture, encoding, stamp, "eye"), topic=topic)
        node.wait_for_log(
            r"free road ahead: \d+\.\d m, then person; people near it: 1, the nearest 6"
        )
        node.wait_for_log(r"in the picture: \d+% road, of brightness 90; 1 regions of people")
        node.send(signal.SIGINT)
        assert node.exit_code() == 0, node.log


def test_what_is_missing_is_named_with_what_to_install(tmp_path):
    program = (
        "import sys; sys.modules['cv_bridge'] = None\n"
        "from magicfuse_ros.ros.example_planner import main\nsys.exit(main())"
    )
    command = [sys.executable, "-c", program]
    with FuseNodeProcess(random_domain(), tmp_path / "log", command=command) as node:
        assert node.exit_code() == 2
        assert "apt install ros-$ROS_DISTRO-cv-bridge ros-$ROS_DISTRO-sensor-msgs-py" in node.log
