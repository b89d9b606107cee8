"""What every source gives: frames, each with its name and its time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class SourceError(ValueError):
    """Nothing can be read; the text names the file and what is accepted."""


class Frame(NamedTuple):
    """One frame of a source, or the reason why it cannot be read.

    Attributes
    ----------
    name
        What its results are called: `a` for the file a.jpg, `000012` for a frame of a video.
    time_ns
        When it is shown, in nanoseconds after the first frame.
    rgb
        (H, W, 3) uint8; None where there is no picture.
    fault
        Why there is none; empty where there is one.
    """

    name: str
    time_ns: int
    rgb: NDArray[np.uint8] | None
    fault: str = ""


Frames = Callable[..., Iterator[Frame]]
"""Reads frames one by one: in order, from the first one that is shown at `start_ns` or later.

`start_ns` is its one argument; without it, reading begins at the first frame.
"""
