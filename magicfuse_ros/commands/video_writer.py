"""Writes videos of any size, with each frame's own time, which get their names when whole."""

from __future__ import annotations

import math
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.video.stream import VideoStream

FORMATS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
"""Suffixes of videos to write → libav's name of the container."""

# Near lossless for the eye; a frame of VGA takes some milliseconds.
_H264 = {"crf": "18", "preset": "veryfast"}
# An MP4 file can be played up to its last key frame while it is being written, or after a crash.
_MP4 = {"movflags": "hybrid_fragmented+frag_keyframe", "flush_packets": "1"}
_BT601 = 6  # ITU-T H.273: the matrix that libav converts RGB with unless told otherwise


class VideoError(OSError):
    """A video cannot be written; the message names the file and says why."""


class VideoWriter:
    """A video: H.264 with the times of its frames, or in .avi Motion JPEG at a constant rate.

    It is written as `NAME.partial.SUFFIX`, and `close` renames it if it is whole. If an error or a
    crash ends it early, it keeps that name. The suffix is one of `FORMATS`, `rate` the average
    number of frames per second, and `size` (width, height) of every frame, which may be odd.

    Raises VideoError if PyAV is not installed, or the file cannot be made.
    """

    def __init__(self, path: Path, rate: float, size: tuple[int, int]) -> None:
        self._path, self._size = path, size
        self.partial = path.with_name(f"{path.stem}.partial{path.suffix}")
        container = FORMATS[path.suffix.lower()]
        self._rate = Fraction(rate).limit_denominator(1001)
        self._constant = container == "avi"
        self._time_base = 1 / self._rate if self._constant else Fraction(1, 90_000)
        self._last_pts = -1  # of the frame before; a gap repeats that frame
        try:
            import av
        except ImportError:
            raise VideoError("writing videos needs PyAV; run: pip install av") from None
        self._errors = (av.FFmpegError, OSError)
        try:
            options = _MP4 if container in ("mp4", "mov") else {}
            self._file: OutputContainer | None = av.open(
                f"file:{self.partial}", "w", format=container, options=options
            )
            self._stream = self._add_stream(self._file)
        except self._errors as error:
            raise self._failed(error) from error

    def write(self, picture: NDArray[np.uint8], time_ns: int) -> None:
        """Append an (H, W, 3) RGB or (H, W) grey picture, shown from `time_ns` on.

        Raises VideoError if the picture has another size, the times do not fit a constant rate, or
        the disk fails. Raises ValueError if the video is closed.
        """
        from av import VideoFrame

        if self._file is None:
            raise ValueError(f"{self._path} is closed")
        if (picture.shape[1], picture.shape[0]) != self._size:
            raise VideoError(
                f"{self._path} has frames of {self._size[0]}x{self._size[1]} and cannot take one "
                f"of {picture.shape[1]}x{picture.shape[0]}; give a folder"
            )
        pts = round(time_ns / 10**9 / self._time_base)
        beside_s = abs(time_ns / 10**9 - pts * self._time_base)
        if self._constant and (pts <= self._last_pts or beside_s > self._time_base / 4):
            raise VideoError(
                f"{self._path} cannot be written: frames of the input are not evenly spaced, and "
                ".avi has one rate for all; give a name that ends in .mp4 or .mkv"
            )
        self._last_pts = pts
        kind = "gray" if picture.ndim == 2 else "rgb24"
        frame = VideoFrame.from_ndarray(np.ascontiguousarray(picture), format=kind)
        frame.pts, frame.time_base = pts, self._time_base
        try:
            for packet in self._stream.encode(frame):
                self._file.mux(packet)
        except self._errors as error:
            raise self._failed(error) from error

    def close(self, *, whole: bool = True) -> None:
        """Finish the file, so that it can be played, and rename it to its name if it is `whole`.

        Raises VideoError if the end of the file cannot be written.
        """
        if self._file is None:
            return
        try:
            for packet in self._stream.encode(None):
                self._file.mux(packet)
            self._file.close()
            if whole:
                self.partial.replace(self._path)
        except self._errors as error:
            raise self._failed(error) from error
        self._file = None

    def _add_stream(self, container: OutputContainer) -> VideoStream:
        codec = "mjpeg" if self._constant else "libx264"
        # A crash loses what came after the last key frame, about 2 s.
        h264 = _H264 | {"g": str(math.ceil(2 * self._rate))}
        options = {} if self._constant else h264
        stream = cast("VideoStream", container.add_stream(codec, self._rate, options))
        stream.width, stream.height = self._size
        # Halved colour resolution needs even sides; many players can show nothing else.
        even = not any(side % 2 for side in self._size)
        halved, full = ("yuvj420p", "yuvj444p") if self._constant else ("yuv420p", "yuv444p")
        stream.pix_fmt = halved if even else full
        stream.codec_context.time_base = self._time_base
        stream.codec_context.colorspace = _BT601
        return stream

    def _failed(self, error: Exception) -> VideoError:
        container, self._file = self._file, None
        if container is not None:
            with suppress(*self._errors):
                container.close()
        why = getattr(error, "strerror", None) or str(error)
        return VideoError(f"{self._path} cannot be written: {why}")
