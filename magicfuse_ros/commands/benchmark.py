"""`magicfuse benchmark`: how fast the engine and the node are here, and what they need for it.

What the figures mean. A frame costs the networks E + steps · (Ψ + Φ + F & S) + D operations. The
machine cannot do them faster than its best matrix product, which is measured too (except where a
backend computes in 16 bits). The share of that peak shows how much a better runtime could gain, and
the number of steps how much a better model could. The node fuses one frame at a time, always the
newest: frames come out at the camera's rate or at the rate of fusing, whichever is slower, and the
others are dropped. A frame's age is the sum of its wait for the frame before, its own time and
ROS's share. Seconds differ between machines, so the claims are ratios of figures of one run
wherever possible.

It prints the page of tables and, as the last line, the claims as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicfuse_ros.commands.exit_status import DONE, FAILED, INCOMPLETE, stop_on_signals
from magicfuse_ros.whole_files import check_writable, write_whole

if TYPE_CHECKING:
    import threading

    from magicfuse_ros.commands.demo import ProgressLine

HELP = "measure how fast the engine and the node are on this machine, beside their peers"

RATES_HZ = (10.0, 30.0, 60.0)
NODE_SECONDS = 15.0
SOAK_RATE_HZ = 30.0
PICTURES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--model", default="tiny", help="name or weights folder (default: tiny)")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--threads", type=int, default=0, help="CPU threads for the networks (default: all cores)"
    )
    parser.add_argument(
        "--level",
        choices=["all", "engine", "node"],
        default="all",
        help="the engine alone (needs no ROS), the node across processes, or both (default)",
    )
    parser.add_argument(
        "--quick", action="store_true", help="a few frames of the least: does the benchmark work?"
    )
    parser.add_argument(
        "--soak", type=float, metavar="MINUTES", help="then a long run of the node: does it drift?"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="JSON file of all results")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="page of the tables; its picture goes into images/ beside it",
    )


def run(args: argparse.Namespace) -> int:
    """Measure and show; returns 0, 1 if a part was not measured, 2 on error, 130 after Ctrl-C."""
    from magicfuse_ros.commands.demo import ProgressLine
    from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError

    show = ProgressLine(sys.stderr)
    stop = stop_on_signals()
    try:
        _check(args)
        with tempfile.TemporaryDirectory(prefix="magicfuse_benchmark_") as folder:
            results = _measure(args, Path(folder), stop, show)
        show.end()
        return _show_results(args, results)
    except _Stopped:
        show.end("stopped")
        return stop.status
    except (BenchmarkError, ValueError, OSError) as error:
        show.end()
        print(f"magicfuse benchmark: {error}", file=sys.stderr)
        return FAILED


class _Stopped(Exception):  # noqa: N818 - the user asked for it, nothing failed
    """Ctrl-C or a signal."""


def _check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is measured."""
    if args.threads < 0:
        raise ValueError(f"--threads is {args.threads}; accepted: 1 or more, or 0 for all cores")
    if args.soak is not None:
        if args.level == "engine":
            raise ValueError("--soak runs the node; it does not go with --level engine")
        if not (math.isfinite(args.soak) and args.soak > 0.0):
            raise ValueError(f"--soak is {args.soak}; accepted: a number of minutes above 0")
    for option, path in (("--output", args.output), ("--markdown", args.markdown)):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{option} is {path}, but its folder is missing; make it first")
        if path is not None:
            check_writable(path.parent)
    _check_installed(args)


def _check_installed(args: argparse.Namespace) -> None:
    import importlib.util

    needed = {"torchmetrics": "benchmark"}
    if args.markdown is not None:
        needed["matplotlib"] = "benchmark"
    if args.level != "node":
        needed["transformers"] = "benchmark"
    if args.level != "engine":
        needed |= {"rclpy": "ros", "rosbags": "bag"}
    missing = {name: extra for name, extra in needed.items() if not importlib.util.find_spec(name)}
    if missing:
        extras = ",".join(sorted(set(missing.values())))
        raise ValueError(
            f"{', '.join(missing)} is not installed; run: pip install 'magicfuse_ros[{extras}]'"
            + ("; or leave the node out: --level engine" if "rclpy" in missing else "")
        )


