"""`read_header` alone, which stands before both decoders: fast, so that it gets far."""

from __future__ import annotations

import struct

from fuzz.png import START, with_checksums

from magicfuse_ros.sources.compressed_header import read_header
from magicfuse_ros.sources.picture_errors import PictureError

REASONS = {"short_data", "unknown_format", "corrupt_png", "corrupt_jpeg"}


def check(data: bytes) -> None:
    read(data)
    if data.startswith(START):
        read(with_checksums(data))


def read(data: bytes) -> None:
    try:
        header = read_header(data)
    except PictureError as error:
        assert error.reason in REASONS
        assert len(str(error)) < 200
        return
    if header.kind == "png":
        assert data[16:24] == struct.pack(">II", header.width, header.height)
    else:
        assert struct.pack(">HH", header.height, header.width) in data
    assert read_header(data + bytes(4)) == header  # padding behind the picture
