"""The node's subscriptions: the camera's images, raw or compressed, and its CameraInfo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from magicfuse_ros.ros.matched_subscription import MatchedSubscription
from magicfuse_ros.ros.node.publishers import compressed_topic


class CameraInput(MatchedSubscription):
    """Subscribed from construction to `close`; everything runs in the executor thread.

    Parameters
    ----------
    node
        Owner of the subscriptions.
    transport
        `raw` or `compressed`.
    reliability
        The parameter `input_reliability`.
    on_image
        Called with every Image or CompressedImage.

    Attributes
    ----------
    camera_info
        The camera's newest CameraInfo, or None.
    """

    def __init__(
        self, node: Node, *, transport: str, reliability: str, on_image: Callable[[Any], None]
    ) -> None:
        self.camera_info: CameraInfo | None = None
        super().__init__(
            node,
            *camera_topic(node, transport),
            reliability=reliability,
            on_message=on_image,
        )
        # Best effort receives from any publisher, and CameraInfo is small.
        self._info_subscription = node.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data
        )

    def close(self) -> None:
        """Unsubscribe."""
        super().close()
        self._node.destroy_subscription(self._info_subscription)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.camera_info = message


def camera_topic(node: Node, transport: str) -> tuple[type[Any], str]:
    """Return the message class and the topic of the camera's images."""
    if transport == "raw":
        return Image, "image"
    return CompressedImage, compressed_topic(node, "image")
