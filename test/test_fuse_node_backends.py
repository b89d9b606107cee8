"""`fuse_node` with real engines: what runs the networks, and what the user is told of it."""

import signal
import sys

import numpy as np
import pytest
import torch
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from support.small_models import SMALL_FEW_STEP
from support.system import CameraProcess, FuseNodeProcess, Listener, random_domain, rgb

from magicfuse_ros.model.magicfuse import MagicFuse

NODE = """
import sys
from magicfuse_ros.ros.fuse_node import main
{}
if __name__ == "__main__":
    sys.exit(main())
"""
WITHOUT_PARITY = """
from magicfuse_ros.runtime.backends import parity
parity.TOLERANCE = -1.0
"""


@pytest.fixture(scope="module")
def domain():
    return random_domain()


@pytest.fixture(scope="module")
def listener(domain):
    with Listener(domain) as listener:
        yield listener


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("models") / "small"
    MagicFuse.from_config(SMALL_FEW_STEP).save_pretrained(path)
    return path


@pytest.fixture
def start(domain, listener, model, tmp_path):
    nodes = []

    def start(change=""):
        script = tmp_path / "node.py"
        script.write_text(NODE.format(change))
        listener.statuses.clear()
        node = FuseNodeProcess(
            domain,
            tmp_path / "log",
            parameters={"model": model},
            command=[sys.executable, str(script)],
            XDG_CACHE_HOME=str(tmp_path / "cache"),
        )
        nodes.append(node)
        node.wait_for_log("Active")
        return node

    yield start
    for node in nodes:
        node.stop()


def test_on_a_cpu_the_default_is_openvino_and_another_aspect_is_told(start, listener, domain):
    node = start()
    magimg = listener.hear("/fuse_node/magimg", Image)
    _, values = listener.next_status()
    assert (values["backend"], values["degraded"]) == ("openvino on cpu", "false")
    with CameraProcess(domain) as camera:
        for size in ((48, 64), (36, 64), (36, 64)):
            del magimg[:]
            camera.publish(rgb(np.full((*size, 3), 90, np.uint8), "now"))
            listener.wait(lambda: magimg, "nothing is fused")
            assert (magimg[-1].height, magimg[-1].width) == size
            if size == (36, 64):
                node.wait_for_log("networks for 64x40 are ready")
        # Stopped in the midst of another one, it ends as ever.
        camera.publish(rgb(np.full((20, 64, 3), 90, np.uint8), "now"))
        node.wait_for_log("preparing networks for 64x24")
        node.send(signal.SIGINT)
        assert node.exit_code() == 0, node.log
    listener.forget(magimg)


def test_a_backend_without_parity_is_refused_and_the_node_says_so(start, listener):
    node = start(WITHOUT_PARITY)
    status, values = listener.next_status()
    assert (values["backend"], values["degraded"]) == ("eager on cpu", "true")
    assert status.level == DiagnosticStatus.WARN
    assert "backend openvino on cpu failed, running on eager on cpu" in status.message
    assert "encoder in openvino differs from PyTorch by" in node.log
    (line,) = node.lines("ERROR")
    assert "Degraded: backend openvino on cpu failed, running on eager on cpu" in line
