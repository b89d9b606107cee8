"""The node's outputs: the worker thread publishes them, and encodes only what has subscribers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from magicfuse_ros.ros import outputs
from magicfuse_ros.ros.node.frame_messages import OUTPUTS, FusedFrame
from magicfuse_ros.ros.qos import LATCHED_QOS, OUTPUT_QOS
from magicfuse_ros.runtime.contract import EXTRAS


class FusePublishers:
    """Publishes every output of a frame, the labels and, with vision_msgs, label_info."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._frames: dict[str, Publisher[Any]] = {
            name: node.create_publisher(
                kind,
                compressed_topic(node, "~/magimg") if kind is CompressedImage else f"~/{name}",
                OUTPUT_QOS,
            )
            for name, kind in OUTPUTS.items()
        }
        self._labels = node.create_publisher(String, "~/semantic/labels", LATCHED_QOS)
        self._label_info: Publisher[Any] | None = None

    def wanted_extras(self) -> frozenset[str]:
        """Which of the engine's extras have subscribers now."""
        return frozenset(name for name in EXTRAS if _heard(self._frames[name]))

    def publish_labels(self, names: Sequence[str], table: NDArray[np.uint8]) -> None:
        """Publish ids and names as JSON and, where vision_msgs is installed, as LabelInfo."""
        self._labels.publish(String(data=outputs.labels_as_json(names, table)))
        info = outputs.label_info(names, table)
        if info is None:
            return
        info.header.stamp = self._node.get_clock().now().to_msg()
        if self._label_info is None:
            self._label_info = self._node.create_publisher(
                type(info), "~/semantic/label_info", LATCHED_QOS
            )
        self._label_info.publish(info)

    def publish(self, frame: FusedFrame) -> None:
        """Publish one frame: its camera_info always, everything else where somebody listens."""
        for name, publisher in self._frames.items():
            if name == "camera_info" or _heard(publisher):
                message = frame.message(name)
                if message is not None:
                    publisher.publish(message)

    def destroy(self) -> None:
        """Destroy every publisher."""
        for publisher in (*self._frames.values(), self._labels, self._label_info):
            if publisher is not None:
                self._node.destroy_publisher(publisher)


def compressed_topic(node: Node, base: str) -> str:
    """Return the topic for the compressed images of `base`, as image_transport names it.

    The name follows a remapping of `base`, unless `<base>/compressed` is itself remapped. If `base`
    is remapped to a compressed topic, that topic is returned.
    """
    own = f"{base}/compressed"
    resolved = node.resolve_topic_name(own)
    if resolved != node.resolve_topic_name(own, only_expand=True):
        return own
    topic = node.resolve_topic_name(base)
    return topic if topic.endswith("/compressed") else f"{topic}/compressed"


def _heard(publisher: Publisher[Any]) -> bool:
    return publisher.get_subscription_count() > 0
