"""Converts camera messages to RGB arrays and back.

It uses strided NumPy views and OpenCV's colour conversions. Rows may be padded (`step` larger than
a row), and 16- and 32-bit numbers may come in either byte order, which cv_bridge and rosbags-image
decode wrongly.

How numbers become 8 bits depends on the encoding alone, never on the frame, so that a video does
not flicker:

- `mono16`, `16UC1`, `bayer_*16`, 16-bit PNG: 0 to 65535 is black to white, rounded (v / 257),
  unless a `BitDepth` says that the camera fills fewer bits.
- `32FC1`: 0.0 to 1.0 is black to white; values outside are clipped. A frame with NaN or infinity,
  or whose mean lies outside [0, 1] (so it has another scale, 0 to 255 or metres), is refused.
- `yuv422`, `yuyv`, `nv12` and the like: ITU-R BT.601, limited range (luma 16 to 235).

Bad input raises `PictureError`, whose `reason` is machine-readable; nothing of the size that a
header claims is allocated before it is checked.
"""

from __future__ import annotations

import array
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image

from magicfuse_ros.ros.byte_data import why_unreadable
from magicfuse_ros.ros.images.bit_depth import BitDepth
from magicfuse_ros.ros.images.pixel_layouts import PixelLayout, layout_of
from magicfuse_ros.sources.picture_errors import PictureError
from magicfuse_ros.sources.pictures import decode_jpeg_or_png, to_rgb8

_RUN = np.dtype([("value", "u1"), ("length", "<i4")])  # 5 bytes, not aligned
_CHANNELS_OUT = {"rgb8": 3, "mono8": 1}
_FULL_SCALE = BitDepth(16)

_VIDEOS = {
    b"\x80theora": "Theora",
    b"OggS": "Theora",
    b"\0\0\0\x01": "H.264 or H.265",
    b"\0\0\x01": "H.264 or H.265",
}
"""Videos that some publishers send as CompressedImage, by their first bytes."""


def decode(msg: Any, depth: BitDepth = _FULL_SCALE) -> NDArray[np.uint8]:
    """Decode a sensor_msgs/Image or CompressedImage; see `decode_image`."""
    return decode_compressed(msg, depth) if hasattr(msg, "format") else decode_image(msg, depth)


def decode_image(msg: Any, depth: BitDepth = _FULL_SCALE) -> NDArray[np.uint8]:
    """Decode a raw camera picture of any encoding in `ENCODINGS`.

    Parameters
    ----------
    msg
        sensor_msgs/Image of rclpy or of rosbags; `data` is any buffer of bytes. Bytes after the
        last row are ignored.
    depth
        How 16-bit pixels become 8 bits; all 16 bits, unless told otherwise.

    Returns
    -------
    (H, W, 3) uint8 RGB, C-contiguous. For `rgb8` without padding it is a view of `msg.data`
    (nothing is copied): do not write to it.

    Raises
    ------
    PictureError
        `zero_size`, `unknown_encoding`, `too_large`, `too_small`, `odd_size`, `bad_step`,
        `short_data`, `unreadable_data`, `non_finite` or `out_of_range`.

    Examples
    --------
    >>> from sensor_msgs.msg import Image
    >>> from magicfuse_ros.ros.images.codec import decode_image
    >>> decode_image(Image(height=1, width=2, encoding="mono8", step=2, data=[7, 200])).tolist()
    [[[7, 7, 7], [200, 200, 200]]]
    """
    layout = _checked_layout(msg)
    pixels = _pixels(msg, layout)
    if layout.scalar != "u1":
        if not (pixels.dtype.isnative and pixels.flags.aligned):
            pixels = pixels.astype(layout.scalar)
        pixels = _from_float(pixels) if layout.scalar == "f4" else depth.to_8_bits(pixels)
    if layout.to_rgb is None:
        return np.ascontiguousarray(pixels)
    return np.asarray(cv2.cvtColor(pixels, layout.to_rgb), np.uint8)


