"""What a start costs: no library that a model does not need, and nothing made twice."""

from __future__ import annotations

import json
import subprocess
import sys

from support.small_models import save_few_step

from magicfuse_ros.model.checkpoint import PARTS

PROGRAM = """
import json, sys
import numpy as np
from magicfuse_ros.runtime.engine import EngineSettings, load_engine

built, pictures = [], []
frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
for backend in ("eager", "openvino", "openvino"):
    engine = load_engine(EngineSettings(model=sys.argv[1], backend=backend), lambda text: None)
    engine.warm_up(lambda text: None)
    pictures.append(engine.fuse(frame).magimg)
    built.append(sorted(engine.built))
    engine.close()
heavy = [name for name in sys.argv[2:] if name in sys.modules]
same = bool((pictures[1] == pictures[2]).all())
print(json.dumps({"heavy": heavy, "built": built, "same": same}))
"""
HEAVY = ("diffusers", "transformers", "scipy", "torch._dynamo", "torch._inductor", "sympy")


def test_a_start_imports_no_more_than_it_needs_and_builds_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    command = [sys.executable, "-c", PROGRAM, str(save_few_step(tmp_path)), *HEAVY]
    said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert said["heavy"] == []
    assert said["built"] == [[], sorted(PARTS), []]
    assert said["same"]
