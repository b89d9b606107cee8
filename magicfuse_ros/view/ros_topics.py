"""The page's ROS side: one node that a thread spins, and a camera's topic as a feed."""

from __future__ import annotations

import threading
from typing import Any

import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image

from magicfuse_ros.ros.images.codec import decode_compressed, decode_image
from magicfuse_ros.ros.matched_subscription import MatchedSubscription
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.view.feeds import Live

FOLLOW_S = 0.2
"""How often subscriptions are matched to what is published, in seconds."""


class SpunNode:
    """A node named `magicfuse_view` that a thread spins from `start` to `close`."""

    def __init__(self) -> None:
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = Node("magicfuse_view", context=self._context, start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._spin, name="view_ros")

    def start(self) -> None:
        """Begin to spin."""
        self._thread.start()

    def close(self) -> None:
        """Stop spinning, and leave ROS."""
        self._closing.set()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        self._context.try_shutdown()

    def _spin(self) -> None:
        while not self._closing.is_set():
            self._executor.spin_once(timeout_sec=0.1)


class PictureTopic(MatchedSubscription):
    """A subscription to an Image, or to a CompressedImage where the name ends in /compressed."""

    def __init__(self, node: Node, topic: str, on_message: Any) -> None:
        compressed = topic.endswith("/compressed")
        kind = CompressedImage if compressed else Image
        super().__init__(node, kind, topic, reliability="auto", on_message=on_message)


def read_message(message: Any) -> UInt8:
    """Decode an Image or CompressedImage into RGB; raises PictureError, a ValueError."""
    if isinstance(message, CompressedImage):
        return decode_compressed(message)
    return decode_image(message)


class LiveTopic(Live[Any]):
    """The newest image of a camera's topic."""

    def __init__(self, topic: str) -> None:
        super().__init__(topic, read_message)
        self._spun = SpunNode()
        self._subscription = PictureTopic(self._spun.node, topic, self.put)
        self._spun.node.create_timer(FOLLOW_S, self._follow)
        self._spun.start()

    def close(self) -> None:
        """Unsubscribe too."""
        super().close()
        self._spun.close()

    def _follow(self) -> None:
        self._subscription.refresh()
        publishers = self._subscription.publishers
        self.trouble = "" if publishers else "nobody publishes it; check ROS_DOMAIN_ID"
