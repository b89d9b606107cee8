"""A node's memory, descriptors and threads over 200 lifecycles: `python test/measure_lifecycle.py`.

Each round configures, activates, works on one message, deactivates and cleans up, in a process of
its own that is told to by its services; the order changes from round to round. `fuse_node` loads
its model every time, `noop` is fuse_node with an engine that computes nothing.

A measurement, not a test: memory belongs to the machine and to its libraries.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from sensor_msgs.msg import Image, PointCloud2
from support import scene
from support.system import (
    ACTIVATE,
    CLEANUP,
    CONFIGURE,
    DEACTIVATE,
    CameraProcess,
    FuseNodeProcess,
    Listener,
    random_domain,
    rgb,
)

ROUNDS = (
    (CONFIGURE, ACTIVATE, None, DEACTIVATE, CLEANUP),
    (CONFIGURE, CLEANUP, CONFIGURE, ACTIVATE, None, DEACTIVATE, CLEANUP),
    (CONFIGURE, ACTIVATE, DEACTIVATE, ACTIVATE, None, DEACTIVATE, CLEANUP),
)
"""Transitions; None is where it works."""
COMMANDS = {
    "fuse_node": [sys.executable, "-m", "magicfuse_ros.ros.node.fuse_node"],
    "noop": None,
    "semantic_cloud": [sys.executable, "-m", "magicfuse_ros.ros.cloud.semantic_cloud"],
}
SECOND = 10**9
MASK = np.full((12, 16), 4, np.uint8)
PICTURE = np.full((240, 320, 3), 90, np.uint8)
POINTS = np.array([[0.0, 0.0, 5.0]])
PROJECTION = [10.0, 0.0, 7.5, 0.0, 10.0, 5.5, 0.0, 0.0, 1.0]


def send_frame(camera: CameraProcess, stamp: int) -> None:
    camera.publish(rgb(PICTURE, stamp))


def send_cloud(camera: CameraProcess, stamp: int) -> None:
    info = {"width": 16, "height": 12, "k": PROJECTION, "frame_id": "camera"}
    camera.publish(info, topic="/fuse_node/camera_info", kind="info")
    for name in ("mask", "confidence", "color"):
        picture = np.stack([MASK] * 3, axis=-1) if name == "color" else MASK
        encoding = "rgb8" if name == "color" else "mono8"
        fields = scene.image_fields(picture, encoding, stamp, "camera")
        camera.publish(fields, topic=f"/fuse_node/semantic/{name}")
    camera.publish(scene.cloud_fields(POINTS, stamp, "camera"), topic="/points", kind="cloud")


def figures(node: FuseNodeProcess) -> tuple[float, int, int]:
    """Resident MiB, descriptors and threads."""
    folder = Path(f"/proc/{node.process.pid}")
    status = dict(
        line.split(":", 1) for line in (folder / "status").read_text().splitlines() if ":" in line
    )
    resident = int(status["VmRSS"].split()[0]) / 1024
    return resident, len(list((folder / "fd").iterdir())), int(status["Threads"])


def work(
    camera: CameraProcess, kind: str, stamps: Iterator[int], out: list, listener: Listener
) -> None:
    """Send until something comes out: the node may just be matching the publisher."""
    before = len(out)
    for _ in range(20):
        (send_cloud if kind == "semantic_cloud" else send_frame)(camera, next(stamps) * SECOND)
        with contextlib.suppress(TimeoutError):
            listener.wait(lambda: len(out) > before, "nothing has come out", timeout_s=10.0)
            return
    sys.exit("nothing comes out of the node")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("node", nargs="?", choices=COMMANDS, default="noop")
    parser.add_argument("--rounds", type=int, default=200, help="lifecycles (default: 200)")
    parser.add_argument("--every", type=int, default=20, help="rounds a row (default: 20)")
    arguments = parser.parse_args()
    domain, stamps = random_domain(), itertools.count(1)
    name = "semantic_cloud" if arguments.node == "semantic_cloud" else "fuse_node"
    topic, message = {
        "semantic_cloud": ("/semantic_cloud/points", PointCloud2),
        "fuse_node": ("/fuse_node/magimg", Image),
    }[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        FuseNodeProcess(
            domain,
            Path(folder) / "log",
            command=COMMANDS[arguments.node],
            parameters={"autostart": False},
        ) as node,
        CameraProcess(domain) as camera,
        Listener(domain, f"/{name}") as listener,
    ):
        node.wait_for_log("autostart is false")
        out = listener.hear_later(topic, message)
        started = time.monotonic()
        print(f"{arguments.node}\n\n| rounds | resident, MiB | descriptors | threads | seconds |")
        print("|--:|--:|--:|--:|--:|")
        for count in range(arguments.rounds + 1):
            if count <= 1 or count % arguments.every == 0 or count == arguments.rounds:
                resident, descriptors, threads = figures(node)
                seconds = time.monotonic() - started
                print(
                    f"| {count} | {resident:.1f} | {descriptors} | {threads} | {seconds:.0f} |",
                    flush=True,
                )
            if count == arguments.rounds:
                break
            for step in ROUNDS[count % len(ROUNDS)]:
                if step is None:
                    work(camera, arguments.node, stamps, out, listener)
                elif not listener.change_state(step):
                    sys.exit(f"transition {step} failed in round {count + 1}:\n{node.log}")


if __name__ == "__main__":
    main()
