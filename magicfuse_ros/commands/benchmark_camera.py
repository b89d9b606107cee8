"""The benchmark's camera, a process of its own that plays a bag for some seconds.

`python -m magicfuse_ros.commands.benchmark_camera BAG TOPIC RATE SECONDS SENT` waits until the
topic has a subscriber, plays the bag at RATE times its own speed, over and over, stamped with the
wall time of sending, and writes the stamps in ns into the JSON file SENT.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path

import rclpy
from rclpy.context import Context
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from magicfuse_ros.bags.player import Player, PlayerSettings
from magicfuse_ros.bags.reader import BagReader

CONNECT_TIMEOUT_S = 20.0
SETTLE_S = 0.5


def main(argv: list[str]) -> None:
    """Play the bag as the camera does."""
    bag, topic, rate, seconds, sent_to = argv
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = Node("benchmark_camera", context=context, start_parameter_services=False)
    sent: list[int] = []
    settings = PlayerSettings(rate=float(rate), loop=True, restamp=True, topics=(topic,))
    stop = threading.Event()
    with BagReader(Path(bag)) as reader:
        player = Player(reader, node, settings, lambda _topic, stamp, _data: sent.append(stamp))
        if not player.wait_for_subscribers(CONNECT_TIMEOUT_S, stop):
            sys.exit(f"nobody subscribed to {topic} in {CONNECT_TIMEOUT_S:.0f} s")
        stop.wait(SETTLE_S)  # the subscriber may match a moment later
        threading.Timer(float(seconds), stop.set).start()
        player.play(stop)
    Path(sent_to).write_text(json.dumps(sent), encoding="ascii")
    # It ends without an orderly shutdown: nothing is left to do, and DDS would take its time.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
