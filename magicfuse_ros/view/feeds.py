"""Where the page's frames come from: a file that plays like a camera, or a live camera."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from magicfuse_ros.messages import one_line
from magicfuse_ros.ros.node.mailbox import Mailbox
from magicfuse_ros.runtime.contract import UInt8
from magicfuse_ros.sources.frame import Frame, SourceError
from magicfuse_ros.sources.source import Source

T = TypeVar("T")

SILENT_S = 2.0
RETRY_S = 1.0


class Feed(Protocol):
    """Gives frames to one thread."""

    name: str  # on the page
    drops: int  # frames that a newer one replaced before they were taken

    @property
    def said(self) -> tuple[str, str]:
        """A level (`ok`, `warn` or `stopped`) and a sentence; empty if all is well."""
        ...

    def take(self) -> tuple[UInt8, float] | None:
        """Wait for a frame: RGB and when it came (monotonic); None if something else happened."""
        ...

    def rest(self) -> None:
        """Nobody looks: what is late afterwards is not counted as dropped."""
        ...

    def close(self) -> None:
        """Let `take` return None at once."""
        ...


class Playback:
    """A file played in its own time. Frames that come too late are left out, as a camera's are."""

    def __init__(self, name: str, clip: Source | BagClip) -> None:
        self.name, self.drops, self.paused = name, 0, False
        self.duration_s = clip.duration_s
        self._clip, self._frames = clip, clip.frames()
        self._changed = threading.Condition()
        self._order: Callable[[], Frame | None] | None = None
        self._closed = self._ended = False
        self._frame: Frame | None = None
        self._start_s: float | None = None
        self._fault = ""

    @property
    def position_s(self) -> float:
        """The time of the frame that was taken last, in seconds."""
        return self._frame.time_ns / 1e9 if self._frame is not None else 0.0

    @property
    def said(self) -> tuple[str, str]:
        """See `Feed`."""
        end = f"the end of {self.name}" if self._ended and self.duration_s else ""
        text = "; ".join(filter(None, [end, self._fault]))
        return ("warn" if self._fault else "stopped" if end else "ok"), text

    def pause(self, *, paused: bool) -> None:
        """Pause, or go on; at the end, begin again."""
        with self._changed:
            self.paused, self._start_s = paused, None
            if self._ended and not paused:
                self._order = partial(self._jump, 0.0)
            self._changed.notify()

    def step(self) -> None:
        """Pause, and show the next frame."""
        self._give(self._next)

    def seek(self, seconds: float) -> None:
        """Show the first frame at this time or later, and go on from there."""
        self._give(partial(self._jump, seconds), paused=self.paused and not self._ended)

    def again(self) -> None:
        """Take the present frame once more, if no other comes by itself."""
        if self.paused and self._frame is not None:
            self._give(lambda: self._frame)

    def take(self) -> tuple[UInt8, float] | None:
        """See `Feed`."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._order or not self.paused)
            order, self._order = self._order, None
        if self._closed:
            return None
        frame = order() if order is not None else self._due()
        return (frame.rgb, time.monotonic()) if frame and frame.rgb is not None else None

    def rest(self) -> None:
        """See `Feed`."""
        self.drops, self._start_s = 0, None

    def close(self) -> None:
        """See `Feed`."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def _give(self, order: Callable[[], Frame | None], *, paused: bool = True) -> None:
        with self._changed:
            self._order, self.paused = order, paused
            self._changed.notify()

    def _jump(self, seconds: float) -> Frame | None:
        self._frames = self._clip.frames(round(seconds * 1e9))
        self._ended, self._start_s = False, None
        return self._next()

    def _next(self) -> Frame | None:
        try:
            for frame in self._frames:
                if frame.rgb is not None:
                    self._frame = frame
                    return frame
                self._fault = frame.fault
        except (OSError, RuntimeError, ValueError) as error:  # of a file that is damaged further on
            self._fault = one_line(error)
        with self._changed:
            self.paused = self._ended = True
        return None

    def _due(self) -> Frame | None:
        """Return the next frame when its time has come."""
        before_s = self.position_s
        while (frame := self._next()) is not None:
            now, time_s = time.monotonic(), frame.time_ns / 1e9
            if self._start_s is None:
                self._start_s = now - time_s
            wait_s, length_s = self._start_s + time_s - now, time_s - before_s
            if wait_s >= -length_s:
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or self._order, max(wait_s, 0.0))
                return frame
            self.drops, before_s = self.drops + 1, time_s
        return None