def decode_compressed(msg: Any, depth: BitDepth = _FULL_SCALE) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG, of 8 or 16 bits, in colour, grey or as a Bayer mosaic.

    The bytes decide what the picture is, because publishers write "jpeg", nothing, or "rgb8; jpeg
    compressed rgb8" for the same ordinary file. Only a Bayer mosaic cannot be told from grey by its
    bytes; for that `msg.format` is believed, which compressed_image_transport sets to "bayer_rggb8;
    jpeg compressed". An orientation tag is not applied, since the pixels have to stay where
    camera_info says they are. Alpha is dropped. Damaged data is refused, see `sources.pictures`.

    Parameters and result are those of `decode_image`, for a sensor_msgs/CompressedImage.

    Raises
    ------
    PictureError
        `short_data`, `unreadable_data`, `unknown_format`, `unknown_encoding`, `zero_size`,
        `too_large`, `too_small`, `corrupt_jpeg` or `corrupt_png`.
    """
    _refuse_unreadable(msg.data)
    data = bytes(msg.data)
    _refuse_other_transports(msg.format, data)
    pixels = decode_jpeg_or_png(data)
    if pixels.dtype == np.uint16:
        pixels = depth.to_8_bits(pixels)
    encoding = _mosaic(msg.format) if pixels.ndim == 2 else None
    if encoding is None:
        return to_rgb8(pixels)
    layout = layout_of(encoding, pixels.shape[1], pixels.shape[0])
    return np.asarray(cv2.cvtColor(pixels, layout.to_rgb), np.uint8)  # type: ignore[arg-type]


def encode_compressed(picture: NDArray[np.uint8], header: Any, quality: int) -> CompressedImage:
    """Put a picture into a sensor_msgs/CompressedImage as JPEG, with the header as it is.

    The picture is (H, W, 3) uint8 RGB or (H, W) uint8 grey, and the quality 1 to 100; others raise
    `ValueError`.
    """
    encoding = "mono8" if picture.ndim == 2 else "rgb8"
    image_size(picture, encoding)
    if not 1 <= quality <= 100:
        raise ValueError(f"the JPEG quality is {quality}; accepted: 1 to 100")
    if max(picture.shape) > 65500:  # libjpeg's limit
        raise ValueError(f"the picture is {picture.shape}; accepted: up to 65500 a side")
    stored = picture if encoding == "mono8" else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    _, jpeg = cv2.imencode(".jpg", stored, [cv2.IMWRITE_JPEG_QUALITY, quality])
    # compressed_image_transport's subscriber looks for "compressed bgr" to get the colours right.
    stored_as = "mono8" if encoding == "mono8" else "bgr8"
    message = CompressedImage(header=header, format=f"{encoding}; jpeg compressed {stored_as}")
    message.data = _byte_array(np.asarray(jpeg, np.uint8))
    return message


def encode_runs(mask: NDArray[np.uint8], header: Any) -> Image:
    """Put a (H, W) uint8 mask into a sensor_msgs/Image as runs of equal pixels.

    This is how Autoware's perception nodes send masks to each other. The message has the mask's
    size and encoding (mono8). Its data are runs in the order of rows, which may go on across the
    end of a row: the value as one byte, then the length as a 32-bit integer, lowest byte first.
    Only Autoware can read it as a picture.
    """
    height, width = mask.shape
    pixels = mask.reshape(-1)
    ends = np.append(np.flatnonzero(pixels[1:] != pixels[:-1]) + 1, pixels.size)
    runs = np.empty(ends.size if pixels.size else 0, _RUN)
    if pixels.size:
        runs["value"] = pixels[ends - 1]
        runs["length"] = np.diff(ends, prepend=0)
    message = Image(header=header, height=height, width=width, encoding="mono8", step=width)
    message.data = _byte_array(runs.view(np.uint8))
    return message


def _checked_layout(msg: Any) -> PixelLayout:
    """Check everything that the header says against the encoding and the data's length."""
    encoding, width, height, step = msg.encoding, msg.width, msg.height, msg.step
    layout = layout_of(encoding, width, height)
    if step < layout.row_bytes(width):
        raise PictureError(
            "bad_step",
            f"the step is {step} bytes; accepted: at least {layout.row_bytes(width)} for "
            f"{encoding} with a width of {width}",
        )
    _refuse_unreadable(msg.data)
    length, needed = memoryview(msg.data).nbytes, layout.rows(height) * step
    if length < needed:
        raise PictureError(
            "short_data",
            f"the data has {length} bytes; accepted: at least {needed} for {layout.rows(height)} "
            f"rows of {step} bytes",
        )
    return layout


