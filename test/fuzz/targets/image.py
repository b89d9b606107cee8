"""`decode_image` on a sensor_msgs/Image whose every field is the fuzzer's."""

from __future__ import annotations

import numpy as np
from fuzz.fields import Fields
from image_reference import BAYER, GREY_BYTES, RawImage, row_bytes, row_count
from std_msgs.msg import Header
from support.messages import encode_image

from magicfuse_ros.ros.images.codec import decode_compressed, decode_image, encode_compressed
from magicfuse_ros.ros.images.pixel_layouts import ENCODINGS
from magicfuse_ros.sources.picture_errors import MAX_PIXELS, REASONS, PictureError

MAX_FILLED = 1 << 14
"""Bytes up to which data that is too short for its header is repeated until it fits."""


def check(data: bytes) -> None:
    fields = Fields(data)
    encoding = fields.choice([*ENCODINGS, fields.text()])
    height, width = fields.number(), fields.number()
    known = encoding in ENCODINGS
    tight = row_bytes(encoding, width) if known else width
    step = tight + fields.byte() if fields.flag() else fields.number()
    needed = step * (row_count(encoding, height) if known else height)
    big, fill, compress = fields.byte(), fields.flag(), fields.flag()
    payload = fields.rest()
    if fill and payload and needed <= MAX_FILLED:
        payload *= -(-needed // len(payload))
    image = RawImage(height, width, encoding, big, step, payload)
    try:
        rgb = decode_image(image)
    except PictureError as error:
        assert error.reason in REASONS
        assert len(str(error)) < 1000
        return
    assert known
    assert 0 < height * width <= MAX_PIXELS
    assert (rgb.shape, rgb.dtype) == ((height, width, 3), np.uint8)
    assert rgb.flags.c_contiguous
    assert image.data == payload
    assert np.array_equal(decode_image(moved(image)), rgb)
    assert np.array_equal(decode_image(encode_image(rgb, "rgb8", Header())), rgb)
    if compress:
        assert decode_compressed(encode_compressed(rgb, Header(), 75)).shape == rgb.shape


def moved(image: RawImage) -> RawImage:
    """The same picture with other padding, at an odd address and in the other byte order."""
    rows, tight = row_count(image.encoding, image.height), row_bytes(image.encoding, image.width)
    size = GREY_BYTES.get(image.encoding) or BAYER.get(image.encoding, ("", 1))[1]
    given = np.frombuffer(image.data, np.uint8, rows * image.step).reshape(rows, image.step)
    numbers = given[:, :tight].reshape(rows, -1, size)[:, :, ::-1].reshape(rows, tight)
    memory = np.full(1 + rows * (tight + 3), 0xEE, np.uint8)
    memory[1:].reshape(rows, tight + 3)[:, :tight] = numbers
    big = 0 if image.is_bigendian else 1
    return RawImage(image.height, image.width, image.encoding, big, tight + 3, memory[1:].data)
