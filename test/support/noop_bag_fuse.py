"""`magicfuse bag fuse` with an engine that computes nothing, and that dies where a test wants it.

KILL_AT=POINT:N ends the process like a power cut (SIGKILL) when POINT is reached for the Nth time:
`fuse` a frame is in the engine, `write` a message goes into a segment, `keep` a segment is about to
be put in place, `account` it is there but not accounted for, `finish` the output is about to be put
in place, `cleanup` it is there, and the working folder too. TERM_AT does the same with SIGTERM.
SEGMENT_S is how long a segment takes. BACKEND names what the engine says it runs on.
From the first frame on no file may get longer than FILE_BYTES, as on a disk that is full: the
kernel refuses the rest.
"""

import os
import resource
import signal
import sys

from support.noop_node import NoopEngine

from magicfuse_ros import cli
from magicfuse_ros.bags import fuse_bag, fuse_engine, fuse_segments, writer

SEED_ROW = 3


class Engine(NoopEngine):
    """magimg is the frame, turned; the settings are in it, so that a mix of two is seen."""

    def __init__(self, settings, progress):
        super().__init__(settings, progress)
        self.backend_name = os.environ.get("BACKEND", "noop")

    def fuse(self, frame, extras=frozenset()):
        reached("fuse")
        if "FILE_BYTES" in os.environ:
            limit = int(os.environ["FILE_BYTES"]), resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        result = super().fuse(frame, extras)
        magimg = frame[::-1].copy()
        magimg[SEED_ROW] = (self.settings.seed or 0) % 256
        return bag_fuse_frame_result(result, magimg)


def bag_fuse_frame_result(result, magimg):
    return type(result)(**(vars(result) | {"magimg": magimg}))


counts = {}


def reached(point):
    counts[point] = counts.get(point, 0) + 1
    for variable, number in (("KILL_AT", signal.SIGKILL), ("TERM_AT", signal.SIGTERM)):
        if os.environ.get(variable) == f"{point}:{counts[point]}":
            os.kill(os.getpid(), number)


def before(owner, name, point):
    """Let `owner.name` reach `point` before it does its work."""
    original = getattr(owner, name)

    def wrapped(*args, **kwargs):
        reached(point)
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def arm():
    """Do in this process what the variables say."""
    counts.clear()
    before(writer.BagWriter, "_write", "write")
    before(fuse_segments.Workspace, "keep", "keep")
    before(fuse_segments, "asdict", "account")
    before(fuse_segments, "_metadata", "finish")
    before(fuse_segments, "clear", "cleanup")
    fuse_bag.SEGMENT_S = float(os.environ.get("SEGMENT_S", fuse_bag.SEGMENT_S))
    make = fuse_engine.LazyEngine.__init__
    fuse_engine.LazyEngine.__init__ = lambda self, settings, stop, say: make(
        self, settings, stop, say, Engine
    )


if __name__ == "__main__":
    arm()
    sys.exit(cli.main(["bag", "fuse", *sys.argv[1:]]))
