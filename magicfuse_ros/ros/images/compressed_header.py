"""Kind and size of a JPEG or PNG from its header, before anything is decoded.

A few hundred bytes can announce a picture of gigabytes; a decoder allocates it before it notices
that the data is missing. A JPEG can also make it go over the whole picture for every few bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from magicfuse_ros.ros.images.errors import ImageError

_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_SCAN = b"\xff\xda"
MAX_SCANS = 100
"""Most scans of a progressive JPEG; encoders make about ten."""
_WITHOUT_LENGTH = frozenset({0x00, 0x01, *range(0xD0, 0xD8)})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


@dataclass(frozen=True)
class CompressedHeader:
    """What the first bytes of a compressed picture say: its kind, width and height in pixels."""

    kind: Literal["jpeg", "png"]
    width: int
    height: int


def read_header(data: bytes) -> CompressedHeader:
    """Read the kind and size of a compressed picture.

    Raises
    ------
    ImageError
        `short_data` (empty), `unknown_format`, `corrupt_png` or `corrupt_jpeg` (also where the end
        is missing: some decoders fill a truncated picture with grey).
    """
    if not data:
        raise ImageError("short_data", "the compressed picture has no bytes; check the publisher")
    if data.startswith(_JPEG_START):
        width, height = _jpeg_size(data)
        return CompressedHeader("jpeg", width, height)
    if data.startswith(_PNG_START):
        width, height = _png_size(data)
        return CompressedHeader("png", width, height)
    raise ImageError(
        "unknown_format",
        f"the compressed picture starts with the bytes {data[:4].hex(' ')}; accepted: JPEG and PNG",
    )


def _jpeg_size(data: bytes) -> tuple[int, int]:
    """Width and height from the frame header (ITU-T T.81, B.2.2)."""
    size: tuple[int, int] | None = None
    scan = 0
    for marker, position in _jpeg_segments(data):
        scan = position
        if marker in _START_OF_FRAME:
            if size is not None or position + 9 > len(data):
                raise _corrupt_jpeg("its frame header is broken")
            height, width = struct.unpack_from(">HH", data, position + 5)
            size = width, height
    if size is None:
        raise _corrupt_jpeg("it has no frame header")
    # The end may be followed by padding (USB cameras do that). It cannot occur inside the scan,
    # where ff is always followed by 00; a thumbnail's end lies before the scan.
    if data.rfind(_JPEG_END, scan) < 0:
        raise _corrupt_jpeg("its end is missing: it was cut off")
    scans = data.count(_SCAN, scan)  # cannot occur inside a scan either
    if scans > MAX_SCANS:
        raise _corrupt_jpeg(f"it has {scans} scans, accepted are up to {MAX_SCANS}")
    return size


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, position of its ff byte) of each segment up to the first scan, inclusive.

    Bytes between segments are skipped as libjpeg does, so that both read the same frame header.
    """
    position = 2
    marker = 0
    while marker != _SOS:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise _corrupt_jpeg("it ends inside its header")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in (_SOI, _EOI):
            raise _corrupt_jpeg("it has no picture between its start and its end")
        else:
            yield marker, position
            (length,) = struct.unpack_from(">H", data, position + 2)
            position += 2 + max(length, 2)


def _png_size(data: bytes) -> tuple[int, int]:
    """Width and height from IHDR, which must come first (PNG specification, 11.2.1)."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _corrupt_png("it has no header chunk")
    # A decoder makes room for what a chunk announces before it looks whether that much is there.
    at, kind = len(_PNG_START), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise _corrupt_png("its end is missing: it was cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + length
        if at > len(data):
            raise _corrupt_png(f"a chunk announces {length} bytes, which are not there")
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _corrupt_png(what: str) -> ImageError:
    return ImageError("corrupt_png", f"the PNG is broken: {what}; check the camera and the link")


def _corrupt_jpeg(what: str) -> ImageError:
    return ImageError("corrupt_jpeg", f"the JPEG is broken: {what}; check the camera and the link")
