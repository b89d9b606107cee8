"""The node's benchmark: `fuse_node` in another process, and this one that plays and listens."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from magicfuse_ros.bags.from_video import write_bag
from magicfuse_ros.bags.player import Player, PlayerSettings
from magicfuse_ros.bags.reader import BagReader
from magicfuse_ros.commands.node_process import NodeProcess, fuse_node_command
from magicfuse_ros.commands.node_session import (
    CONFIDENCE,
    MAGIMG,
    MASK,
    NodeSession,
    Session,
    SessionError,
)
from magicfuse_ros.evaluation.benchmark.engine_runs import (
    CACHE_VARIABLE,
    HD,
    PICTURES_HZ,
    VGA,
    Benchmark,
    Size,
)
from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError, Usage, usage
from magicfuse_ros.ros.dds import isolate, prepare

TOPIC = "/image"
OUTPUTS = (MAGIMG, MASK, CONFIDENCE)
RATES_HZ = (10.0, 30.0, 60.0)
SOAK_RATE_HZ = 30.0
BAG_FRAMES = 40
SECONDS = 30.0
"""Of a run: as long as the node's own ages reach back, so that they leave its warm-up out."""
WARM_UP_S = 3.0
SAMPLE_S = 1.0


def run_node(run: Benchmark, soak_minutes: float | None) -> dict[str, Any]:
    """Measure the node with cameras of different sizes and rates, each time in a new process.

    Returns `node`, the rows of the runs, and `soak`, the row of the soak, None without one.
    """
    for warning in prepare(os.environ):  # this process plays and listens
        run.show(warning)
    isolate(os.environ, 1 + os.getpid() % 100)
    runs = [(size, rate_hz, SECONDS) for size in (VGA, HD) for rate_hz in RATES_HZ]
    if run.quick:
        runs = [(VGA, SOAK_RATE_HZ, 2.0)]
    rows = [measure(run, *each) for each in runs]
    soak = None
    if soak_minutes is not None:
        soak = measure(run, VGA, SOAK_RATE_HZ, soak_minutes * 60.0, soak=True)
    return {"node": [row for row in rows if row], "soak": soak}


def measure(
    run: Benchmark, size: Size, rate_hz: float, seconds: float, *, soak: bool = False
) -> dict[str, Any]:
    """Play a camera to a new node and return the row of that; an empty one if it failed."""
    folder = run.folder / f"camera_{size[0]}x{size[1]}"
    if not folder.exists():
        write_bag(run.pictures(size, BAG_FRAMES), folder, start_ns=time.time_ns(), topic=TOPIC)
    command = fuse_node_command({"image": TOPIC}, run.settings)
    environment = os.environ | {CACHE_VARIABLE: str(run.folder / "cache")}
    settings = PlayerSettings(rate=rate_hz / PICTURES_HZ, loop=True, restamp=True, topics=(TOPIC,))
    started = time.monotonic()
    with (
        BagReader(folder) as bag,
        NodeProcess(command, environment, run.folder / "node.log") as process,
        closing(NodeSession(process, run.stop, run.show)) as node,
    ):
        try:
            node.wait_until_active()
            active_s = time.monotonic() - started
            with node.connected(bag, bag.topic(TOPIC), settings, OUTPUTS) as player:
                samples = _warmed_up_and_watched(run, node, player, rate_hz, seconds)
        except (SessionError, BenchmarkError) as error:
            words = "; ".join(process.last_lines(3))
            what = f"node, {size[0]}x{size[1]} at {rate_hz:g} Hz"
            run.errors.append(f"{what}: {error} (the node's last words: {words})")
            return {}
    # Some outputs of the warm-up may have come late.
    arrived, sent = node.session.outputs_ns[MAGIMG], set(node.session.sent_ns)
    node.session.outputs_ns[MAGIMG] = {k: v for k, v in arrived.items() if k in sent}
    row = {"camera": size, "rate_hz": rate_hz, "active_s": active_s}
    row |= figures(node.session, samples)
    return row | ({"drift": drift(samples, node.session)} if soak else {})


def _warmed_up_and_watched(
    run: Benchmark, node: NodeSession, player: Player, rate_hz: float, seconds: float
) -> list[Usage]:
    """Play for some time; return what the node used each second, from the first output on.

    Raises SessionError if no frame came out, or only when the time was over.
    """
    warm_up_s = 1.0 if run.quick else WARM_UP_S
    _watch(node, player, warm_up_s, "node: warming up")
    # Frames of another aspect have networks compiled beside them; that is start-up.
    while node.session.diagnostics.get("preparing"):
        _watch(node, player, warm_up_s, "node: warming up")
    node.session = Session(before=node.session.diagnostics)
    samples = _watch(node, player, seconds, f"node: a camera at {rate_hz:g} Hz")
    if len(samples) < 2:
        raise SessionError("the first frame came out only when the time was over")
    return samples


