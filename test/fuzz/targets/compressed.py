"""`decode_compressed` on bytes that nearly are a JPEG or PNG."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from fuzz.fields import Fields
from fuzz.png import START, with_checksums
from std_msgs.msg import Header

from magicfuse_ros.ros.images.codec import decode_compressed, encode_compressed
from magicfuse_ros.sources.compressed_header import read_header
from magicfuse_ros.sources.picture_errors import MAX_PIXELS, REASONS, PictureError

FORMATS = (
    "jpeg",
    "png",
    "",
    "rgb8; jpeg compressed bgr8",
    "16UC1; compressedDepth",
    "bayer_grbg8; png compressed ",
    "bayer_none",
)
MAX_DECODED = 1 << 16
"""Pixels up to which a picture is decoded here: larger ones are accepted, but take long."""


@dataclass
class Compressed:
    format: str
    data: bytes


def check(data: bytes) -> None:
    fields = Fields(data)
    form, repaired = fields.choice(FORMATS), fields.flag()
    payload = (
        with_checksums(rest) if (rest := fields.rest()).startswith(START) and repaired else rest
    )
    try:
        try:
            header = read_header(payload)
        except PictureError:
            header = None
        if header and MAX_DECODED < header.width * header.height <= MAX_PIXELS:
            return
        rgb = decode_compressed(Compressed(form, payload))
    except PictureError as error:
        assert error.reason in REASONS
        assert len(str(error)) < 1000
        return
    assert header is not None, "what has no header cannot be decoded"
    assert (rgb.shape, rgb.dtype) == ((header.height, header.width, 3), np.uint8)
    assert rgb.flags.c_contiguous
    assert "compressedDepth" not in form
    png = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    assert np.array_equal(decode_compressed(Compressed("png", png)), rgb)
    assert decode_compressed(encode_compressed(rgb, Header(), 75)).shape == rgb.shape
