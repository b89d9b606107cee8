"""Two processes at camera rate: frames in, out, dropped, and age at publish. No test: it measures.

  python test/measure_node.py [--seconds 10] [--rate 30] [--width 640 --height 480] [--subscribe]

The node's engine computes nothing (support/noop_node.py), so what is measured is ROS: transport,
decoding, encoding, publishing. With --subscribe, this process reads the three main outputs.
"""

import argparse
import os
import tempfile
from pathlib import Path

import numpy as np
from sensor_msgs.msg import Image
from support.system import CameraProcess, FuseNodeProcess, Listener, random_domain, rgb

STAGES = ("wait", "decode", "publish", "total")
OUTPUTS = ("magimg", "semantic/mask", "semantic/confidence")


def main():
    parser = argparse.ArgumentParser(description="Measure the node without its model.")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--subscribe", action="store_true")
    arguments = parser.parse_args()

    domain, count = random_domain(), round(arguments.seconds * arguments.rate)
    size = {"width": arguments.width, "height": arguments.height, "step": arguments.width * 3}
    size["data"] = arguments.width * arguments.height * 3
    fields = rgb(np.zeros((1, 1, 3), np.uint8), "now", **size)
    with (
        tempfile.TemporaryDirectory() as folder,
        FuseNodeProcess(domain, Path(folder) / "log") as node,
        CameraProcess(domain) as camera,
        Listener(domain) as listener,
    ):
        node.wait_for_log("Active")
        heard = {}
        if arguments.subscribe:
            heard = {name: listener.hear(f"/fuse_node/{name}", Image) for name in OUTPUTS}
        load = os.getloadavg()[0]
        sent = camera.publish(fields, rate_hz=arguments.rate, repeat=count)["sent"]
        _, values = listener.next_status(lambda _, v: v["frames_pending"] == "0")
    print(f"{arguments.width}x{arguments.height} rgb8 at {arguments.rate:g} Hz, {sent} frames sent")
    print(f"machine: {os.cpu_count()} cores, load average {load:.1f} at the start")
    for key in ("frames_in", "frames_out", "dropped_total"):
        print(f"{key:15}{values[key]:>8}")
    for key, value in values.items():
        if key.startswith("dropped."):
            print(f"{key:15}{value:>8}")
    held = int(values["frames_in"]) == int(values["frames_out"]) + int(values["dropped_total"])
    print(f"in = out + dropped: {held}; sent = in: {sent == int(values['frames_in'])}")
    for name, received in heard.items():
        print(f"received here, {name}: {len(received)}")
    print(f"{'ms':15}{'p50':>8}{'p95':>8}{'max':>8}")
    for prefix in ("age_ms", *(f"stage_ms.{stage}" for stage in STAGES)):
        row = [values.get(f"{prefix}.{part}", "-") for part in ("p50", "p95", "max")]
        print(f"{prefix.removeprefix('stage_ms.'):15}" + "".join(f"{part:>8}" for part in row))
    print(f"memory_mb {values['memory_mb']}")


if __name__ == "__main__":
    main()
