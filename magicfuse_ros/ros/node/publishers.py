"""The node's outputs: the worker thread publishes them, and encodes only what has subscribers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from magicfuse_ros.ros import outputs
from magicfuse_ros.ros.cdr import serialize_image
from magicfuse_ros.ros.images import codec
from magicfuse_ros.ros.images.run_length import encode_runs
from magicfuse_ros.ros.qos import LATCHED_QOS, OUTPUT_QOS
from magicfuse_ros.runtime.class_colors import colorize
from magicfuse_ros.runtime.contract import FuseResult

_EXTRAS = {"infrared": "mono8", "enhanced": "rgb8"}


class FusePublishers:
    """Publishes every image topic, camera_info, the labels and, with vision_msgs, label_info.

    Parameters
    ----------
    node
        Owner of the publishers.
    """

    def __init__(self, node: Node) -> None:
        self._node = node

        def image(topic: str) -> Publisher[Image]:
            return node.create_publisher(Image, f"~/{topic}", OUTPUT_QOS)

        self._magimg = image("magimg")
        self._mask = image("semantic/mask")
        self._mask_runs = image("semantic/mask/run_length")
        self._confidence = image("semantic/confidence")
        self._color = image("semantic/color")
        self._extras = {name: image(name) for name in _EXTRAS}
        self._compressed = node.create_publisher(
            CompressedImage, compressed_topic(node, "~/magimg"), OUTPUT_QOS
        )
        self._camera_info = node.create_publisher(CameraInfo, "~/camera_info", OUTPUT_QOS)
        self._labels = node.create_publisher(String, "~/semantic/labels", LATCHED_QOS)
        self._label_info: Publisher[Any] | None = None

    def wanted_extras(self) -> frozenset[str]:
        """Which of the engine's extras have subscribers now."""
        return frozenset(name for name, publisher in self._extras.items() if _heard(publisher))

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

    def publish(
        self,
        result: FuseResult,
        header: Header,
        *,
        mask: NDArray[np.uint8],
        palette: Sequence[tuple[int, int, int]],
        jpeg_quality: int,
        camera_info: CameraInfo | None,
    ) -> None:
        """Publish one frame; every message carries `header`, the image's own.

        Parameters
        ----------
        result
            The engine's result. Its mask holds the label set's ids; the palette colours this one.
        header
            Stamp and frame_id of the input.
        mask
            (H, W) uint8 in published ids.
        palette
            (R, G, B) of each label.
        jpeg_quality
            1 to 100.
        camera_info
            The camera's newest CameraInfo, or None.
        """
        self._image(self._magimg, result.magimg, "rgb8", header)
        self._image(self._mask, mask, "mono8", header)
        if _heard(self._mask_runs):
            self._mask_runs.publish(encode_runs(mask, header))
        self._image(self._confidence, result.confidence, "mono8", header)
        if camera_info is not None:
            height, width = result.mask.shape
            info = outputs.scale_camera_info(camera_info, (width, height))
            info.header = header
            self._camera_info.publish(info)
        if _heard(self._compressed):
            self._compressed.publish(codec.encode_compressed(result.magimg, header, jpeg_quality))
        if _heard(self._color):
            color = colorize(result.mask, result.magimg, palette)
            self._image(self._color, color, "rgb8", header)
        for name, encoding in _EXTRAS.items():
            picture = getattr(result, name)
            if picture is not None:
                self._image(self._extras[name], picture, encoding, header)

    def destroy(self) -> None:
        """Destroy every publisher."""
        publishers = [self._magimg, self._mask, self._mask_runs, self._confidence, self._color]
        publishers += [self._compressed, self._camera_info, self._labels]
        publishers += self._extras.values()
        if self._label_info is not None:
            publishers.append(self._label_info)
        for publisher in publishers:
            self._node.destroy_publisher(publisher)

    @staticmethod
    def _image(
        publisher: Publisher[Image], picture: NDArray[np.uint8], encoding: str, header: Header
    ) -> None:
        if _heard(publisher):
            publisher.publish(serialize_image(picture, encoding, header))


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