def _watch(node: NodeSession, player: Player, seconds: float, what: str) -> list[Usage]:
    samples: list[Usage] = []
    end = time.monotonic() + seconds

    def sample(halt: threading.Event) -> None:
        now = time.monotonic()
        due = not samples or now - samples[-1].at_s >= SAMPLE_S
        if not halt.is_set() and (now >= end or (due and node.session.recorded)):
            samples.append(usage(node.process.pid))
        if now >= end:
            halt.set()

    node.play(player, what, sample)
    return samples


def figures(session: Session, samples: Sequence[Usage]) -> dict[str, Any]:
    """Work out what became of a run.

    Every frame sent was fused, dropped by the node, or lost on the way to it: `accounted` says
    whether that adds up. `age_ms` is what the node measured, from the camera's stamp to publishing;
    `arrival_age_ms` is measured here.
    """
    said, first, last = session.diagnostics, samples[0], samples[-1]
    sent, out = len(session.sent_ns), session.count("frames_out")
    dropped = {
        key.partition(".")[2]: session.count(key) for key in said if key.startswith("dropped.")
    }
    lost = sent - session.count("frames_in")
    ages_ms = session.arrival_ages_ms(50.0, 95.0, 99.9, 100.0)
    parts = ("p50", "p95", "max")
    return {
        "backend": said.get("backend", ""),
        "sent": sent,
        "out": out,
        "dropped": dropped,
        "lost": lost,
        "accounted": sent == out + sum(dropped.values()) + lost,
        "received": session.recorded,
        "fps_out": session.fps,
        "age_ms": {
            part: float(said[f"age_ms.{part}"]) for part in parts if f"age_ms.{part}" in said
        },
        "arrival_age_ms": dict(zip(("p50", "p95", "p99.9", "max"), ages_ms, strict=True)),
        "ros_percent": ros_percent(said),
        "cpu_percent": 100.0 * (last.cpu_s - first.cpu_s) / (last.at_s - first.at_s),
        "memory_mb": {"steady": last.memory_mb, "peak": last.peak_mb},
    }


def ros_percent(said: Mapping[str, str]) -> float | None:
    """Work out which part of a frame's time is ROS's: reading the message, encoding, publishing.

    It is computed from the medians of the node's own stages, without the wait for the worker. What
    rclpy and DDS do before the node sees a message is only in the node's CPU time.
    """
    medians = {
        key.split(".")[1]: float(value)
        for key, value in said.items()
        if key.startswith("stage_ms.") and key.endswith(".p50")
    }
    frame_ms = sum(value for name, value in medians.items() if name not in ("wait", "total"))
    return 100.0 * (medians["read"] + medians["publish"]) / frame_ms if frame_ms else None


def drift(samples: Sequence[Usage], session: Session) -> dict[str, Any]:
    """Work out what changed over a long run, after its warm-up.

    The warm-up is the first minute, or the first fifth of a run shorter than five minutes. `fps`
    compares the first and the last tenth of the rest.
    """
    seconds = np.array([sample.at_s for sample in samples]) - samples[0].at_s
    end = float(seconds[-1])
    warm_up_s = min(60.0, 0.2 * end)
    kept = seconds >= warm_up_s
    arrivals = np.sort(np.array(list(session.outputs_ns[MAGIMG].values()), np.int64))
    since_s = (arrivals - arrivals[0]) / 1e9
    tenth = (end - warm_up_s) / 10

    def course(name: str) -> dict[str, float]:
        values = np.array([getattr(sample, name) for sample in samples], float)[kept]
        return {"first": values[0], "last": values[-1], "max": float(values.max())}

    def rate(begin: float) -> float:
        return float(((since_s >= begin) & (since_s < begin + tenth)).sum()) / tenth

    memory = np.array([sample.memory_mb for sample in samples])
    return {
        "minutes": end / 60.0,
        "warm_up_s": warm_up_s,
        "memory_slope_mb_per_hour": float(np.polyfit(seconds[kept], memory[kept], 1)[0]) * 3600.0,
        **{name: course(name) for name in ("memory_mb", "descriptors", "threads")},
        "fps": {"first": rate(warm_up_s), "last": rate(end - tenth)},
    }
