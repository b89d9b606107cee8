"""The pictures of a bag's topic, with their times."""

from dataclasses import dataclass

import numpy as np

from magicfuse_ros.bags.image_topics import decode
from magicfuse_ros.ros.stamps import read_stamp


@dataclass
class StampedFrame:
    stamp_ns: int
    received_ns: int
    frame: np.ndarray


def frames(bag, topic_name):
    for message in bag.messages([topic_name]):
        frame = decode(message.topic, message.data)
        yield StampedFrame(read_stamp(message.data), message.received_ns, frame)
