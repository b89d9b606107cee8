"""A start of the engine in a new process: what it imports, builds, unpickles and reaches for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.small_models import save_few_step

from magicfuse_ros.model.checkpoint import PARTS

ROOT = Path(__file__).parents[1]
HEAVY = ("diffusers", "transformers", "scipy", "torch._dynamo", "torch._inductor", "sympy")

# Python tells these events to whoever asks; see the table of audit events in its documentation.
# The last lines show that the events are seen.
PROGRAM = """
import json, pickle, socket, sys
from pathlib import PurePosixPath

WATCHED = {
    "pickle.find_class", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname",
    "socket.sendmsg", "socket.sendto", "urllib.Request",
}
seen = []
sys.addaudithook(lambda event, args: seen.append(event) if event in WATCHED else None)

import numpy as np
from magicfuse_ros.runtime.engine import EXTRAS, EngineSettings, load_engine

names, built, events, pictures = [], [], [], []
frame = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
for backend in ("eager", "openvino", "openvino"):
    settings = EngineSettings(model=sys.argv[1], backend=backend, device="cpu")
    engine = load_engine(settings, lambda text: None)
    engine.warm_up(lambda text: None)
    pictures.append(engine.fuse(frame, frozenset(EXTRAS)).magimg)
    names.append(engine.backend_name)
    built.append(sorted(engine.built))
    events.append(list(seen))
    engine.close()
heavy = [name for name in sys.argv[2:] if name in sys.modules]
same = bool((pictures[1] == pictures[2]).all())

seen.clear()
pickle.loads(pickle.dumps(PurePosixPath("a")))
socket.getaddrinfo("127.0.0.1", 9)
print(json.dumps({
    "names": names, "built": built, "events": events, "heavy": heavy, "same": same,
    "heard": sorted(set(seen)),
}))
"""


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What the program tells: an audit hook and modules stay in a process for good."""
    folder = tmp_path_factory.mktemp("start")
    environment = {"XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, save_few_step(folder), *HEAVY],
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    ).stdout
    return json.loads(output)


def test_it_imports_no_more_than_it_needs(told):
    assert told["heavy"] == []


def test_each_backend_is_built_once_and_then_loaded(told):
    assert told["names"] == ["eager on cpu", "openvino on cpu", "openvino on cpu"]
    assert told["built"] == [[], sorted(PARTS), []]
    assert told["same"]


def test_it_unpickles_nothing_and_reaches_for_no_network(told):
    assert told["events"] == [[], [], []]
    assert told["heard"] == ["pickle.find_class", "socket.getaddrinfo"]
