"""A subscription whose reliability follows the topic's publishers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import ReliabilityPolicy
from rclpy.subscription import Subscription

from magicfuse_ros.ros.qos import choose_reliability, input_qos


class MatchedSubscription:
    """Subscribed from construction to `close`; everything runs in the executor thread.

    The parameter `reliability` is the node's `input_reliability`; the attribute is the one that it
    is subscribed with now. `topic` is the resolved name.
    """

    def __init__(
        self,
        node: Node,
        message_type: type[Any],
        name: str,
        *,
        reliability: str,
        on_message: Callable[[Any], None],
    ) -> None:
        self._node, self._on_message, self._setting = node, on_message, reliability
        self._closed = False
        self._type, self._name = message_type, name
        self.topic = node.resolve_topic_name(name)
        self.reliability = choose_reliability(reliability, self._offered())
        self._subscription = self._subscribe()

    @property
    def publishers(self) -> int:
        """How many publishers the topic has."""
        return len(self._offered())

    @property
    def mismatch(self) -> str:
        """Say that a publisher's QoS keeps its messages away; empty if all is well."""
        reliable = self.reliability == ReliabilityPolicy.RELIABLE
        if not reliable or ReliabilityPolicy.BEST_EFFORT not in self._offered():
            return ""
        return (
            f"{self.topic} is published best effort and input_reliability is {self._setting}: "
            f"its {self._type.__name__}s cannot arrive; set input_reliability to auto"
        )

    def set_reliability(self, setting: str) -> None:
        """Change `input_reliability` between two messages."""
        self._setting = setting
        self.refresh()

    def refresh(self) -> None:
        """Match the present publishers; subscribe anew only if that changes the reliability."""
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
            self._on_message,
            input_qos(self.reliability),
            event_callbacks=events,
        )

    def _on_qos_event(self, _event: object) -> None:
        # The event belongs to the subscription, which may have to go: replace it a moment later.
        if self._node.executor is not None:
            self._node.executor.create_task(self.refresh)
