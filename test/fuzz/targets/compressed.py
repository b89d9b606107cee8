"""`decode_compressed` on bytes that nearly are a JPEG or PNG."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

import cv2
import numpy as np
from fuzz.fields import Fields
from std_msgs.msg import Header

from magicfuse_ros.ros.images.codec import (
    MAX_PIXELS,
    REASONS,
    ImageError,
    decode_compressed,
    encode_compressed,
)
from magicfuse_ros.sources.compressed_header import read_header

PNG = b"\x89PNG\r\n\x1a\n"
FORMATS = ("jpeg", "png", "", "rgb8; jpeg compressed bgr8", "16UC1; compressedDepth")
MAX_DECODED = 1 << 16
"""Pixels up to which a picture is decoded here: larger ones are accepted, but take long."""


@dataclass
class Compressed:
    format: str
    data: bytes


def check(data: bytes) -> None:
    fields = Fields(data)
    form, repaired = fields.choice(FORMATS), fields.flag()
    payload = with_checksums(rest) if (rest := fields.rest()).startswith(PNG) and repaired else rest
    try:
        header = read_header(payload)
        if MAX_DECODED < header.width * header.height <= MAX_PIXELS:
            return
        rgb = decode_compressed(Compressed(form, payload))
    except ImageError as error:
        assert error.reason in REASONS
        assert len(str(error)) < 1000
        return
    assert (rgb.shape, rgb.dtype) == ((header.height, header.width, 3), np.uint8)
    assert rgb.flags.c_contiguous
    assert "compressedDepth" not in form
    png = cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()
    assert np.array_equal(decode_compressed(Compressed("png", png)), rgb)
    assert decode_compressed(encode_compressed(rgb, Header(), 75)).shape == rgb.shape


def with_checksums(png: bytes) -> bytes:
    """Put right the CRC of every chunk, which no mutation would hit."""
    parts, at = [PNG], len(PNG)
    while at + 12 <= len(png):
        length = min(struct.unpack_from(">I", png, at)[0], len(png) - at - 12)
        body = png[at + 4 : at + 8 + length]
        parts += [struct.pack(">I", length), body, struct.pack(">I", zlib.crc32(body))]
        at += 12 + length
    return b"".join(parts)