def _refuse_unreadable(data: object) -> None:
    why = why_unreadable(data)
    if why:
        raise PictureError("unreadable_data", why)


def _refuse_other_transports(form: str, data: bytes) -> None:
    """Refuse well-known data that is no JPEG or PNG by name, to help more than "unknown format"."""
    video = next((name for start, name in _VIDEOS.items() if data.startswith(start)), None)
    what = f"a piece of a video ({video})" if video else "a depth picture"
    if video or "compresseddepth" in form.lower():
        raise PictureError(
            "unknown_format",
            f"the format is {form[:60]!r}, {what}; accepted: a JPEG or PNG of a camera; subscribe "
            "to its image/compressed",
        )


def _mosaic(form: str) -> str | None:
    """Return the Bayer encoding that `CompressedImage.format` names; None if it is no mosaic.

    A mosaic with "bayer_rggb8; jpeg compressed mono8" was made grey before it was compressed.
    """
    encoding, _, stored = form.lower().partition(";")
    encoding = encoding.strip()
    return encoding if encoding.startswith("bayer_") and "mono" not in stored else None


def _pixels(msg: Any, layout: PixelLayout) -> NDArray[Any]:
    """View `msg.data` as (rows, W) or (rows, W, channels), in the message's byte order."""
    scalar = np.dtype(layout.scalar).newbyteorder(">" if msg.is_bigendian else "<")
    rows, pixel_bytes = layout.rows(msg.height), layout.row_bytes(1)
    shape, strides = [rows, msg.width], [msg.step, pixel_bytes]
    if layout.channels > 1:
        shape, strides = [*shape, layout.channels], [*strides, scalar.itemsize]
    pixels: NDArray[Any] = np.ndarray(shape, scalar, msg.data, 0, strides)
    return pixels


def _from_float(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Round 255 v, where v is clipped to [0, 1]."""
    finite = np.isfinite(pixels)
    if not finite.all():
        count = pixels.size - int(np.count_nonzero(finite))
        raise PictureError(
            "non_finite",
            f"{count} of {pixels.size} float pixels are NaN or infinite; accepted: 0.0 to 1.0",
        )
    mean = cv2.mean(pixels)[0]
    if not 0.0 <= mean <= 1.0:
        raise PictureError(
            "out_of_range",
            f"the float pixels have a mean of {mean:g}; accepted: 0.0 (black) to 1.0 (white); "
            "divide by the camera's full scale",
        )
    return np.asarray(cv2.convertScaleAbs(np.clip(pixels, 0.0, 1.0), alpha=255.0), np.uint8)


def image_size(picture: NDArray[np.uint8], encoding: str) -> tuple[int, int, int]:
    """Return height, width and step of the sensor_msgs/Image of a picture.

    It raises `ValueError` unless the picture is (H, W, 3) uint8 for "rgb8", or (H, W) for "mono8".
    """
    if encoding not in _CHANNELS_OUT:
        raise ValueError(f"the encoding is {encoding!r}; accepted: {', '.join(_CHANNELS_OUT)}")
    tail, accepted = ((3,), "(H, W, 3)") if encoding == "rgb8" else ((), "(H, W)")
    fits = picture.ndim >= 2 and picture.shape[2:] == tail and picture.size > 0
    if picture.dtype != np.uint8 or not fits:
        raise ValueError(
            f"{encoding} got {picture.dtype} of shape {picture.shape}; accepted: uint8, {accepted}"
        )
    height, width = picture.shape[:2]
    return height, width, width * _CHANNELS_OUT[encoding]


def _byte_array(values: NDArray[np.uint8]) -> array.array[int]:
    """Copy into an array, which a message's setter accepts without checking every byte."""
    data = array.array("B")
    data.frombytes(np.ascontiguousarray(values).data.cast("B"))
    return data
