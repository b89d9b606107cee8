"""What a JPEG or PNG says about itself, read before anything is decoded.

A few hundred bytes can announce a picture of gigabytes, and a decoder allocates it before it
notices that the data is missing. A JPEG can also make it go over the whole picture for every few
bytes.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from magicfuse_ros.sources.picture_errors import PictureError

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
    """What the header of a compressed picture says: its kind, and its size in pixels.

    `components` are those of a JPEG: 1 for grey, 3 for colour, 4 for CMYK. It is 0 for a PNG, whose
    decoder tells.
    """

    kind: Literal["jpeg", "png"]
    width: int
    height: int
    components: int = 0


def is_compressed(data: bytes) -> bool:
    """Whether the bytes begin as a JPEG or PNG does."""
    return data.startswith((_JPEG_START, _PNG_START))


def read_header(data: bytes) -> CompressedHeader:
    """Read the header of a compressed picture, and check the frame around its pixels.

    That frame is the end marker of a JPEG, and the lengths and checksums of a PNG's chunks: a
    decoder may fill up a picture that was cut off, and return it as if it were whole. It raises
    `PictureError`: `short_data` (empty), `unknown_format`, `corrupt_png` or `corrupt_jpeg`.
    """
    if not data:
        raise PictureError("short_data", "the compressed picture has no bytes; check the publisher")
    if data.startswith(_JPEG_START):
        return _jpeg_header(data)
    if data.startswith(_PNG_START):
        return _png_header(data)
    raise PictureError(
        "unknown_format",
        f"the compressed picture starts with the bytes {data[:4].hex(' ')}; accepted: JPEG and PNG",
    )


def _jpeg_header(data: bytes) -> CompressedHeader:
    """Read the frame header (ITU-T T.81, B.2.2)."""
    header: CompressedHeader | None = None
    scan = 0
    for marker, position in _jpeg_segments(data):
        scan = position
        if marker in _START_OF_FRAME:
            if header is not None or position + 10 > len(data):
                raise _corrupt("jpeg", "its frame header is broken")
            height, width, components = struct.unpack_from(">HHB", data, position + 5)
            header = CompressedHeader("jpeg", width, height, components)
    if header is None:
        raise _corrupt("jpeg", "it has no frame header")
    # The end may be followed by padding (USB cameras do that). It cannot occur inside the scan,
    # where ff is always followed by 00; a thumbnail's end lies before the scan.
    if data.rfind(_JPEG_END, scan) < 0:
        raise _corrupt("jpeg", "its end is missing: it was cut off")
    scans = data.count(_SCAN, scan)  # cannot occur inside a scan either
    if scans > MAX_SCANS:
        raise _corrupt("jpeg", f"it has {scans} scans, accepted are up to {MAX_SCANS}")
    return header


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """Yield (marker, position of its ff byte) of each segment up to the first scan, inclusive.

    Bytes between segments are skipped as libjpeg does, so that both read the same frame header.
    """
    position = 2
    marker = 0
    while marker != _SOS:
        position = data.find(b"\xff", position)
        if position < 0 or position + 4 > len(data):
            raise _corrupt("jpeg", "it ends inside its header")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
        elif marker in _WITHOUT_LENGTH:
            position += 2
        elif marker in (_SOI, _EOI):
            raise _corrupt("jpeg", "it has no picture between its start and its end")
        else:
            yield marker, position
            (length,) = struct.unpack_from(">H", data, position + 2)
            position += 2 + max(length, 2)


def _png_header(data: bytes) -> CompressedHeader:
    """Read IHDR, which must come first (PNG specification, 11.2.1), and check every chunk."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        raise _corrupt("png", "it has no header chunk")
    view = memoryview(data)
    at, kind = len(_PNG_START), b""
    while kind != b"IEND":
        if at + 12 > len(data):
            raise _corrupt("png", "its end is missing: it was cut off")
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        # A decoder makes room for what a chunk announces before it looks whether that is there.
        if end + 4 > len(data):
            raise _corrupt("png", f"a chunk announces {length} bytes, which are not there")
        # The pixels do not depend on chunks whose name begins with a small letter (5.4).
        critical = not kind[0] & 0x20
        if critical and zlib.crc32(view[at + 4 : end]) != int.from_bytes(
            data[end : end + 4], "big"
        ):
            raise _corrupt("png", f"the checksum of its chunk at byte {at} is wrong")
        at = end + 4
    width, height = struct.unpack_from(">II", data, 16)
    return CompressedHeader("png", width, height)


def _corrupt(kind: Literal["jpeg", "png"], what: str) -> PictureError:
    text = f"the {kind.upper()} is damaged: {what}; check where it comes from"
    return PictureError("corrupt_jpeg" if kind == "jpeg" else "corrupt_png", text)
