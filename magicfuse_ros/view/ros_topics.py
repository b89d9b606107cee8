"""The page's ROS side: topics with pictures, and a camera's topic as a feed."""

from __future__ import annotations

from typing import Any

from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from magicfuse_ros.messages import one_line
from magicfuse_ros.ros.images.codec import decode_compressed, decode_image
from magicfuse_ros.ros.matched_subscription import MatchedSubscription
from magicfuse_ros.ros.tool_node import ToolNode
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.view.feeds import Live

NODE = "magicfuse_view"
FOLLOW_S = 0.2
"""How often subscriptions are matched to what is published, in seconds."""


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
        self._ros = ToolNode(NODE)
        self._subscription = PictureTopic(self._ros.node, topic, self.put)
        self._ros.node.create_timer(FOLLOW_S, self._follow)
        self._ros.start()

    @property
    def said(self) -> tuple[str, str]:
        """See `Feed`."""
        if self._ros.failure is not None:
            self.trouble = one_line(self._ros.failure)
        return super().said

    def close(self) -> None:
        """Unsubscribe too."""
        super().close()
        self._ros.close()

    def _follow(self) -> None:
        self._subscription.refresh()
        publishers = self._subscription.publishers
        self.trouble = "" if publishers else "nobody publishes it; check ROS_DOMAIN_ID"
