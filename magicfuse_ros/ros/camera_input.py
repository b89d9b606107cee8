"""The node's subscriptions: the camera's images, raw or compressed, and its CameraInfo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy, qos_profile_sensor_data
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from magicfuse_ros.ros.publishers import compressed_topic
from magicfuse_ros.ros.qos import choose_reliability, input_qos


class CameraInput:
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
        Gets every Image or CompressedImage.

    Attributes
    ----------
    camera_info
        The camera's newest CameraInfo, or None.
    topic
        The resolved name of the image topic.
    """

    def __init__(
        self, node: Node, *, transport: str, reliability: str, on_image: Callable[[Any], None]
    ) -> None:
        self.camera_info: CameraInfo | None = None
        self._node, self._on_image, self._setting = node, on_image, reliability
        self._closed = False
        self._type = Image if transport == "raw" else CompressedImage
        self._name = "image" if transport == "raw" else compressed_topic(node, "image")
        self.topic = node.resolve_topic_name(self._name)
        self.reliability = choose_reliability(reliability, self._offered())
        self._subscription = self._subscribe()
        # Best effort receives from any publisher, and CameraInfo is small.
        self._info_subscription = node.create_subscription(
            CameraInfo, "camera_info", self._on_camera_info, qos_profile_sensor_data
        )

    @property
    def publishers(self) -> int:
        """How many publishers the image topic has."""
        return len(self._offered())

    @property
    def mismatch(self) -> str:
        """Say that a publisher's QoS keeps its images away; empty if all is well."""
        reliable = self.reliability == ReliabilityPolicy.RELIABLE
        if not reliable or ReliabilityPolicy.BEST_EFFORT not in self._offered():
            return ""
        return (
            f"{self.topic} is published best effort and input_reliability is {self._setting}: "
            "its images cannot arrive; set input_reliability to auto"
        )

    def set_reliability(self, setting: str) -> None:
        """Change `input_reliability` between two frames."""
        self._setting = setting
        self.refresh()

    def refresh(self) -> None:
        """Match the publishers that are there now; subscribe anew only if that changes anything."""
        wanted = choose_reliability(self._setting, self._offered())
        if wanted != self.reliability and not self._closed:
            self.reliability = wanted
            self._node.destroy_subscription(self._subscription)
            self._subscription = self._subscribe()
            self._node.get_logger().info(f"Subscribed to {self.topic} as {wanted.name.lower()}")

    def close(self) -> None:
        """Unsubscribe."""
        self._closed = True
        self._node.destroy_subscription(self._subscription)
        self._node.destroy_subscription(self._info_subscription)

    def _offered(self) -> list[ReliabilityPolicy]:
        endpoints = self._node.get_publishers_info_by_topic(self.topic)
        return [endpoint.qos_profile.reliability for endpoint in endpoints]

    def _subscribe(self) -> Subscription[Any]:
        events = SubscriptionEventCallbacks(
            incompatible_qos=self._on_qos_event, use_default_callbacks=False
        )
        return self._node.create_subscription(
            self._type,
            self._name,
            self._on_image,
            input_qos(self.reliability),
            event_callbacks=events,
        )

    def _on_qos_event(self, _event: object) -> None:
        # The event belongs to the subscription that may have to go: replace it a moment later.
        if self._node.executor is not None:
            self._node.executor.create_task(self.refresh)

    def _on_camera_info(self, message: CameraInfo) -> None:
        self.camera_info = message
