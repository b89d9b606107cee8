"""What `semantic_cloud` subscribes to: the cloud, fuse_node's pictures, CameraInfo, LabelInfo."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from magicfuse_ros.ros import ledger
from magicfuse_ros.ros.cloud.cloud_parameters import CloudSettings
from magicfuse_ros.ros.cloud.matching import Matcher, Pair
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.matched_subscription import MatchedSubscription
from magicfuse_ros.ros.qos import LATCHED_QOS, input_qos, large_message_warning

try:
    from vision_msgs.msg import LabelInfo
except ImportError:  # not on PyPI; ROS installations have it in ros-<distro>-vision-msgs
    LabelInfo = None

PICTURE_TOPICS = {
    "mask": "fuse_node/semantic/mask",
    "confidence": "fuse_node/semantic/confidence",
    "color": "fuse_node/semantic/color",
}
"""A frame's parts and where fuse_node of the same namespace publishes them."""


@dataclass(frozen=True)
class Cloud:
    """A cloud on its way through the node.

    Attributes
    ----------
    message
        sensor_msgs/PointCloud2.
    received_at
        `time.monotonic()` at receipt, in seconds.
    clock_ns
        The node's clock at receipt.
    """

    message: Any
    received_at: float
    clock_ns: int


class CloudInputs:
    """Subscribed from construction to `close`; everything runs in the executor thread.

    Parameters
    ----------
    node
        Owner of the subscriptions.
    settings
        Values in force.
    clouds, frames
        Where clouds and fuse_node's frames are counted.
    on_pair
        Called with every cloud and the frame to paint it with.

    Attributes
    ----------
    enabled
        While False, clouds are counted and dropped.
    camera_info, label_info
        The newest message, or None.
    """

    def __init__(
        self, node: Node, settings: CloudSettings, *, clouds: Ledger, frames: Ledger, on_pair: Any
    ) -> None:
        self.enabled = True
        self.camera_info: CameraInfo | None = None
        self.label_info: Any = None
        self._node, self._clouds, self._frames, self._on_pair = node, clouds, frames, on_pair
        self._rmw = get_rmw_implementation_identifier()
        self._warning = ""
        self._last_cloud = time.monotonic()
        parts = [part for part in PICTURE_TOPICS if part != "color" or settings.color]
        self._last_part = dict.fromkeys(parts, self._last_cloud)
        self._matcher = Matcher(
            frozenset(parts),
            slop_ns=settings.slop_ns,
            queue=settings.queue,
            drop_cloud=clouds.drop,
            drop_frame=frames.drop,
            new_frame=frames.received,
        )
        self.points = MatchedSubscription(
            node,
            PointCloud2,
            "points",
            reliability=settings.input_reliability,
            on_message=self._on_cloud,
        )
        reliable = input_qos(ReliabilityPolicy.RELIABLE)
        self._subscriptions = [
            node.create_subscription(Image, PICTURE_TOPICS[part], self._receiver(part), reliable)
            for part in parts
        ]
        # Best effort receives from any publisher, and CameraInfo is small.
        self._subscriptions.append(
            node.create_subscription(
                CameraInfo, "fuse_node/camera_info", self._on_camera_info, qos_profile_sensor_data
            )
        )
        if LabelInfo is not None:
            self._subscriptions.append(
                node.create_subscription(
                    LabelInfo, "fuse_node/semantic/label_info", self._on_label_info, LATCHED_QOS
                )
            )

    @property
    def silent_s(self) -> float:
        """Seconds since the last cloud, or since the start."""
        return time.monotonic() - self._last_cloud

    @property
    def parts_silent_s(self) -> dict[str, float]:
        """Seconds since each part of a frame came last, or since the start."""
        now = time.monotonic()
        return {part: now - last for part, last in self._last_part.items()}

    @property
    def waiting(self) -> tuple[int, int]:
        """How many clouds and frames wait for their counterpart."""
        return self._matcher.waiting

    @property
    def warning(self) -> str:
        """Why clouds may get lost; empty if all is well."""
        return "; ".join(filter(None, [self._warning, self.points.mismatch]))

    def adopt(self, settings: CloudSettings) -> None:
        """Adopt the live parameters."""
        self._matcher.slop_ns, self._matcher.queue = settings.slop_ns, settings.queue
        self.points.set_reliability(settings.input_reliability)

    def clear(self, reason: str) -> None:
        """Drop everything that waits, for the given reason."""
        self._matcher.clear(reason)

    def close(self) -> None:
        """Unsubscribe."""
        self.points.close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()
        self.clear(ledger.INACTIVE)

    def _on_cloud(self, message: PointCloud2) -> None:
        self._clouds.received()
        self._last_cloud = time.monotonic()
        if not self._subscriptions or not self.enabled:  # delivered while unsubscribing, or paused
            self._clouds.drop(ledger.DISABLED if self._subscriptions else ledger.INACTIVE)
            return
        self._check_size(len(message.data))
        clock_ns = self._node.get_clock().now().nanoseconds
        cloud = Cloud(message, self._last_cloud, clock_ns)
        self._matcher.add_cloud(_nanoseconds(message.header.stamp), cloud)
        self._match()

    def _receiver(self, part: str) -> Any:
        def receive(message: Image) -> None:
            self._last_part[part] = time.monotonic()
            if self._subscriptions and self.enabled:
                self._matcher.add_part(_nanoseconds(message.header.stamp), part, message)
                self._match()

        return receive

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.camera_info = message
        self._match()

    def _on_label_info(self, message: Any) -> None:
        self.label_info = message

    def _match(self) -> None:
        if self.camera_info is None:  # fuse_node publishes it after its first mask
            return
        for pair in self._matcher.pairs():
            self._take(pair)

    def _take(self, pair: Pair) -> None:
        self._frames.published()
        self._on_pair(pair)

    def _check_size(self, size_bytes: int) -> None:
        warning = large_message_warning(
            size_bytes, self.points.reliability, self._rmw, os.environ, "clouds"
        )
        if warning and not self._warning:
            self._node.get_logger().warning(warning[0].upper() + warning[1:])
        self._warning = warning


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 10**9 + int(stamp.nanosec)
