"""Pictures from bytes, files and folders, decoded strictly: a damaged picture is an error.

Most decoders fill in what is missing: they paint the rest of a cut JPEG grey and report success.
Here everything that the decoder had to guess is an error instead. JPEGs go through simplejpeg,
which stops at the first warning of libjpeg-turbo. The checksums of a PNG are compared before it is
decoded. What remains unseen is damage that happens to leave a valid code: a single flipped bit in a
JPEG often does, a lost or zeroed block of bytes hardly ever.

The pixels stay as they are stored. An orientation tag is not applied: the pixels of a camera have
to stay where its camera_info says they are, and both halves of a pair have to be turned alike.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from magicfuse_ros.sources.compressed_header import CompressedHeader, is_compressed, read_header
from magicfuse_ros.sources.picture_errors import PictureError, check_size

PICTURE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
"""Suffixes of the files in a folder that count as pictures, in capital letters too."""

_OTHERS = re.compile(rb"BM|P[2356]\s|II\x2a\0|MM\0\x2a|RIFF....WEBP", re.DOTALL)
"""How BMP, PGM and PPM, TIFF and WebP begin."""

_RARE = re.compile(r"Unsupported (JPEG|color)|subsampling")
"""What the decoder says about JPEGs of 12 bits, lossless ones, and ones with 3:1 chroma."""

_PADDED = re.compile(r"(\d+) extraneous bytes before marker 0xd[0-79]")
_MOST_PADDING = 4
"""Most extra bytes that are accepted before a restart or end marker. Webcams are known to pad
there, which does no harm; damage seldom leaves so few bytes."""


def decode_picture(data: bytes) -> NDArray[Any]:
    """Decode a JPEG, PNG, BMP, PGM, PPM, TIFF or WebP, whichever the bytes are.

    Returns
    -------
    (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, of the depth that is stored: uint8, or uint16 as
    in a 16-bit PNG. A palette is resolved into RGB.

    Raises
    ------
    PictureError
        `short_data`, `unknown_format`, `zero_size`, `too_large`, `corrupt_jpeg`, `corrupt_png` or
        `corrupt_picture`.

    Examples
    --------
    >>> from magicfuse_ros.sources.pictures import decode_picture
    >>> decode_picture(b"P5 2 1 255 " + bytes([7, 200]))
    array([[  7, 200]], dtype=uint8)
    """
    if is_compressed(data) or not _OTHERS.match(data):
        return decode_jpeg_or_png(data)
    pixels = _decode_by_opencv(data)
    if pixels is None:
        raise PictureError("corrupt_picture", f"{_AT_FAULT}; replace it")
    check_size(pixels.shape[1], pixels.shape[0])
    return pixels


def decode_jpeg_or_png(data: bytes) -> NDArray[Any]:
    """Decode what cameras send: like `decode_picture`, but any other kind is `unknown_format`."""
    header = read_header(data)
    check_size(header.width, header.height)
    if header.kind == "jpeg":
        return _decode_jpeg(data, header)
    pixels = _decode_by_opencv(data)
    if pixels is None or pixels.shape[:2] != (header.height, header.width):
        raise PictureError("corrupt_png", f"{_of(header, data)} {_CHECK}")
    return pixels


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture file as `decode_picture` does.

    Raises
    ------
    PictureError
        For the reasons of `decode_picture`, or `unreadable`; the message names the file.
    """
    try:
        return decode_picture(path.read_bytes())
    except OSError as error:
        raise PictureError(
            "unreadable", f"{path} cannot be read: {error.strerror or error}"
        ) from error
    except PictureError as error:
        raise PictureError(error.reason, f"{path} is not a readable picture: {error}") from error


def to_rgb8(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Turn a picture of `decode_picture` into (H, W, 3) uint8 RGB, C-contiguous.

    16 bits are scaled from 0..65535 to 0..255 and rounded, grey is repeated, alpha is dropped.
    """
    if pixels.dtype == np.uint16:
        pixels = cv2.convertScaleAbs(pixels, alpha=255.0 / 65535.0)
    if pixels.ndim == 2:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    elif pixels.shape[2] == 4:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)
    return pixels


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the natural order of their names: 2 before 10.

    Names that begin with a dot are left out: macOS puts a `._a.jpg`, which is no picture, beside
    each `a.jpg` on foreign disks. It raises `PictureError`: `no_pictures`, or `unreadable`.
    """
    try:
        files = [
            file
            for file in folder.iterdir()
            if file.suffix.lower() in PICTURE_SUFFIXES
            and not file.name.startswith(".")
            and file.is_file()
        ]
    except OSError as error:
        raise PictureError(
            "unreadable", f"folder {folder} cannot be read: {error.strerror or error}"
        ) from error
    if not files:
        raise PictureError(
            "no_pictures",
            f"folder {folder} holds no pictures ({' '.join(PICTURE_SUFFIXES)}); subfolders are not "
            "searched: give the one that holds the pictures",
        )
    return sorted(files, key=lambda file: _natural(file.name))


def _natural(name: str) -> list[tuple[int, str]]:
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


_CHECK = "cannot be decoded: it is damaged; check where it comes from"
_AT_FAULT = "it cannot be decoded: it is damaged or cut short"


def _decode_jpeg(data: bytes, header: CompressedHeader) -> NDArray[Any]:
    if header.components not in (1, 3):
        raise PictureError(
            "unknown_format",
            f"the JPEG has {header.components} components, such as CMYK; accepted: 1 (grey) and 3 "
            "(colour); convert it to RGB",
        )
    colorspace = "GRAY" if header.components == 1 else "RGB"
    try:
        try:
            pixels: NDArray[Any] = simplejpeg.decode_jpeg(data, colorspace)
        except ValueError as error:
            padded = _PADDED.search(str(error))
            if padded is None or int(padded[1]) > _MOST_PADDING:
                raise
            pixels = simplejpeg.decode_jpeg(data, colorspace, strict=False)
    except ValueError as error:
        what = str(error)
        if _RARE.search(what):
            raise PictureError(
                "unknown_format",
                f"{_of(header, data)} is of a rare kind ({what[:80]}); "
                "accepted: 8 bits with the usual chroma subsampling; change the camera's setting",
            ) from error
        raise PictureError("corrupt_jpeg", f"{_of(header, data)} {_CHECK} ({what[:80]})") from error
    return pixels[..., 0] if header.components == 1 else pixels


def _of(header: CompressedHeader, data: bytes) -> str:
    return f"a {header.kind.upper()} of {header.width} x {header.height} and {len(data)} bytes"


def _decode_by_opencv(data: bytes) -> NDArray[Any] | None:
    """Decode a PNG or another kind as it is stored, channels in the order R, G, B, alpha."""
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        return None
    if pixels is None or pixels.size == 0:
        return None
    if pixels.dtype not in (np.uint8, np.uint16):
        raise PictureError(
            "unknown_format",
            f"its pixels are {pixels.dtype}; accepted: 8 or 16 bits without sign; convert it",
        )
    if pixels.ndim == 2:
        return pixels
    swap = cv2.COLOR_BGR2RGB if pixels.shape[2] == 3 else cv2.COLOR_BGRA2RGBA
    return cv2.cvtColor(pixels, swap)
