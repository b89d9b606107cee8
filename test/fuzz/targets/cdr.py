"""Image messages of a bag: `image_topics.decode`, and the stamp read and replaced in them."""

from __future__ import annotations

import numpy as np
from fuzz.fields import Fields

from magicfuse_ros.bags import image_topics
from magicfuse_ros.bags.reader import BagError, Topic
from magicfuse_ros.ros import stamps
from magicfuse_ros.sources.picture_errors import PictureError

TOPICS = tuple(
    Topic("/image", kind) for kind in (image_topics.IMAGE_TYPE, image_topics.COMPRESSED_TYPE)
)


def check(data: bytes) -> None:
    fields = Fields(data)
    topic = fields.choice(TOPICS)
    cdr = fields.rest()
    try:
        stamp = stamps.read_stamp(cdr)
        moved = stamps.with_stamp(cdr, stamp + 1)
    except ValueError:
        assert len(cdr) < 12 or stamp + 1 >= 2**31 * 10**9
    else:
        assert stamps.read_stamp(moved) == stamp + 1
        assert moved[12:] == cdr[12:]
    try:
        described = image_topics.describe(topic, cdr)
        rgb = image_topics.decode(topic, cdr)
    except (BagError, PictureError) as error:
        assert len(str(error)) < 1000
        return
    assert isinstance(described, str)
    assert rgb.dtype == np.uint8
    if topic.type == image_topics.IMAGE_TYPE:
        assert described.startswith(f"{rgb.shape[1]}x{rgb.shape[0]} ")
