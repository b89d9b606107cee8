"""What looking costs: a node's rate beside 0, 1 and 5 viewers of its page, and the rate of each.

`python test/measure_view.py`. A bag of the demo's street plays at 30 Hz into a real `fuse_node`,
and `magicfuse view --node` shows all five pictures of it. The viewers are WebSockets that answer as
the page does; they decode nothing, since a browser of this machine would take the node's cores.

A measurement, not a test: the figures belong to the machine and to what else runs on it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
from support.system import FuseNodeProcess, Listener, environment, random_domain

from magicfuse_ros.resources import sample_video
from magicfuse_ros.view.shot import PICTURES

MAGICFUSE = [sys.executable, "-m", "magicfuse_ros"]
NODE = [sys.executable, "-m", "magicfuse_ros.ros.node.fuse_node"]
SETTLE_S = 6.0
"""Until /diagnostics, which counts over 5 s, speaks of these viewers alone."""


async def look(address: str, until: float) -> tuple[int, float]:
    """Look as the page does; returns how many shots came once settled, and in how many seconds."""
    count, begin = 0, time.monotonic() + SETTLE_S
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{address}stream", max_msg_size=0) as socket,
    ):
        await socket.send_str(json.dumps({"want": PICTURES}))
        while time.monotonic() < until:
            with contextlib.suppress(asyncio.TimeoutError):
                message = await socket.receive(timeout=0.1)
                if message.type is aiohttp.WSMsgType.BINARY:
                    count += time.monotonic() > begin
                    await socket.send_str('{"shown": 1}')
    return count, time.monotonic() - begin


async def look_all(address: str, viewers: int, seconds: float) -> list[float]:
    until = time.monotonic() + SETTLE_S + seconds
    looked = await asyncio.gather(*(look(address, until) for _ in range(viewers)))
    await asyncio.sleep(max(until - time.monotonic(), 0.0))
    return [count / took for count, took in looked]


def cpu_s(process: subprocess.Popen) -> float:
    fields = (
        Path(f"/proc/{process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    )
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0, help="a row (default: 20)")
    parser.add_argument("--viewers", type=int, nargs="+", default=[0, 1, 5])
    parser.add_argument("--size", default="640x480", help="of the camera (default: 640x480)")
    arguments = parser.parse_args()
    domain = random_domain()
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS")}  # tests have one
    variables = environment(domain, **threads)
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as ending:
        folder = Path(name)
        make = [*MAGICFUSE, "bag", "from-video", str(sample_video()), str(folder / "street")]
        subprocess.run(
            [*make, "--size", arguments.size, "--fps", "30"], check=True, stdout=subprocess.DEVNULL
        )

        def start(*words: str, **options: object) -> subprocess.Popen:
            process = subprocess.Popen([*MAGICFUSE, *words], env=variables, text=True, **options)
            ending.callback(process.wait)
            ending.callback(process.terminate)
            return process

        node = ending.enter_context(
            FuseNodeProcess(domain, folder / "log", command=NODE, **threads)
        )
        listener = ending.enter_context(Listener(domain))
        node.wait_for_log("Active", 300.0)
        street = str(folder / "street")
        start("bag", "play", street, "--loop", "--restamp", stdout=subprocess.DEVNULL)
        view = start("view", "--node", "/fuse_node", "--port", "0", stdout=subprocess.PIPE)
        address = re.search(r"http://\S+", view.stdout.readline())[0]
        listener.next_status(lambda _, values: float(values.get("fps_out", 0)) > 1.0)

        print(
            f"camera of {arguments.size} at 30 Hz, {os.cpu_count()} cores, load average "
            f"{os.getloadavg()[0]:.2f} before\n"
        )
        print("| viewers | fps of the node | age p50 (ms) | fps of each viewer | view: CPU (%) |")
        print("|--:|--:|--:|--:|--:|")
        for viewers in arguments.viewers:
            before, started = cpu_s(view), time.monotonic()
            rates = asyncio.run(look_all(address, viewers, arguments.seconds))
            busy = (cpu_s(view) - before) / (time.monotonic() - started)
            values = listener.values()
            each = f"{min(rates):.1f} to {max(rates):.1f}" if rates else "—"
            print(
                f"| {viewers} | {values['fps_out']} | {values['age_ms.p50']} "
                f"| {each} | {busy:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
