"""The subscription that a node works on: it counts every message, and says what may be lost."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from magicfuse_ros.ros import ledger
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.matched_subscription import MatchedSubscription
from magicfuse_ros.ros.qos import large_message_warning


@dataclass(frozen=True)
class Arrival:
    """A message on its way through the node.

    `received_at` is `time.monotonic()` at receipt, in seconds; `clock_ns` is the node's clock then.
    """

    message: Any
    received_at: float
    clock_ns: int


class NodeInput(MatchedSubscription, ABC):
    """Subscribed from construction to `close`; everything runs in the executor thread.

    Messages are counted in `account`. While `enabled` returns False, because ~/enable has paused
    the node, they are counted and dropped.
    """

    def __init__(
        self,
        node: Node,
        message_type: type[Any],
        name: str,
        *,
        reliability: str,
        account: Ledger,
        enabled: Callable[[], bool],
    ) -> None:
        self._account, self._enabled = account, enabled
        self._rmw, self._too_large = get_rmw_implementation_identifier(), ""
        self._last_input = time.monotonic()
        super().__init__(
            node, message_type, name, reliability=reliability, on_message=self._on_message_arrived
        )

    @property
    def silent_s(self) -> float:
        """Seconds since the last message, or since the start."""
        return time.monotonic() - self._last_input

    @property
    def warning(self) -> str:
        """Why messages may get lost; empty if all is well."""
        return "; ".join(filter(None, [self._too_large, self.mismatch]))

    @abstractmethod
    def drop_waiting(self, reason: str) -> None:
        """Drop what waits, for the given reason."""

    @abstractmethod
    def _take(self, arrival: Arrival) -> None:
        """Let a message wait for the node's work."""

    def close(self) -> None:
        """Unsubscribe, and drop what waits."""
        super().close()
        self.drop_waiting(ledger.INACTIVE)

    def _on_message_arrived(self, message: Any) -> None:
        self._account.received()
        if self._closed:  # delivered while unsubscribing
            self._account.drop(ledger.INACTIVE)
            return
        self._last_input = time.monotonic()
        self._check_size(len(message.data))
        if not self._enabled():
            self._account.drop(ledger.DISABLED)
            return
        clock_ns = self._node.get_clock().now().nanoseconds
        self._take(Arrival(message, self._last_input, clock_ns))

    def _check_size(self, size_bytes: int) -> None:
        what = f"{self._type.__name__}s"
        warning = large_message_warning(size_bytes, self.reliability, self._rmw, os.environ, what)
        if warning and not self._too_large:
            self._node.get_logger().warning(warning)
        self._too_large = warning
