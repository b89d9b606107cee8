"""Plays a bag over DDS with its own timing, and publishes the bag's time on /clock."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from magicfuse_ros.bags.reader import RELIABILITIES, BagError, BagMessage, BagReader, Topic
from magicfuse_ros.ros.stamps import has_header, read_stamp, with_stamp

CLOCK_PERIOD_S = 0.01
QUEUE_DEPTH = 10
ACKNOWLEDGE_TIMEOUT_S = 10.0
_POLL_S = 0.02
_LONGEST_GAP_NS = 86_400 * 10**9
"""A longer gap, a day without a message, comes from a clock that was set; it is skipped."""
_MESSAGE_TYPE = re.compile(r"[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9_]*", re.ASCII)

OnSent = Callable[[Topic, int, bytes], None]


@dataclass(frozen=True)
class PlayerSettings:
    """How a bag is played.

    Attributes
    ----------
    rate
        Speed: 2.0 plays twice as fast.
    loop
        Whether to start over at the end. Every lap shifts the stamps by the length of the laps
        before it, so that a receiver never sees time go backwards.
    reliability
        ``reliable``, ``best_effort``, or ``auto`` for what the recorded publisher offered.
    restamp
        False keeps the header stamps of the bag, and publishes the bag's time on /clock for nodes
        with ``use_sim_time``. True sets them to the wall time of sending, and publishes no /clock,
        so that receivers measure real ages.
    topics
        Names to play; None plays all.
    """

    rate: float = 1.0
    loop: bool = False
    reliability: str = "auto"
    restamp: bool = False
    topics: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.rate) and 0 < self.rate <= 1000):
            raise ValueError(f"rate {self.rate}: accepted are numbers above 0, up to 1000")
        if self.reliability not in ("auto", *RELIABILITIES):
            raise ValueError(
                f"reliability {self.reliability!r}: accepted are auto, {', '.join(RELIABILITIES)}"
            )


class Player:
    """Publishes the messages of a bag; needs no executor.

    It raises `BagError` if nothing in the bag can be played, or the bag is damaged.

    Parameters
    ----------
    on_sent
        Called after each message with its topic, the header stamp that it was sent with (ns; the
        bag's time for a type without a header), and the serialised message that was sent.

    Attributes
    ----------
    skipped : dict[str, str]
        Topics left out, each with its type, which is not installed here.
    left_out : dict[str, str]
        Topics with messages that were left out, each with the reason: a header cannot be read, or
        holds a time that ROS cannot express.
    """

    def __init__(
        self, reader: BagReader, node: Node, settings: PlayerSettings, on_sent: OnSent | None = None
    ) -> None:
        self._reader = reader
        self._settings = settings
        self._on_sent = on_sent
        self._publishers: dict[str, Publisher[object]] = {}
        self._stamped: set[str] = set()
        self.skipped: dict[str, str] = {}
        self.left_out: dict[str, str] = {}
        names = settings.topics or [topic.name for topic in reader.topics]
        for topic in (reader.topic(name) for name in names):
            if topic.name == "/clock" or topic.count == 0:
                continue  # a recorded clock would fight with the one published here
            message_class = find_message_class(topic.type)
            if message_class is None:
                self.skipped[topic.name] = topic.type
                continue
            wish = settings.reliability
            qos = qos_of(topic if wish == "auto" else replace(topic, reliability=wish), QUEUE_DEPTH)
            self._publishers[topic.name] = node.create_publisher(message_class, topic.name, qos)
            if has_header(message_class):
                self._stamped.add(topic.name)
        if not self._publishers:
            why = ", ".join(
                f"{name} ({kind} is not installed)" for name, kind in self.skipped.items()
            )
            raise BagError(
                f"bag {reader.path} holds nothing to play: {why or 'it has no messages'}"
            )
        self._gaps = self._find_gaps()
        self._clock = None if settings.restamp else node.create_publisher(Clock, "/clock", 10)

    def wait_for_subscribers(self, timeout_s: float, stop: threading.Event) -> bool:
        """Wait until every topic has a subscriber; False after `timeout_s`, or if stopped."""
        end = time.monotonic() + timeout_s
        while not all(each.get_subscription_count() for each in self._publishers.values()):
            if time.monotonic() >= end or stop.wait(_POLL_S):
                return False
        return True

    def play(self, stop: threading.Event) -> int:
        """Play until the end, or until `stop` is set; return how many messages were sent.

        It raises `BagError` if the bag turns out damaged on the way.
        """
        # Laps are joined by one mean period, so that the last and the first message do not collide.
        span_ns = round(self.duration_s * 1e9)
        lap_ns = span_ns + max(span_ns // max(self._reader.message_count - 1, 1), 1_000_000)
        self._start = time.monotonic()
        sent = 0
        for lap in itertools.count():
            sent += self._play_lap(lap * lap_ns, stop)
            if stop.is_set() or not self._settings.loop:
                break
        if not stop.is_set():
            self._drain()
        return sent

    def _play_lap(self, shift_ns: int, stop: threading.Event) -> int:
        sent = 0
        for message in self._reader.messages(list(self._publishers)):
            bag_ns = self._bag_time(message.received_ns) + shift_ns
            if not self._wait_until(bag_ns, stop):
                return sent
            self._publish_clock(bag_ns)
            try:
                data, stamp_ns = self._stamp(message, bag_ns, shift_ns)
            except ValueError as error:  # the others are worth playing
                self.left_out.setdefault(message.topic.name, str(error))
                continue
            self._publishers[message.topic.name].publish(data)
            sent += 1
            if self._on_sent is not None:
                self._on_sent(message.topic, stamp_ns, data)
        return sent

    @property
    def duration_s(self) -> float:
        """Seconds that a lap takes at rate 1, without `_LONGEST_GAP_NS`."""
        return (self._reader.end_ns - self._bag_time(self._reader.start_ns)) / 1e9

    def _bag_time(self, received_ns: int) -> int:
        """Return a message's time in the bag without long gaps: what precedes one moves up."""
        return received_ns + sum(gap for after, gap in self._gaps if received_ns < after)

    def _find_gaps(self) -> list[tuple[int, int]]:
        """Return (time after it, length) of the gaps in which a clock was set; both in ns."""
        if self._reader.end_ns - self._reader.start_ns < _LONGEST_GAP_NS:
            return []  # almost every bag: it need not be read twice
        times = [message.received_ns for message in self._reader.messages(list(self._publishers))]
        return [
            (after, after - before)
            for before, after in itertools.pairwise(times)
            if after - before > _LONGEST_GAP_NS
        ]

    def _stamp(self, message: BagMessage, bag_ns: int, shift_ns: int) -> tuple[bytes, int]:
        """Return the message as it is to be sent, and its stamp; `ValueError` if it has none."""
        if message.topic.name not in self._stamped:
            return message.data, bag_ns
        if self._settings.restamp:
            stamp_ns = time.time_ns()
        else:
            stamp_ns = read_stamp(message.data) + shift_ns
            if shift_ns == 0:
                return message.data, stamp_ns
        return with_stamp(message.data, stamp_ns), stamp_ns

    def _wait_until(self, bag_ns: int, stop: threading.Event) -> bool:
        """Sleep until `bag_ns` is due, ticking the clock; False when stopped."""
        rate = self._settings.rate
        due = self._start + (bag_ns - self._bag_time(self._reader.start_ns)) / 1e9 / rate
        while not stop.is_set():
            left = due - time.monotonic()
            if left <= 0:
                return True
            if self._clock is None:
                stop.wait(left)
                continue
            stop.wait(min(left, CLOCK_PERIOD_S))
            left = due - time.monotonic()
            if left > 0:  # else the message's own time comes next, and time must not go back
                self._publish_clock(bag_ns - round(left * 1e9 * rate))
        return False

    def _publish_clock(self, bag_ns: int) -> None:
        if self._clock is not None:
            message = Clock()
            sec, message.clock.nanosec = divmod(bag_ns, 1_000_000_000)
            if sec >= 1 << 31:
                raise BagError(
                    f"bag {self._reader.path} has a message of {sec} s, which /clock cannot tell; "
                    "accepted: less than 2^31 s; play it with --restamp"
                )
            message.clock.sec = sec
            self._clock.publish(message)

    def _drain(self) -> None:
        """Wait until reliable subscribers have the last messages, before the process may end."""
        timeout = Duration(nanoseconds=round(ACKNOWLEDGE_TIMEOUT_S * 1e9))
        for publisher in (*self._publishers.values(), self._clock):
            if publisher is not None:
                publisher.wait_for_all_acked(timeout)


def qos_of(topic: Topic, depth: int) -> QoSProfile:
    """Return the QoS of a topic, with a queue of `depth` messages."""
    return QoSProfile(
        depth=depth,
        reliability=ReliabilityPolicy[topic.reliability.upper()],
        durability=DurabilityPolicy[topic.durability.upper()],
    )


def find_message_class(message_type: str) -> type | None:
    """Return the Python class of ``package/msg/Name``; None if it is not installed.

    The name comes from a bag or from the network, and importing a module runs it. Therefore only
    packages that have a ``msg`` package of their own are imported.
    """
    if not _MESSAGE_TYPE.fullmatch(message_type):
        return None
    package, _, name = message_type.split("/")
    try:
        spec = importlib.util.find_spec(package)  # imports nothing: the name has no dot
        folders = (spec and spec.submodule_search_locations) or ()
        if not any((Path(folder) / "msg" / "__init__.py").is_file() for folder in folders):
            return None
        module = importlib.import_module(f"{package}.msg")
    except (ImportError, ValueError):  # ValueError: a module without a spec, such as __main__
        return None
    found = getattr(module, name, None)
    return found if hasattr(found, "get_fields_and_field_types") else None
