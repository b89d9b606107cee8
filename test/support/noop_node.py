"""`fuse_node` with an engine that computes nothing, run as a script.

The first pixel of a frame steers the engine, so that faults come through real messages:
`FAIL`, `REFUSE`, `SLOW` and `HANG` below. NOOP_LOAD_S and NOOP_DELAY_S slow loading and every frame
down; loading ends at once when the file NOOP_LOADED is there.
"""

import os
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros import managed_node
from magicfuse_ros.ros.node.fuse_node import main
from magicfuse_ros.runtime.contract import EngineError, FuseResult

FAIL = (255, 0, 1)
REFUSE = (255, 0, 2)
SLOW = (255, 0, 3)
SLOW_S = 0.6
HANG = (255, 0, 4)
NO_LOAD_STEPS = 666
"""An engine that is to take so many steps cannot be loaded."""
PARTS_STEPS = 901
"""An engine that takes so many steps runs a part in PyTorch."""


class NoopEngine:
    """magimg is the frame; the mask is class 1 left and 2 right, with confidence 255 and 100.

    The last row of the confidence begins with the number of extras and ends with the steps; with
    `temporal`, the number of the stream's frames is second.
    """

    def __init__(self, settings, progress):
        if settings.model == "missing":
            raise EngineError("model 'missing' is not there; give the path of a weights folder")
        self.settings = settings
        self.labels = LabelSet.load(settings.labels or "drive")
        self.trained = True
        self.preparing = False
        self.under_way = ""
        self.expected_frame_s = 0.0
        self.backend_name = "spare" if settings.backend == "spare" else "noop"
        self.steps = settings.steps
        self.temporal, self.frames_of_stream = settings.temporal, 0
        self.delay_s = float(os.environ.get("NOOP_DELAY_S", "0"))
        for second in range(int(os.environ.get("NOOP_LOAD_S", "0"))):
            if Path(os.environ.get("NOOP_LOADED", "never")).exists():
                break
            progress(f"loading for {second} s")
            time.sleep(1.0)
        if settings.steps == NO_LOAD_STEPS:
            raise EngineError("told not to load")

    @property
    def steps_warning(self):
        return "" if self.steps <= 500 else f"not trained for {self.steps} steps"

    @property
    def parts_warning(self):
        return "fusion runs in PyTorch" if self.steps == PARTS_STEPS else ""

    def warm_up(self, progress):
        progress("warm")

    def fuse(self, frame, extras=frozenset(), *, wait=True):  # noqa: ARG002
        command = tuple(int(value) for value in frame[0, 0])
        if command == FAIL:
            raise RuntimeError("told to fail\nin two lines")
        if command == REFUSE:
            raise ValueError("told to refuse")
        if command == HANG:
            threading.Event().wait()
        time.sleep(SLOW_S if command == SLOW else self.delay_s)
        height, width = frame.shape[:2]
        mask = np.full((height, width), 1, np.uint8)
        mask[:, width // 2 :] = 2
        confidence = np.where(mask == 1, np.uint8(255), np.uint8(100))
        self.frames_of_stream += 1
        confidence[-1, 0], confidence[-1, -1] = len(extras), self.steps
        if self.temporal:
            confidence[-1, 1 % width] = min(self.frames_of_stream, 255)
        return FuseResult(
            magimg=frame,
            mask=mask,
            confidence=confidence,
            infrared=frame[:, :, 0] if "infrared" in extras else None,
            enhanced=frame if "enhanced" in extras else None,
            stage_ms={"fuse": 0.0},
        )

    def update(self, *, steps, tau, seed, temporal):  # noqa: ARG002
        self.steps, self.temporal = steps, temporal

    def forget(self):
        self.frames_of_stream = 0

    def fall_back(self, progress):  # noqa: ARG002
        if self.backend_name == "spare":
            return None
        self.backend_name = "spare"
        return self.backend_name

    def successor(self):
        return None if self.backend_name == "spare" else replace(self.settings, backend="spare")

    def close(self):
        pass


if __name__ == "__main__":
    managed_node.TICK_S = 0.2  # so that tests wait less
    sys.exit(main(engine_factory=NoopEngine))
