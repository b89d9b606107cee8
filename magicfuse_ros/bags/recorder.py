"""Records topics into a bag as their messages arrive, without deserialising them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any

from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from rclpy.subscription import Subscription

from magicfuse_ros.bags.player import find_message_class, qos_of
from magicfuse_ros.bags.reader import Topic
from magicfuse_ros.bags.writer import BagWriter, knows_type

DISCOVERY_PERIOD_S = 0.2
FLUSH_PERIOD_S = 1.0
QUEUE_DEPTH = 50

OnMessage = Callable[[str, int, bytes], None]


class Recorder:
    """Subscribes to topics as their publishers appear, and writes every message to a bag.

    A message's time in the bag is the wall time at which it arrived here. Subscriptions ask for the
    QoS that all publishers of a topic offer, so that none is left out. The written messages are
    handed to the disk every second, so that a kill loses no more than that. The node must be spun
    by its executor; `write` may be called from any thread.

    Parameters
    ----------
    writer
        The open bag, which its owner closes. With None, messages are only counted and passed on.
    topics
        Full names to record; None records every topic.
    on_message
        Called with topic, arrival time (ns) and serialised message, after it was written.

    Attributes
    ----------
    counts : dict[str, int]
        Messages received, by topic.
    skipped : dict[str, str]
        Topics left out, each with its type, which is not known here.
    """

    def __init__(
        self,
        node: Node,
        writer: BagWriter | None,
        topics: Collection[str] | None,
        on_message: OnMessage | None = None,
    ) -> None:
        self._node = node
        self._writer = writer
        self._wanted = None if topics is None else frozenset(topics)
        self._on_message = on_message
        self._lock = threading.Lock()
        self._subscriptions: dict[str, Subscription[object]] = {}
        self._open = True
        self.counts: dict[str, int] = {}
        self.skipped: dict[str, str] = {}
        self._timers = [
            node.create_timer(DISCOVERY_PERIOD_S, self._discover),
            node.create_timer(FLUSH_PERIOD_S, self._flush),
        ]

    @property
    def recorded(self) -> frozenset[str]:
        """Names of the topics that are subscribed to."""
        return frozenset(self._subscriptions)

    def _discover(self) -> None:
        """Subscribe to wanted topics that have a publisher by now; only the executor calls it."""
        for name, types in self._node.get_topic_names_and_types():
            if name in self._subscriptions or name in self.skipped or name in self.counts:
                continue
            if self._wanted is not None and name not in self._wanted:
                continue
            offers = self._node.get_publishers_info_by_topic(name)
            if not offers:
                continue
            message_class = find_message_class(types[0])
            if message_class is None or not knows_type(types[0]) or len(types) > 1:
                self.skipped[name] = " and ".join(types)
                self._node.get_logger().warning(
                    f"not recording {name}: its type {self.skipped[name]} is not known here"
                )
                continue
            reliable = all(
                each.qos_profile.reliability is ReliabilityPolicy.RELIABLE for each in offers
            )
            latched = all(
                each.qos_profile.durability is DurabilityPolicy.TRANSIENT_LOCAL for each in offers
            )
            topic = Topic(
                name,
                types[0],
                reliability="reliable" if reliable else "best_effort",
                durability="transient_local" if latched else "volatile",
            )
            self.add_topic(topic)
            self._subscriptions[name] = self._node.create_subscription(
                message_class, name, self._receiver(name), qos_of(topic, QUEUE_DEPTH), raw=True
            )

    def add_topic(self, topic: Topic) -> None:
        """Announce a topic that `write` will fill; it is not subscribed to."""
        with self._lock:
            if self._writer is not None:
                self._writer.add_topic(topic)
            self.counts[topic.name] = 0

    def write(self, topic_name: str, received_ns: int, data: bytes) -> None:
        """Write one message; ignored once the recorder is closed."""
        with self._lock:
            if not self._open:
                return
            if self._writer is not None:
                self._writer.write(topic_name, received_ns, data)
            self.counts[topic_name] += 1

    def _flush(self) -> None:
        with self._lock:
            if self._open and self._writer is not None:
                self._writer.flush()

    def take_arrived(self, executor: Executor) -> None:
        """Write the messages that still wait in the queues; `executor` is the node's."""
        for _ in range(QUEUE_DEPTH * (len(self._subscriptions) + 1)):  # each spin takes one at most
            executor.spin_once(timeout_sec=0.0)

    def close(self) -> None:
        """Stop recording; the bag may be closed afterwards."""
        with self._lock:
            self._open = False
        for timer in self._timers:
            self._node.destroy_timer(timer)
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def _receiver(self, name: str) -> Callable[[Any], None]:
        def receive(data: bytes) -> None:
            received_ns = time.time_ns()
            self.write(name, received_ns, data)
            if self._on_message is not None:
                self._on_message(name, received_ns, data)

        return receive
