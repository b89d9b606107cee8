"""What `semantic_cloud` subscribes to: the cloud, fuse_node's pictures, CameraInfo, LabelInfo."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from magicfuse_ros.ros.cloud.cloud_parameters import CloudSettings
from magicfuse_ros.ros.cloud.matching import Matcher, Pair
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.node_input import Arrival, NodeInput
from magicfuse_ros.ros.outputs import LABEL_INFO
from magicfuse_ros.ros.qos import LATCHED_QOS, input_qos
from magicfuse_ros.ros.stamps import nanoseconds

PICTURE_TOPICS = {
    "mask": "fuse_node/semantic/mask",
    "confidence": "fuse_node/semantic/confidence",
    "color": "fuse_node/semantic/color",
}
"""A frame's parts and where fuse_node of the same namespace publishes them."""


class CloudInputs(NodeInput):
    """Matches clouds with fuse_node's frames; subscribed from construction to `close`.

    `account` and `frames` count clouds and frames. `on_pair` is called with every cloud, an
    `Arrival`, and the frame to paint it with. `camera_info` and `label_info` are the newest
    message, or None.
    """

    def __init__(
        self,
        node: Node,
        settings: CloudSettings,
        *,
        account: Ledger,
        frames: Ledger,
        enabled: Callable[[], bool],
        on_pair: Callable[[Pair], None],
    ) -> None:
        self.camera_info: CameraInfo | None = None
        self.label_info: Any = None
        self._frames, self._on_pair = frames, on_pair
        parts = [part for part in PICTURE_TOPICS if part != "color" or settings.color]
        self._last_part = dict.fromkeys(parts, time.monotonic())
        self._matcher = Matcher(
            frozenset(parts),
            slop_ns=settings.slop_ns,
            queue=settings.queue,
            drop_cloud=account.drop,
            drop_frame=frames.drop,
            new_frame=frames.received,
        )
        super().__init__(
            node,
            PointCloud2,
            "points",
            reliability=settings.input_reliability,
            account=account,
            enabled=enabled,
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
        if LABEL_INFO is not None:
            self._subscriptions.append(
                node.create_subscription(
                    LABEL_INFO, "fuse_node/semantic/label_info", self._on_label_info, LATCHED_QOS
                )
            )

    @property
    def parts_silent_s(self) -> dict[str, float]:
        """Seconds since each part of a frame came last, or since the start."""
        now = time.monotonic()
        return {part: now - last for part, last in self._last_part.items()}

    @property
    def waiting(self) -> tuple[int, int]:
        """How many clouds and frames wait for their counterpart."""
        return self._matcher.waiting

    def adopt(self, settings: CloudSettings) -> None:
        """Adopt the live parameters."""
        self._matcher.slop_ns, self._matcher.queue = settings.slop_ns, settings.queue
        self.set_reliability(settings.input_reliability)

    def drop_waiting(self, reason: str) -> None:
        """Drop the clouds and frames that wait, for the given reason."""
        self._matcher.clear(reason)

    def close(self) -> None:
        """Unsubscribe, and drop what waits."""
        super().close()
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)

    def _take(self, arrival: Arrival) -> None:
        self._matcher.add_cloud(nanoseconds(arrival.message.header.stamp), arrival)
        self._match()

    def _receiver(self, part: str) -> Any:
        def receive(message: Image) -> None:
            self._last_part[part] = time.monotonic()
            if self._enabled() and not self._closed:
                self._matcher.add_part(nanoseconds(message.header.stamp), part, message)
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
            self._frames.published()
            self._on_pair(pair)
