"""The node's subscriptions: the camera's images, raw or compressed, and its CameraInfo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from magicfuse_ros.ros import ledger
from magicfuse_ros.ros.ledger import Ledger, Throttle
from magicfuse_ros.ros.node.mailbox import Mailbox
from magicfuse_ros.ros.node.parameters import Settings
from magicfuse_ros.ros.node.publishers import compressed_topic
from magicfuse_ros.ros.node.worker import Frame
from magicfuse_ros.ros.node_input import Arrival, NodeInput
from magicfuse_ros.ros.stamps import nanoseconds


class CameraInput(NodeInput):
    """Puts every image into the worker's mailbox, and notes the camera's newest CameraInfo.

    `in_order` is told the stamp of every image in ns, and returns False if it is older than the
    one before.
    """

    def __init__(
        self,
        node: Node,
        settings: Settings,
        mailbox: Mailbox[Frame],
        *,
        account: Ledger,
        enabled: Callable[[], bool],
        in_order: Callable[[int], bool],
    ) -> None:
        self.camera_info: CameraInfo | None = None
        self._mailbox, self._in_order = mailbox, in_order
        super().__init__(
            node,
            *camera_topic(node, settings.input_transport),
            reliability=settings.input_reliability,
            account=account,
            enabled=enabled,
        )
        # Best effort receives from any publisher, and CameraInfo is small.
        self._info_subscription = node.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data
        )

    def close(self) -> None:
        """Unsubscribe and empty the mailbox."""
        super().close()
        self._node.destroy_subscription(self._info_subscription)

    def drop_waiting(self, reason: str) -> None:
        """Drop the frame in the mailbox, if there is one."""
        if self._mailbox.clear() is not None:
            self._account.drop(reason)

    def _take(self, arrival: Arrival) -> None:
        in_order = self._in_order(nanoseconds(arrival.message.header.stamp))
        frame = Frame(arrival.message, arrival.received_at, arrival.clock_ns, in_order)
        if self._mailbox.put(frame) is not None:
            self._account.drop(ledger.REPLACED)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.camera_info = message


class StampOrder:
    """Notices stamps that go back; lives as long as the node.

    `backwards` counts the images whose stamp was older than that of the image before.
    """

    def __init__(self, node: Node) -> None:
        self._log, self._throttle = node.get_logger(), Throttle()
        self._last_ns = self.backwards = 0

    def begin(self) -> None:
        """Take the next stamp as the first of a stream."""
        self._last_ns = 0

    def follows(self, stamp_ns: int) -> bool:
        """Note an image's stamp (ns); return False if it is older than the one before."""
        back_s = (self._last_ns - stamp_ns) / 1e9
        self._last_ns = stamp_ns
        if back_s <= 0.0:
            return True
        self.backwards += 1
        if self._throttle.allows("backwards"):
            self._log.warning(
                f"Image stamps went back by {back_s:.3f} s ({self.backwards} times so far); "
                "going on with the new time"
            )
        return False


def camera_topic(node: Node, transport: str) -> tuple[type[Any], str]:
    """Return the message class and the topic of the camera's images, `raw` or `compressed`."""
    if transport == "raw":
        return Image, "image"
    return CompressedImage, compressed_topic(node, "image")
