"""Matches clouds with frames by their stamps, and counts those that match nothing.

This is pure bookkeeping: stamps in, pairs out. A frame is complete when all its parts (mask,
confidence, maybe color) have come with one stamp. It is paired with the cloud nearest to it, at
most `slop` away: with a cloud of exactly its stamp at once, with another one as soon as a cloud at
or past its stamp has come, because only then is the nearest one known. Each frame and each cloud is
used once at most, and pairs come out in order of time, whatever the order in which the topics
delivered.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from magicfuse_ros.ros import ledger

NO_MASK = "no_mask"
"""A cloud was dropped: no unused frame is at most `slop` away, and later frames are further off."""
EXPIRED = "expired"
"""A cloud was dropped: `queue` newer clouds came before a frame for it."""
NO_CLOUD = "no_cloud"
"""A frame was dropped: no cloud is at most `slop` away."""
INCOMPLETE = "incomplete"
"""A frame was dropped: a part of it never came."""
OUT_OF_ORDER = "out_of_order"
"""A cloud or a frame was dropped: a newer one had been used already."""
TIME_JUMP = "time_jump"
"""A cloud or a frame was dropped: the stamps went back, as when a recording starts again."""

_JUMP_NS = 1_000_000_000
"""A stamp this much older than the newest one is that of a new recording, not of a late message."""


@dataclass(frozen=True)
class Pair:
    """A cloud and the frame to paint it with, and their stamps in nanoseconds.

    `cloud` is what `add_cloud` was given; `parts` are the frame's messages by name.
    """

    cloud_ns: int
    frame_ns: int
    cloud: Any
    parts: dict[str, Any]


class Matcher:
    """Holds the clouds and frames that wait for their counterpart.

    Parameters
    ----------
    parts
        Names of a frame's parts.
    drop_cloud, drop_frame
        Called with the reason, once for every cloud or frame that is given up.
    new_frame
        Called once for every frame, when its first part comes.

    Attributes
    ----------
    slop_ns
        Largest difference between the stamps of a cloud and its frame, in nanoseconds.
    queue
        Most clouds that wait, and most frames.
    """

    def __init__(
        self,
        parts: frozenset[str],
        *,
        slop_ns: int,
        queue: int,
        drop_cloud: Callable[[str], object],
        drop_frame: Callable[[str], object],
        new_frame: Callable[[], object],
    ) -> None:
        self.slop_ns, self.queue = slop_ns, queue
        self._parts = parts
        self._drop_cloud, self._drop_frame, self._new_frame = drop_cloud, drop_frame, new_frame
        self._clouds: dict[int, Any] = {}  # what waits, by its stamp
        self._frames: dict[int, dict[str, Any]] = {}
        self._newest_cloud = self._last_cloud = -1
        self._newest_frame = self._last_frame = -1
        self._counted = min(parts)

    @property
    def waiting(self) -> tuple[int, int]:
        """How many clouds and frames wait."""
        return len(self._clouds), len(self._frames)

    def add_cloud(self, stamp_ns: int, cloud: Any) -> None:
        """Add a cloud."""
        if stamp_ns < self._newest_cloud - _JUMP_NS:
            self._restart_clouds(TIME_JUMP)
        self._newest_cloud = max(self._newest_cloud, stamp_ns)
        if stamp_ns <= self._last_cloud:
            self._drop_cloud(OUT_OF_ORDER)
            return
        if stamp_ns in self._clouds:  # a driver that stamps two clouds alike
            self._drop_cloud(ledger.REPLACED)
        self._clouds[stamp_ns] = cloud
        while len(self._clouds) > self.queue:
            del self._clouds[min(self._clouds)]
            self._drop_cloud(EXPIRED)

    def add_part(self, stamp_ns: int, name: str, message: Any) -> None:
        """Add a part of a frame."""
        if stamp_ns < self._newest_frame - _JUMP_NS:
            clouds = self._newest_cloud
            if abs(clouds - self._newest_frame) < abs(clouds - stamp_ns):  # clouds are not back yet
                self._restart_clouds(TIME_JUMP)
            self._restart_frames(TIME_JUMP)
        self._newest_frame = max(self._newest_frame, stamp_ns)
        if stamp_ns not in self._frames:
            if stamp_ns <= self._last_frame:
                if name == self._counted:  # one of its parts stands for the frame
                    self._new_frame()
                    self._drop_frame(OUT_OF_ORDER)
                return
            self._new_frame()
            self._frames[stamp_ns] = {}
        self._frames[stamp_ns][name] = message
        while len(self._frames) > self.queue:
            oldest = min(self._frames)
            self._last_frame = max(self._last_frame, oldest)
            complete = self._frames.pop(oldest).keys() == self._parts
            self._drop_frame(NO_CLOUD if complete else INCOMPLETE)

    def pairs(self) -> Iterator[Pair]:
        """Yield every pair that is certain by now; drop what can no longer find a counterpart."""
        while (frame_ns := self._first_complete()) is not None:
            cloud_ns = self._nearest_cloud(frame_ns)
            if cloud_ns != frame_ns and self._newest_cloud < frame_ns:
                return  # the next cloud may be nearer
            _give_up(self._frames, self._drop_frame, INCOMPLETE, before=frame_ns)
            parts = self._frames.pop(frame_ns)
            self._last_frame = max(self._last_frame, frame_ns)
            used = frame_ns - self.slop_ns if cloud_ns is None else cloud_ns
            _give_up(self._clouds, self._drop_cloud, NO_MASK, before=used)
            if cloud_ns is None:
                self._drop_frame(NO_CLOUD)
                continue
            self._last_cloud = cloud_ns
            yield Pair(cloud_ns, frame_ns, self._clouds.pop(cloud_ns), parts)

    def clear(self, reason: str) -> None:
        """Drop everything that waits, for the given reason."""
        self._restart_clouds(reason)
        self._restart_frames(reason)

    def _first_complete(self) -> int | None:
        complete = (at for at, parts in self._frames.items() if parts.keys() == self._parts)
        return min(complete, default=None)

    def _nearest_cloud(self, frame_ns: int) -> int | None:
        if self._last_cloud >= frame_ns:
            return None  # a later cloud is used already; the order of arrival must not matter
        nearest = min(self._clouds, key=lambda at: (abs(at - frame_ns), at), default=None)
        if nearest is None or abs(nearest - frame_ns) > self.slop_ns:
            return None
        return nearest

    def _restart_clouds(self, reason: str) -> None:
        _give_up(self._clouds, self._drop_cloud, reason)
        self._newest_cloud = self._last_cloud = -1

    def _restart_frames(self, reason: str) -> None:
        _give_up(self._frames, self._drop_frame, reason)
        self._newest_frame = self._last_frame = -1


def _give_up(
    waiting: dict[int, Any], drop: Callable[[str], object], reason: str, *, before: float = math.inf
) -> None:
    """Drop what waits with a stamp below `before`."""
    for stamp in [each for each in waiting if each < before]:
        del waiting[stamp]
        drop(reason)
