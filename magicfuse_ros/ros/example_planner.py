"""`example_planner`: reads what the nodes publish, as a driving stack would. An example to copy.

    ros2 run magicfuse_ros example_planner

It takes pictures through cv_bridge and the painted cloud through sensor_msgs_py, needs nothing else
of this package, and says once a second how far the road ahead is free and which people are near it.
docs/integration.md explains it. It shows how to read the topics; it is no planner to drive by.
"""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

ROAD, PERSON = "road", "person"
NOT_IN_THE_WAY = ("sky", "unlabeled")
SURE = 0.5
"""Least confidence of a point that is taken for road; an obstacle counts with any."""
ENOUGH = 3
"""Points that make an obstacle: one or two may be painted wrongly at an edge."""
REACH_M = 100.0
"""Nothing further away is looked at."""
LARGEST_GAP_M = 5.0
"""Longest stretch without a point of the road; what lies behind it is not known to be free."""


@dataclass(frozen=True)
class Ahead:
    """What a cloud shows of the lane ahead.

    Attributes
    ----------
    free_m
        Metres of road, from the sensor on, without an obstacle in the lane.
    ends_at
        The class of the obstacle that ends it; empty where the road is seen no further.
    people
        (metres ahead, metres to the left) of the nearest point of each person or group, nearest
        first.
    """

    free_m: float
    ends_at: str
    people: tuple[tuple[float, float], ...]

    def __str__(self) -> str:
        """Write it in one sentence."""
        end = f"then {self.ends_at}" if self.ends_at else "then nothing is known"
        people = f"people near it: {len(self.people)}"
        if self.people:
            ahead, left = self.people[0]
            side = "left" if left > 0 else "right"
            people += f", the nearest {ahead:.1f} m ahead and {abs(left):.1f} m to the {side}"
        return f"free road ahead: {self.free_m:.1f} m, {end}; {people}"


def look_ahead(
    points: Any,
    names: Mapping[int, str],
    *,
    optical: bool,
    lane_m: float = 2.0,
    beside_m: float = 2.0,
) -> Ahead:
    """Find the free road and the people near it in a painted cloud.

    Parameters
    ----------
    points
        Structured array with the fields x, y, z, class_id and confidence, as
        `sensor_msgs_py.point_cloud2.read_points` returns it.
    names
        Class names by published id. Points of other ids (255: the camera does not see them) are
        left out.
    optical
        The cloud's axes are a camera's (x right, y down, z forward); otherwise x is forward and y
        left (REP 103).
    lane_m
        Width of the lane, with the sensor in its middle.
    beside_m
        How far from the lane people are still near it.
    """
    ahead, left = (points["z"], -points["x"]) if optical else (points["x"], points["y"])
    kind, in_front = points["class_id"], (ahead > 0.0) & (ahead < REACH_M)
    in_lane = in_front & (np.abs(left) <= lane_m / 2)

    def of(*wanted: str) -> NDArray[np.bool_]:
        ids = [number for number, name in names.items() if name in wanted]
        return np.asarray(np.isin(kind, ids))

    road = np.sort(ahead[in_lane & of(ROAD) & (points["confidence"] >= SURE)])
    gaps = np.flatnonzero(np.diff(road, prepend=0.0) > LARGEST_GAP_M)
    road = road[: gaps[0]] if len(gaps) else road
    free_m, ends_at = (float(road[-1]) if len(road) else 0.0), ""
    blocking = in_lane & of(*(set(names.values()) - {ROAD, *NOT_IN_THE_WAY}))
    nearest = np.flatnonzero(blocking)[np.argsort(ahead[blocking])]
    if len(nearest) >= ENOUGH and ahead[nearest[ENOUGH - 1]] <= free_m:
        at = nearest[ENOUGH - 1]
        free_m, ends_at = float(ahead[at]), names[int(kind[at])]
    people = in_front & of(PERSON) & (np.abs(left) <= lane_m / 2 + beside_m)
    return Ahead(free_m, ends_at, _groups(ahead[people], left[people]))


def look_at_pictures(
    magimg: NDArray[np.uint8], mask: NDArray[np.uint8], names: Mapping[int, str]
) -> str:
    """Say in words what a MagImg and its mask show.

    `magimg` is (H, W, 3) uint8 BGR, `mask` (H, W) uint8 of published ids; `names` are the class
    names by published id.
    """
    ids = {name: number for number, name in names.items()}
    road, people = (mask == ids.get(name, -1) for name in (ROAD, PERSON))
    grey = cv2.cvtColor(magimg, cv2.COLOR_BGR2GRAY)
    bright = f", of brightness {grey[road].mean():.0f}" if road.any() else ""
    regions = cv2.connectedComponents(people.astype(np.uint8))[0] - 1
    return f"in the picture: {road.mean():.0%} road{bright}; {regions} regions of people"