def _measure(
    args: argparse.Namespace, folder: Path, stop: threading.Event, show: ProgressLine
) -> dict[str, Any]:
    from magicfuse_ros.evaluation.benchmark import machine
    from magicfuse_ros.evaluation.benchmark.engine_runs import EngineRuns, measure

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    results: dict[str, Any] = {"machine": machine.describe(), "quick": args.quick}
    if args.level != "node":
        results["engine"] = EngineRuns(
            settings={"model": args.model, "device": args.device, "threads": args.threads},
            quick=args.quick,
            frames=lambda size: _frames(folder, size),
            show=show,
            measure=partial(measure, folder=folder, check=check),
        ).run()
    if args.level != "engine":
        results |= _measure_node(args, folder, stop, show)
    results["machine"]["load_at_end"] = machine.load()
    return results


def _frames(folder: Path, size: tuple[int, int]) -> Path:
    """Write camera frames of this size, from the sample video, as a .npy file; once for each."""
    import itertools

    import numpy as np

    from magicfuse_ros.resources import sample_video
    from magicfuse_ros.sources.source import open_source

    path = folder / f"frames_{size[0]}x{size[1]}.npy"
    if not path.exists():
        source = open_source(sample_video()).of_size(size)
        first = itertools.islice(source.frames(), PICTURES)
        frames = [each.rgb for each in first if each.rgb is not None]
        np.save(path, np.stack(frames))
    return path


def _measure_node(
    args: argparse.Namespace, folder: Path, stop: threading.Event, show: ProgressLine
) -> dict[str, Any]:
    from magicfuse_ros.commands.benchmark_node import NodeBenchmark, NodeRun
    from magicfuse_ros.commands.node_session import Stopped
    from magicfuse_ros.evaluation.benchmark.engine_runs import HD, VGA

    parameters = {"model": args.model, "device": args.device, "threads": str(args.threads)}
    benchmark = NodeBenchmark(parameters=parameters, folder=folder, stop=stop, show=show)
    runs = [NodeRun(size, rate, NODE_SECONDS) for size in (VGA, HD) for rate in RATES_HZ]
    if args.quick:
        runs = [NodeRun(VGA, SOAK_RATE_HZ, seconds=2.0, warm_up_s=1.0)]
    try:
        found: dict[str, Any] = {"node": [benchmark.measure(each) for each in runs]}
        if args.soak is not None:
            long = NodeRun(VGA, SOAK_RATE_HZ, args.soak * 60.0)
            found["soak"] = benchmark.measure(long, with_drift=True)
    except Stopped:
        raise _Stopped from None
    return found


def _show_results(args: argparse.Namespace, results: dict[str, Any]) -> int:
    """Print the page and write the files; 1 if anything could not be measured."""
    from magicfuse_ros.evaluation.benchmark.claims import claims
    from magicfuse_ros.evaluation.benchmark.page import errors, page
    from magicfuse_ros.evaluation.benchmark.plot import plot

    results["claims"] = [each._asdict() | {"holds": each.holds} for each in claims(results)]
    results["errors"] = errors(results)
    print(page(results))
    print(json.dumps({each["name"]: each["value"] for each in results["claims"]}))
    if args.output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(args.output, text + "\n")
    if args.markdown is not None:
        picture = args.markdown.parent / "images" / f"{args.markdown.stem}.png"
        drawn = plot(results, picture)
        name = os.path.relpath(picture, args.markdown.parent) if drawn else None
        write_whole(args.markdown, page(results, name))
    for problem in results["errors"]:
        print(f"magicfuse benchmark: not measured: {problem}", file=sys.stderr)
    return INCOMPLETE if results["errors"] else DONE
