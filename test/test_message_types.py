"""What reaches the package from outside starts nothing: no unpickling, no network, no import."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from std_msgs.msg import String
from support.small_models import save_few_step

from magicfuse_ros.bags.player import find_message_class

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

model, *backends = sys.argv[1:]
for backend in backends:
    for _ in ("compiled", "from the cache"):
        engine = load_engine(EngineSettings(model=model, backend=backend), lambda text: None)
        engine.fuse(np.full((48, 64, 3), 99, np.uint8), frozenset(EXTRAS))
        print(json.dumps([engine.backend_name, len(engine.built), seen]))
        engine.close()

seen.clear()
pickle.loads(pickle.dumps(PurePosixPath("a")))
socket.getaddrinfo("127.0.0.1", 9)
print(json.dumps(sorted(set(seen))))
"""


def test_an_engine_unpickles_nothing_and_reaches_for_no_network(tmp_path):
    """In a process of its own: an audit hook stays for good."""
    folder = save_few_step(tmp_path)
    environment = {"XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder, *BACKENDS],
        env=os.environ | environment | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
        text=True,
        timeout=600,
    ).stdout
    *runs, heard = [json.loads(line) for line in output.splitlines()]

    assert [name for name, _, _ in runs] == [f"{each} on cpu" for each in BACKENDS for _ in "12"]
    assert all(seen == [] for _, _, seen in runs)
    assert heard == ["pickle.find_class", "socket.getaddrinfo"]
    if "openvino" in BACKENDS:
        compiled, from_cache = (built for name, built, _ in runs if name == "openvino on cpu")
        assert (compiled > 0, from_cache) == (True, 0)


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
