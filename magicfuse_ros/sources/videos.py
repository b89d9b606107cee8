"""Reads videos frame by frame, each frame with the time at which the video shows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.sources.frame import Frame, SourceError

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".m4v", ".webm", ".mpg", ".mpeg", ".wmv", ".ts")
DEFAULT_RATE = 30.0
"""Frames a second of a video that does not say its own rate."""
NEEDS_AV = "reading and writing videos needs PyAV, which is not installed; run: pip install av"

# These leave out playlists, which name other files, and text, which libav draws as a video.
_FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,yuv4mpegpipe,"
    "h264,hevc,m4v"
)


class Video:
    """A video file.

    Its frames keep their own times, so that a variable frame rate stays variable, and are turned as
    the file's orientation says, as players do. A part that cannot be decoded gives a frame without
    a picture, and so does a file that ends before the end which it announces.

    Parameters
    ----------
    path
        The file; its content decides, not its name.

    Attributes
    ----------
    rate
        Average number of frames per second.
    count
        Number of frames that the file announces; 0 if it announces none.

    Raises
    ------
    SourceError
        The file holds no video, none of its frames can be decoded, or PyAV is not installed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._opened() as (container, stream):
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            self.rate = rate if 0.0 < rate <= 1000.0 else DEFAULT_RATE
            self._declared_s = _declared_seconds(container, stream)
            self.count: int = stream.frames or round((self._declared_s or 0.0) * self.rate)
        if all(frame.rgb is None for frame in self.frames()):
            raise SourceError(f"{path} cannot be read as a video: no frame of it can be decoded")

    def frames(self, start_ns: int = 0) -> Iterator[Frame]:
        """Read the frames from the first one on, or those shown at `start_ns` or later.

        The names of the latter are counted from the average rate.
        """
        with self._opened() as (container, stream):
            if start_ns > 0:
                yield from self._read_later(container, stream, start_ns)
            else:
                yield from self._read(container, stream)

    def _read_later(
        self, container: InputContainer, stream: VideoStream, start_ns: int
    ) -> Iterator[Frame]:
        """Decode from the key frame before `start_ns`; what is damaged there is left out."""
        from av import FFmpegError

        base = stream.time_base or Fraction(1, 90_000)
        first = stream.start_time or 0
        container.seek(first + int(Fraction(start_ns, 10**9) / base), stream=stream)
        with suppress(FFmpegError):
            for picture in container.decode(stream):
                shown = picture.pts - first if picture.pts is not None else -1
                time_ns = round(shown * base * 10**9)
                if time_ns >= start_ns and not picture.is_corrupt:
                    name = f"{round(time_ns * self.rate / 1e9):06d}"
                    yield Frame(name, time_ns, _upright(picture))

    def _read(self, container: InputContainer, stream: VideoStream) -> Iterator[Frame]:
        from av import FFmpegError

        clock = _Clock(round(1e9 / self.rate))
        parts, index, torn, ended = 0, 0, set(), ""
        try:
            for packet in container.demux(stream):
                parts += bool(packet.size)
                if packet.is_corrupt:
                    torn.add(packet.pts)
                try:
                    pictures = packet.decode()
                except FFmpegError as error:
                    fault = f"frame {index} of {self.path} is damaged ({error.strerror})"
                    yield Frame(f"{index:06d}", clock.next_ns, None, fault)
                    index += 1
                    continue
                for picture in pictures:
                    damaged = picture.is_corrupt or picture.pts in torn
                    fault = f"frame {index} of {self.path} is damaged" if damaged else ""
                    rgb = None if damaged else _upright(picture)
                    yield Frame(f"{index:06d}", clock.read(picture), rgb, fault)
                    index += 1
        except FFmpegError as error:  # of the file; those of single frames are told above
            ended = str(error)
        short = self._missing(stream, parts, clock)
        if short or ended:
            fault = f"{self.path} is cut short after {index} frames ({short or ended})"
            yield Frame(f"{index:06d}", clock.next_ns, None, fault)

    def _missing(self, stream: VideoStream, parts: int, clock: _Clock) -> str:
        """Say what the file announced but did not hold; empty if nothing is missing."""
        # MP4 also counts the frames that an edit list leaves out; libav's index does not.
        indexed = stream.frames and "mp4" in stream.container.format.name
        announced = len(stream.index_entries) if indexed else stream.frames
        if announced:
            return f"it announces {announced}" if parts < announced else ""
        # The last frame's length is often not given; it may be as long as the longest before it.
        if self._declared_s and self._declared_s * 1e9 > clock.last_ns + 1.5 * clock.longest_ns:
            return f"it announces {self._declared_s:.2f} s"
        return ""

    @contextmanager
    def _opened(self) -> Iterator[tuple[InputContainer, VideoStream]]:
        try:
            import av
        except ImportError:
            raise SourceError(NEEDS_AV) from None
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}
        try:
            # As a `file:` address, so that a name such as http:x stays a name.
            container = av.open(f"file:{self.path}", options=options)
        except av.FFmpegError as error:
            raise SourceError(
                f"{self.path} cannot be read as a video; it is damaged, cut short or of another "
                f"kind ({error.strerror})"
            ) from None
        with container:
            stream = container.streams.best("video")
            if stream is None:
                raise SourceError(f"{self.path} holds no video")
            yield container, cast("VideoStream", stream)


class _Clock:
    """Times of frames after the first one; they always increase."""

    def __init__(self, usual_ns: int) -> None:
        self._usual_ns = usual_ns
        self._first: Fraction | None = None
        self.last_ns, self.longest_ns = -usual_ns, usual_ns

    @property
    def next_ns(self) -> int:
        """The time for a frame that has none of its own, in ns."""
        return self.last_ns + self._usual_ns

    def read(self, picture: VideoFrame) -> int:
        time_ns = self.next_ns
        if picture.pts is not None and picture.time_base is not None:
            shown = picture.pts * picture.time_base
            if self._first is None:
                self._first = shown - Fraction(max(time_ns, 0), 10**9)
            own_ns = round((shown - self._first) * 10**9)
            time_ns = own_ns if own_ns > self.last_ns else time_ns
        self.longest_ns = max(self.longest_ns, time_ns - max(self.last_ns, 0))
        self.last_ns = time_ns
        return time_ns


def _declared_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return how long the file says that its video is; 0 when it does not say."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if len(container.streams) == 1 and container.duration:
        return container.duration / 1e6
    return 0.0


def _upright(picture: VideoFrame) -> NDArray[np.uint8]:
    rgb = picture.to_ndarray(format="rgb24")
    turns = round(picture.rotation / 90) % 4
    return np.asarray(np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb, np.uint8)
