"""The node's intake: counts every image, checks its order, puts it into the worker's mailbox."""

from __future__ import annotations

import os
import time
from typing import Any

from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier
from sensor_msgs.msg import CameraInfo

from magicfuse_ros.ros import ledger
from magicfuse_ros.ros.ledger import Ledger, Throttle
from magicfuse_ros.ros.node.camera_input import CameraInput
from magicfuse_ros.ros.node.mailbox import Mailbox
from magicfuse_ros.ros.node.parameters import Settings
from magicfuse_ros.ros.node.worker import Frame
from magicfuse_ros.ros.qos import large_message_warning


class Intake:
    """Lives as long as the node, and is open while the node is active; for the executor thread.

    Attributes
    ----------
    stamps_backwards
        Frames whose stamp is older than that of the frame before.
    warning
        Why images of this size may get lost; empty if all is well.
    """

    def __init__(self, node: Node, account: Ledger) -> None:
        self._node, self._account = node, account
        self._throttle = Throttle()
        self._subscriptions: CameraInput | None = None
        self._mailbox: Mailbox[Frame] | None = None
        self._enabled = True
        self._last_stamp_ns = 0
        self._last_input = time.monotonic()
        self._rmw = get_rmw_implementation_identifier()
        self.stamps_backwards = 0
        self.warning = ""

    @property
    def subscriptions(self) -> CameraInput | None:
        """The subscriptions, while open."""
        return self._subscriptions

    @property
    def camera_info(self) -> CameraInfo | None:
        """The camera's newest CameraInfo."""
        return None if self._subscriptions is None else self._subscriptions.camera_info

    @property
    def silent_s(self) -> float:
        """Seconds since the last frame, or since `open`."""
        return time.monotonic() - self._last_input

    @property
    def enabled(self) -> bool:
        """False while ~/enable has paused the node; frames are then counted and dropped."""
        return self._enabled

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._enabled = enabled
        if not enabled and self._mailbox is not None and self._mailbox.clear() is not None:
            self._account.drop(ledger.DISABLED)

    def open(self, mailbox: Mailbox[Frame], settings: Settings) -> CameraInput:
        """Subscribe to the camera."""
        self._mailbox = mailbox
        self._last_input, self._last_stamp_ns, self.warning = time.monotonic(), 0, ""
        self._subscriptions = CameraInput(
            self._node,
            transport=settings.input_transport,
            reliability=settings.input_reliability,
            on_image=self._on_image,
        )
        return self._subscriptions

    def close(self) -> None:
        """Unsubscribe and empty the mailbox."""
        if self._subscriptions is not None:
            self._subscriptions.close()
        if self._mailbox is not None and self._mailbox.clear() is not None:
            self._account.drop(ledger.INACTIVE)
        self._subscriptions = self._mailbox = None

    def _on_image(self, message: Any) -> None:
        self._account.received()
        if self._mailbox is None:  # delivered while unsubscribing
            self._account.drop(ledger.INACTIVE)
            return
        self._last_input = time.monotonic()
        in_order = self._check_order(message.header.stamp)
        self._check_size(len(message.data))
        if not self._enabled:
            self._account.drop(ledger.DISABLED)
            return
        clock_ns = self._node.get_clock().now().nanoseconds
        if self._mailbox.put(Frame(message, self._last_input, clock_ns, in_order)) is not None:
            self._account.drop(ledger.REPLACED)

    def _check_order(self, stamp: Any) -> bool:
        stamp_ns = stamp.sec * 10**9 + stamp.nanosec
        back_s = (self._last_stamp_ns - stamp_ns) / 1e9
        self._last_stamp_ns = stamp_ns
        if back_s <= 0.0:
            return True
        self.stamps_backwards += 1
        if self._throttle.allows("stamps_backwards"):
            self._node.get_logger().warning(
                f"Image stamps went back by {back_s:.3f} s ({self.stamps_backwards} times so far); "
                "going on with the new time"
            )
        return False

    def _check_size(self, size_bytes: int) -> None:
        assert self._subscriptions is not None  # noqa: S101 - open exactly while the mailbox is
        warning = large_message_warning(
            size_bytes, self._subscriptions.reliability, self._rmw, os.environ
        )
        if warning and not self.warning:
            self._node.get_logger().warning(warning[0].upper() + warning[1:])
        self.warning = warning