def _groups(ahead: NDArray[Any], left: NDArray[Any]) -> tuple[tuple[float, float], ...]:
    """Return the nearest point of each group of points that touch on a grid of half a metre."""
    if len(ahead) == 0:
        return ()
    cells = np.floor(np.stack([ahead, left]) * 2.0).astype(int)
    rows, columns = cells - cells.min(axis=1, keepdims=True)
    grid = np.zeros((rows.max() + 1, columns.max() + 1), np.uint8)
    grid[rows, columns] = 1
    groups = cv2.connectedComponents(grid)[1][rows, columns]
    order = np.argsort(ahead)
    _, firsts = np.unique(groups[order], return_index=True)
    nearest = order[np.sort(firsts)]
    return tuple(zip(ahead[nearest].tolist(), left[nearest].tolist(), strict=True))


class Reader:
    """The node's callbacks: the newest cloud and the newest pair of pictures of one stamp.

    The node's namespace is that of `fuse_node` and `semantic_cloud`. It raises `ImportError` if
    cv_bridge or sensor_msgs_py is not installed.
    """

    def __init__(self, node: Any) -> None:
        from cv_bridge import CvBridge
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from sensor_msgs.msg import Image, PointCloud2
        from sensor_msgs_py import point_cloud2
        from std_msgs.msg import String

        self._node, self._bridge, self._read_points = node, CvBridge(), point_cloud2.read_points
        self._names: dict[int, str] = {}
        self._newest: dict[str, Any] = {}
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        node.create_subscription(String, "fuse_node/semantic/labels", self._on_labels, latched)
        for name, kind, topic in (
            ("magimg", Image, "fuse_node/magimg"),
            ("mask", Image, "fuse_node/semantic/mask"),
            ("cloud", PointCloud2, "semantic_cloud/points"),
        ):
            # Depth 1: what is old when its turn comes is of no use.
            node.create_subscription(kind, topic, self._keeper(name), QoSProfile(depth=1))
        node.create_timer(1.0, self._report)

    def _on_labels(self, message: Any) -> None:
        self._names = {each["id"]: each["name"] for each in json.loads(message.data)}

    def _keeper(self, name: str) -> Any:
        def keep(message: Any) -> None:
            self._newest[name] = message
            magimg, mask = (self._newest.get(each) for each in ("magimg", "mask"))
            if magimg is not None and mask is not None and magimg.header == mask.header:
                self._newest["pictures"] = magimg, mask

        return keep

    def _report(self) -> None:
        cloud, pictures = self._newest.pop("cloud", None), self._newest.pop("pictures", None)
        said = []
        try:
            if cloud is not None and self._names:
                wanted = ["x", "y", "z", "class_id", "confidence"]
                optical = cloud.header.frame_id.endswith("optical_frame")
                points = self._read_points(cloud, wanted)
                said.append(str(look_ahead(points, self._names, optical=optical)))
            if pictures is not None and self._names:
                magimg = self._bridge.imgmsg_to_cv2(pictures[0], "bgr8")
                mask = self._bridge.imgmsg_to_cv2(pictures[1], "passthrough")
                said.append(look_at_pictures(magimg, mask, self._names))
        except Exception as error:  # noqa: BLE001 - one odd message must not end it
            self._node.get_logger().error(f"cannot read: {error}")
            return
        text = "; ".join(said) or "waiting for fuse_node and semantic_cloud"
        self._node.get_logger().info(text)


def main(argv: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM; 2 where a library is missing."""
    import rclpy
    from rclpy.executors import ExternalShutdownException

    rclpy.init(args=None if argv is None else list(argv))
    # lib/magicfuse_ros/example_planner holds signals back until there is somebody to take them.
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    node = rclpy.create_node("example_planner")
    try:
        Reader(node)
        with suppress(KeyboardInterrupt, ExternalShutdownException):
            rclpy.spin(node)
    except ImportError as error:
        print(  # noqa: T201 - the reason why there is no node
            f"example_planner: {error}; in ROS 2: sudo apt install ros-$ROS_DISTRO-cv-bridge "
            "ros-$ROS_DISTRO-sensor-msgs-py",
            file=sys.stderr,
        )
        return 2
    finally:
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
