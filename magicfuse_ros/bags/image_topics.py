"""Finds the image topics of a bag, and decodes their frames."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from magicfuse_ros.bags.reader import BagError, BagReader, Topic
from magicfuse_ros.ros.cdr import deserialize
from magicfuse_ros.ros.images import codec

IMAGE_TYPE = "sensor_msgs/msg/Image"
COMPRESSED_TYPE = "sensor_msgs/msg/CompressedImage"

_LOOKED_AT = 10
"""Messages that are searched for a picture, because a recording's first ones may be broken."""


def image_topics(bag: BagReader) -> tuple[Topic, ...]:
    """Return the topics that hold pictures, raw ones first."""
    topics = [topic for topic in bag.topics if topic.type in (IMAGE_TYPE, COMPRESSED_TYPE)]
    return tuple(sorted(topics, key=lambda topic: topic.type != IMAGE_TYPE))


def decode(topic: Topic, data: bytes) -> NDArray[np.uint8]:
    """Decode one serialised image message into (H, W, 3) RGB.

    It raises `PictureError` if the message holds no readable picture, and `BagError` if the bytes
    are no such message.
    """
    return codec.decode(_message(topic, data))


def describe_images(bag: BagReader) -> dict[str, str]:
    """Return size and encoding of the pictures by topic name, such as ``640x480 rgb8``."""
    described = {}
    for topic in image_topics(bag):
        if topic.count:
            try:
                described[topic.name] = describe_topic(bag, topic)
            except BagError:
                described[topic.name] = "unreadable"
    return described


def describe_topic(bag: BagReader, topic: Topic) -> str:
    """Return size and encoding of a topic's first picture; empty for a topic without messages.

    It raises `BagError` if none of the first messages is one of the topic's type.
    """
    first_error = None
    for message in itertools.islice(bag.messages([topic.name]), _LOOKED_AT):
        try:
            return describe(topic, message.data)
        except BagError as error:
            first_error = first_error or error
    if first_error is not None:
        raise first_error
    return ""


def describe(topic: Topic, data: bytes) -> str:
    """Return size and encoding of one serialised image message; `BagError` as in `decode`."""
    message = _message(topic, data)
    if topic.type == IMAGE_TYPE:
        return f"{message.width}x{message.height} {message.encoding}"
    return str(message.format)


def _message(topic: Topic, data: bytes) -> Any:
    try:
        return deserialize(data, CompressedImage if topic.type == COMPRESSED_TYPE else Image)
    except ValueError as error:
        raise BagError(
            f"topic {topic.name} holds {len(data)} bytes that are no {topic.type}"
        ) from error
