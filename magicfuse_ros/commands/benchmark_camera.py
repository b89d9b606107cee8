"""The benchmark's camera, in a process of its own: it plays a bag when it is told to.

`python -m magicfuse_ros.commands.benchmark_camera BAG TOPIC RATE` answers each line on stdin with
one on stdout, both JSON: null → whether the topic has a subscriber; a number of seconds → the
stamps, in ns, of the frames it sent in that time. The bag is played at RATE times its own speed,
over and over, stamped with the wall time of sending. It ends when stdin does.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, final


@final
class CameraProcess:
    """A camera process seen from outside; a context manager that ends it.

    Parameters
    ----------
    bag, topic
        What it plays.
    rate
        How many times as fast as recorded.
    environment
        Its whole environment.
    """

    def __init__(self, bag: Path, topic: str, rate: float, environment: Mapping[str, str]) -> None:
        module = "magicfuse_ros.commands.benchmark_camera"
        self._process = subprocess.Popen(  # noqa: S603 - our own command, no shell
            [sys.executable, "-m", module, str(bag), topic, str(rate)],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self._answers: list[Any] = []
        self._asked = 0
        # Its answers are read by a thread, so that nobody waits for a camera that has died.
        self._reader = threading.Thread(target=self._read, name="camera_answers", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id, as in /proc."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def ask(self, seconds: float | None) -> int:
        """Send a request; returns the number to get its answer by."""
        assert self._process.stdin is not None  # noqa: S101 - it is a pipe
        with suppress(BrokenPipeError):  # `alive` tells
            self._process.stdin.write(json.dumps(seconds) + "\n")
            self._process.stdin.flush()
        self._asked += 1
        return self._asked - 1

    def answered(self, number: int) -> bool:
        """Whether the answer is there."""
        return len(self._answers) > number

    def answer(self, number: int) -> Any:
        """Return the answer to a request: a bool, or a list of stamps."""
        return self._answers[number]

    def _read(self) -> None:
        assert self._process.stdout is not None  # noqa: S101 - it is a pipe
        for line in self._process.stdout:
            self._answers.append(json.loads(line))

    def __enter__(self) -> CameraProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None  # noqa: S101 - both are pipes
            with suppress(BrokenPipeError):
                stream.close()


def main(argv: list[str]) -> int:
    """Be the camera."""
    import rclpy
    from rclpy.context import Context
    from rclpy.node import Node
    from rclpy.signals import SignalHandlerOptions

    from magicfuse_ros.bags.player import Player, PlayerSettings
    from magicfuse_ros.bags.reader import BagReader

    bag, topic, rate = Path(argv[0]), argv[1], float(argv[2])
    context = Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = Node("benchmark_camera", context=context, start_parameter_services=False)
    sent: list[int] = []
    settings = PlayerSettings(rate=rate, loop=True, restamp=True, topics=(topic,))
    with BagReader(bag) as reader:
        player = Player(reader, node, settings, lambda _topic, stamp, _data: sent.append(stamp))
        for line in sys.stdin:
            stop = threading.Event()
            seconds = json.loads(line)
            if seconds is None:
                answer: object = player.wait_for_subscribers(0.0, stop)
            else:
                sent.clear()
                timer = threading.Timer(seconds, stop.set)
                timer.start()
                player.play(stop)
                answer = sent
            print(json.dumps(answer), flush=True)
    # Not torn down in order: nothing is left to do, and DDS takes its time.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
