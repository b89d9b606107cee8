"""What must hold of a bag, whatever its files are: read as it says it is, or one `BagError`."""

from __future__ import annotations

from pathlib import Path

from magicfuse_ros.bags import image_topics
from magicfuse_ros.bags.reader import BagError, BagReader


def check_bag(path: Path) -> None:
    try:
        with BagReader(path) as bag:
            _check(bag)
    except BagError as error:
        assert str(path) in str(error) or "topic" in str(error)
        assert len(str(error)) < 10_000


def _check(bag: BagReader) -> None:
    for topic in bag.topics:
        assert isinstance(topic.name, str)
        assert isinstance(topic.type, str)
        assert type(topic.count) is int
        assert topic.count >= 0
    for number in (bag.start_ns, bag.end_ns, bag.message_count):
        assert type(number) is int
    assert bag.duration_s >= 0.0
    assert all(isinstance(text, str) for note in bag.notes.items() for text in note)
    count, before = 0, None
    for message in bag.messages():
        assert message.topic in bag.topics
        assert type(message.received_ns) is int
        assert type(message.data) is bytes
        assert before is None or before <= message.received_ns
        count, before = count + 1, message.received_ns
    assert count >= sum(topic.count for topic in bag.topics)
    described = image_topics.describe_images(bag)
    assert all(isinstance(text, str) for text in described.values())