class Live(Generic[T]):
    """The newest frame of a camera. `put` is called by the camera's thread.

    `read` turns what was put into (H, W, 3) RGB, or raises ValueError. The attribute `trouble` says
    why no frames come, where that is known.
    """

    def __init__(self, name: str, read: Callable[[T], UInt8]) -> None:
        self.name, self.drops, self.trouble = name, 0, ""
        self._read, self._mailbox = read, Mailbox[tuple[T, float]]()
        self._last_s, self._fault = time.monotonic(), ""
        self.closed = threading.Event()

    @property
    def said(self) -> tuple[str, str]:
        """See `Feed`."""
        silent_s = time.monotonic() - self._last_s
        silence = f"no frames from {self.name} for {silent_s:.0f} s" if silent_s > SILENT_S else ""
        if silence or self.trouble:
            return "stopped", "; ".join(filter(None, [silence, self.trouble]))
        return ("warn", self._fault) if self._fault else ("ok", "")

    def put(self, item: T) -> None:
        """Keep the newest frame."""
        self._last_s = time.monotonic()
        self.drops += self._mailbox.put((item, self._last_s)) is not None

    def take(self) -> tuple[UInt8, float] | None:
        """See `Feed`."""
        taken = self._mailbox.take()
        if taken is None:
            return None
        try:
            rgb, self._fault = self._read(taken[0]), ""
        except ValueError as error:
            self._fault = one_line(error)
            return None
        return rgb, taken[1]

    def rest(self) -> None:
        """See `Feed`."""
        self.drops = 0

    def close(self) -> None:
        """See `Feed`."""
        self.closed.set()
        self._mailbox.close()


def live_camera(name: str, frames: Callable[[], Iterator[Frame]]) -> Live[UInt8]:
    """Read a camera in a thread, and open it again a second after it failed."""
    live: Live[UInt8] = Live(name, lambda rgb: rgb)

    def follow() -> None:
        while not live.closed.is_set():
            try:
                for frame in frames():
                    live.trouble = ""
                    if frame.rgb is not None:
                        live.put(frame.rgb)
                    if live.closed.is_set():
                        return
            except SourceError as error:
                live.trouble = str(error)
            live.closed.wait(RETRY_S)

    threading.Thread(target=follow, name="camera", daemon=True).start()
    return live


class BagClip:
    """An image topic of a bag; frames have the times at which they were received."""

    def __init__(self, path: Path, topic: str) -> None:
        from magicfuse_ros.bags.reader import BagReader

        self._path, self._topic = path, topic
        with BagReader(path) as bag:
            count = bag.topic(topic).count
            self._start_ns = next(each.received_ns for each in bag.messages([topic]))
            self.duration_s = (bag.end_ns - self._start_ns) / 1e9 if count > 1 else 0.0

    def frames(self, start_ns: int = 0) -> Iterator[Frame]:
        """Read the frames from a time on; one that cannot be read says why."""
        from magicfuse_ros.bags.image_topics import decode
        from magicfuse_ros.bags.reader import BagError, BagReader

        with BagReader(self._path) as bag:
            start_ns = self._start_ns + start_ns if start_ns else 0
            for message in bag.messages([self._topic], start_ns):
                time_ns = message.received_ns - self._start_ns
                rgb: Any = None
                fault = ""
                try:
                    rgb = decode(message.topic, message.data)
                except (BagError, ValueError) as error:
                    fault = f"{self._path.name}, {time_ns / 1e9:.2f} s: {one_line(error)}"
                yield Frame(f"{message.received_ns}", time_ns, rgb, fault)
