"""Compiled networks by input size: made when a frame needs them, or in the background."""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.contract import Progress
from magicfuse_ros.runtime.letterbox import Letterbox
from magicfuse_ros.runtime.memory import give_back_freed_memory
from magicfuse_ros.runtime.networks import CompiledNetworks

MAX_SIZES = 4
"""Most input sizes that are kept compiled."""
MAKES_BEFORE_KEEPING = 3
"""When the networks of one size had to be made this many times, one more size is kept from then on.

Networks for one size take some 200 MB, so those of an earlier size are released until it turns out
to come back again and again. Making them again from the artifact cache takes a second or so.
"""

Size = tuple[int, int]
"""(height, width) in pixels."""

Make = Callable[[Size, Progress], CompiledNetworks]
"""Makes the networks for one size."""


class NetworksBySize:
    """Holds the networks that are ready, and those that are being made. One thread uses it.

    A background thread makes networks for one size at a time. It keeps its normal priority, because
    OpenVINO's threads would inherit a lower one and keep it when they run frames.

    Parameters
    ----------
    progress
        Called with a line of text by the background thread as its work proceeds; if it raises, the
        work ends.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._ready: OrderedDict[Size, CompiledNetworks] = OrderedDict()
        self._kept = 1  # how many sizes
        self._made: Counter[Size] = Counter()
        self._refused: set[Size] = set()
        self._background = ThreadPoolExecutor(1, "prepare_networks")
        self._under_way: _UnderWay | None = None

    @property
    def last(self) -> CompiledNetworks | None:
        """The networks that were used last; None if there are none yet."""
        return next(reversed(self._ready.values()), None)

    @property
    def under_way(self) -> str:
        """The size being made in the background, as `320x136`, or empty; any thread may ask."""
        under_way = self._under_way
        return "" if under_way is None else f"{under_way.size[1]}x{under_way.size[0]}"

    def get(self, size: Size, make: Make, progress: Progress) -> CompiledNetworks:
        """Return the networks for a size, and make them if necessary; raises what `make` raises.

        It first waits for the background thread, so that no size is made twice and no two sizes are
        made at once.
        """
        self._collect(wait=True)
        if size not in self._ready:
            self._count(size)
            self._drop_all_but(self._kept - 1)
            self._ready[size] = make(size, progress)
        self._ready.move_to_end(size)
        return self._ready[size]

    def get_meanwhile(self, letterbox: Letterbox, make: Make) -> tuple[CompiledNetworks, Letterbox]:
        """Return networks that are ready, and where a frame lies in their input.

        At least one size has to be ready. If the frame's own size is not, the background thread
        begins to make it, unless it is busy or has failed at this size before, and the networks
        in which the frame stays largest are returned.
        """
        size = letterbox.padded
        if self._collect(wait=False):
            self._drop_all_but(self._kept)
        if size in self._ready:
            self._ready.move_to_end(size)
            return self._ready[size], letterbox
        if self._under_way is None and size not in self._refused:
            self._count(size)
            self._under_way = _UnderWay(size, make, self._progress, self._background)
        best = max(self._ready, key=lambda each: _quality(letterbox.inside(each)))
        self._ready.move_to_end(best)
        return self._ready[best], letterbox.inside(best)

    def clear(self) -> None:
        """Release all networks; those that are being made are given up at their next part."""
        if self._under_way is not None:
            self._under_way.abandon()
            self._under_way = None
        while self._ready:
            self._ready.popitem()[1].close()
        self._refused.clear()

    def close(self) -> None:
        """Clear, and wait for the thread: a compiler must not be at work when Python ends."""
        self.clear()
        self._background.shutdown(wait=True)

    def _collect(self, *, wait: bool) -> bool:
        """Take over what the background thread has made; True if there was something."""
        under_way = self._under_way
        if under_way is None or not (wait or under_way.result.done()):
            return False
        self._under_way = None
        networks = under_way.result.result()
        if networks is None:
            self._refused.add(under_way.size)
            return False
        self._ready[under_way.size] = networks
        return True

    def _count(self, size: Size) -> None:
        """Count that a size is made; keep one more size if it is made again and again."""
        self._made[size] += 1
        if self._made[size] % MAKES_BEFORE_KEEPING == 0:
            self._kept = min(self._kept + 1, MAX_SIZES)

    def _drop_all_but(self, count: int) -> None:
        """Release the networks unused for longest, until there are no more than `count`."""
        dropped = False
        while len(self._ready) > count:
            self._ready.popitem(last=False)[1].close()
            dropped = True
        if dropped:
            give_back_freed_memory()


class _UnderWay:
    """Networks for one size that another thread is making; the result is None if that fails."""

    def __init__(
        self, size: Size, make: Make, progress: Progress, executor: ThreadPoolExecutor
    ) -> None:
        self.size, self._make, self._progress = size, make, progress
        self._abandoned = threading.Event()
        self.result = executor.submit(self._run)

    def abandon(self) -> None:
        self._abandoned.set()
        self.result.cancel()

    def _run(self) -> CompiledNetworks | None:
        what = f"networks for {self.size[1]}x{self.size[0]}"
        try:
            self._tell(f"preparing {what}; until they are ready frames go through others")
            networks = self._make(self.size, self._tell)
            self._tell(f"{what} are ready")
        except Exception as error:  # noqa: BLE001 - a compiler may raise anything; frames go on
            if not self._abandoned.is_set():
                reason = one_line(error)
                self._progress(f"{what} cannot be made, frames go on through others: {reason}")
            return None
        return networks

    def _tell(self, text: str) -> None:
        if self._abandoned.is_set():
            raise InterruptedError
        self._progress(text)


def _quality(letterbox: Letterbox) -> tuple[int, int]:
    """Rank how a frame lies in an input: more pixels of the frame first, then less padding."""
    return math.prod(letterbox.content), -math.prod(letterbox.padded)
