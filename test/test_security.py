"""What reaches the package from outside starts nothing: no unpickling, no network, no import."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from std_msgs.msg import String
from support.small_models import SMALL_FEW_STEP

from magicfuse_ros.bags.player import find_message_class
from magicfuse_ros.model.magicfuse import MagicFuse

ROOT = Path(__file__).parents[1]
BACKENDS = ["eager", *(["openvino"] if importlib.util.find_spec("openvino") else [])]

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

model, backend = sys.argv[1:]
engine = load_engine(EngineSettings(model=model, backend=backend), lambda text: None)
engine.fuse(np.full((48, 64, 3), 99, np.uint8), frozenset(EXTRAS))
name = engine.backend_name
engine.close()
print(json.dumps([name, seen]))

seen.clear()
pickle.loads(pickle.dumps(PurePosixPath("a")))
socket.getaddrinfo("127.0.0.1", 9)
print(json.dumps(sorted(set(seen))))
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_unpickles_nothing_and_reaches_for_no_network(tmp_path, backend):
    torch.manual_seed(0)
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(tmp_path / "model")
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    for _ in ("compiled", "from the cache"):
        output = subprocess.run(
            [sys.executable, "-c", PROGRAM, tmp_path / "model", backend],
            env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
            check=True,
            capture_output=True,
            text=True,
            timeout=600,
        ).stdout
        lines = [json.loads(line) for line in output.splitlines()]

        assert lines == [[f"{backend} on cpu", []], ["pickle.find_class", "socket.getaddrinfo"]]


def test_a_message_type_is_found():
    assert find_message_class("std_msgs/msg/String") is String


@pytest.mark.parametrize(
    "name",
    [
        "harmful/msg/String",
        "harmful/x/String",
        "harmful.msg/msg/String",
        "../harmful/msg/String",
        "harmful",
        "",
        "__main__/msg/String",
        "std_msgs/msg/__name__",
        "std_msgs/msg/Unheard",
        "std_msgs/srv/String",
        "std_msgs/msg/String/more",
        "not_installed/msg/String",
    ],
)
def test_the_type_that_a_bag_or_a_publisher_names_imports_nothing_else(tmp_path, monkeypatch, name):
    """Importing a module runs it, and every module that Python finds could be named."""
    package = tmp_path / "harmful"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('it was imported')\n")
    (package / "x.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    assert find_message_class(name) is None
    assert "harmful" not in sys.modules
