"""`fuse_node` with real engines: what runs the networks, the cache of them, what the user sees."""

import itertools
import os
import random
import re
import signal
import sys
import time

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from sensor_msgs.msg import Image
from support.small_models import save_few_step
from support.system import (
    CameraProcess,
    FuseNodeProcess,
    Listener,
    adds_up,
    random_domain,
    rgb,
    send_until_fused,
)

NODE = """
import sys
from magicfuse_ros.ros.node.fuse_node import main
{}
if __name__ == "__main__":
    sys.exit(main())
"""
WITHOUT_PARITY = """
from magicfuse_ros.runtime.backends import parity
parity.TOLERANCE = -1.0
"""
# The kernel refuses to write further in the middle of a file, to Python and to OpenVINO alike. Less
# than this are the node's own log, which is a file too, and its segments of shared memory.
ON_A_FULL_DISK = """
import resource
from magicfuse_ros.runtime.artifacts import ArtifactCache

def store(*arguments, store=ArtifactCache.store):
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
    store(*arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

ArtifactCache.store = store
"""
PARTS = 5
ARTIFACTS = 2 * PARTS  # the graph of each, and what is compiled from it for this CPU
PICTURE = rgb(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8), 10**9)


@pytest.fixture(scope="module")
def domain():
    return random_domain()


@pytest.fixture(scope="module")
def listener(domain):
    with Listener(domain) as listener:
        yield listener


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_few_step(tmp_path_factory.mktemp("models"))


@pytest.fixture
def start(domain, listener, model, tmp_path):
    nodes = []

    def start(change="", namespace="/", ready="Active", cache=tmp_path / "cache"):
        script = tmp_path / f"node{len(nodes)}.py"
        script.write_text(NODE.format(change))
        listener.statuses.clear()
        node = FuseNodeProcess(
            domain,
            tmp_path / f"log{len(nodes)}",
            parameters={"model": model},
            arguments=["-r", f"__ns:={namespace}", "-r", "image:=/image"],
            command=[sys.executable, str(script)],
            XDG_CACHE_HOME=str(cache),
        )
        nodes.append(node)
        if ready:
            node.wait_for_log(ready)
        return node

    yield start
    for node in nodes:
        node.stop()


@pytest.mark.fault
def test_on_a_cpu_the_default_is_openvino_and_another_aspect_is_told(start, listener, domain):
    node = start(cache=os.environ["XDG_CACHE_HOME"])  # what other tests have made serves
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


@pytest.mark.fault
def test_a_backend_without_parity_is_refused_and_the_node_says_so(start, listener):
    node = start(WITHOUT_PARITY)
    status, values = listener.next_status()
    assert (values["backend"], values["degraded"]) == ("eager on cpu", "true")
    assert status.level == DiagnosticStatus.WARN
    assert "backend openvino on cpu failed, running on eager on cpu" in status.message
    assert "encoder in openvino differs from PyTorch by" in node.log
    (line,) = node.lines("ERROR")
    assert "Degraded: backend openvino on cpu failed, running on eager on cpu" in line


def entries(tmp_path):
    folder = tmp_path / "cache" / "magicfuse" / "artifacts"
    return {path.name: path for path in folder.glob("*") if path.is_dir()}


@pytest.mark.fault
def test_a_full_disk_costs_the_cache_and_nothing_else(start, listener, domain, tmp_path):
    node = start(ON_A_FULL_DISK)
    lines = re.findall(r"artifact \w+ is not kept: .*", node.log)
    assert len(lines) == ARTIFACTS, node.log
    assert all("every start makes it anew until " in line for line in lines)
    assert entries(tmp_path) == {}
    magimg = listener.hear("/fuse_node/magimg", Image)
    with CameraProcess(domain) as camera:
        send_until_fused(camera, listener, magimg, PICTURE)
        _, values = listener.next_status(lambda _, v: v["frames_pending"] == "0")
    assert (values["backend"], values["degraded"]) == ("openvino on cpu", "false")
    assert adds_up(values)
    assert node.lines("ERROR") == []
    listener.forget(magimg)


@pytest.mark.fault
def test_one_cache_of_several_nodes_outlives_a_kill_a_race_and_damage(start, domain, tmp_path):
    moment = random.choice(["compiling encoder", "compiling psi", "preparing phi"])
    killed = start(ready=moment)
    time.sleep(random.uniform(0.0, 0.5))
    killed.send(signal.SIGKILL)
    assert killed.exit_code() == -signal.SIGKILL
    kept = set(entries(tmp_path))

    # Two start at once: what the killed one has not finished is made once, by one of them.
    nodes = {name: start(namespace=name, ready=None) for name in ("/one", "/two")}
    for node in nodes.values():
        node.wait_for_log("Active")
    work = re.compile(r"((?:converting|compiling) \w+)$", re.MULTILINE)
    made = list(itertools.chain(*(work.findall(node.log) for node in nodes.values())))
    missing = ARTIFACTS - sum(not name.startswith(".") for name in kept)
    assert len(made) == len(set(made)) == missing, (moment, kept, made)
    assert len(entries(tmp_path)) == ARTIFACTS

    with CameraProcess(domain) as camera:

        def fuse(name):
            with Listener(domain, f"{name}/fuse_node") as listener:
                magimg = listener.hear(f"{name}/fuse_node/magimg", Image)
                picture = send_until_fused(camera, listener, magimg, PICTURE)
                _, values = listener.next_status(lambda _, v: v["frames_pending"] == "0")
            assert (values["backend"], values["degraded"]) == ("openvino on cpu", "false")
            assert values["dropped_total"] == values.get("dropped.replaced", "0")
            assert adds_up(values)
            return bytes(picture.data)

        # Damaged in place under both: what runs does not change.
        before = {name: fuse(name) for name in nodes}
        for count, folder in enumerate(entries(tmp_path).values()):
            network = max(folder.iterdir(), key=lambda path: path.stat().st_size)
            if count % 2:
                os.truncate(network, 0)
            else:
                with network.open("r+b") as file:
                    file.write(bytes(network.stat().st_size))
        assert {name: fuse(name) for name in nodes} == before

        # The next start sees the damage and makes everything anew.
        nodes["/two"].send(signal.SIGKILL)
        nodes["/two"].exit_code()
        node = start(namespace="/two")
        damaged = re.findall(r"is made anew: \S+ is not what was written", node.log)
        assert len(damaged) == ARTIFACTS, node.log
        assert fuse("/two") == before["/two"]
    assert len(entries(tmp_path)) == ARTIFACTS
    assert node.lines("ERROR") == []
