"""`magicfuse benchmark`: how fast the engine and the node are here, and what they need for it."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading

    from magicfuse_ros.commands.benchmark_node import NodeRun
    from magicfuse_ros.commands.demo import ProgressLine
    from magicfuse_ros.evaluation.benchmark.plan import Effort

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
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--full",
        action="store_true",
        help="the engine at every steps x resolution; without it every number of steps at the "
        "model's own resolution, and every resolution with the model's own steps",
    )
    size.add_argument(
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
    """Measure and tell: 0, 1 with the reason on stderr if something failed, 130 after Ctrl-C."""
    from magicfuse_ros.commands.demo import ProgressLine
    from magicfuse_ros.commands.exit_status import stop_on_signals
    from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError

    show = ProgressLine(sys.stderr)
    try:
        _check(args)
        stop = stop_on_signals()
        with tempfile.TemporaryDirectory(prefix="magicfuse_benchmark_") as folder:
            results = _measure(args, Path(folder), stop, show)
        show.end()
        return _tell(args, results)
    except _Stopped:
        show.end("stopped")
        return 130
    except (BenchmarkError, ValueError, OSError) as error:
        show.end()
        print(f"magicfuse benchmark: {error}", file=sys.stderr)
        return 1


class _Stopped(Exception):  # noqa: N818 - the user asked for it, nothing failed
    """Ctrl-C or a signal."""


def _check(args: argparse.Namespace) -> None:
    """Refuse what cannot be done before anything is measured."""
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

    results: dict[str, Any] = {
        "machine": machine.facts(),
        "model": Path(args.model).name,
        "device": args.device,
        "threads": args.threads,
        "grid": _effort(args).grid,
        "engine": None,
        "node": None,
        "soak": None,
    }
    if args.level != "node":
        results["engine"] = _engine(args, folder, stop, show)
    if args.level != "engine":
        results |= _node(args, folder, stop, show)
    results["machine"]["load_at_end"] = machine.load()
    return results


def _effort(args: argparse.Namespace) -> Effort:
    from magicfuse_ros.evaluation.benchmark.plan import Effort

    if args.quick:
        return Effort(grid="quick", seconds=0.0, least=3)
    return Effort(grid="full" if args.full else "cross")


def _engine(
    args: argparse.Namespace, folder: Path, stop: threading.Event, show: ProgressLine
) -> dict[str, Any]:
    from magicfuse_ros.evaluation.benchmark.engine import EngineBenchmark

    def check() -> None:
        if stop.is_set():
            raise _Stopped

    benchmark = EngineBenchmark(
        model=args.model,
        device=args.device,
        threads=args.threads,
        effort=_effort(args),
        frames=lambda size: _frames(folder, size),
        folder=folder,
        check=check,
        show=show,
    )
    return benchmark.run()


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


def _node(
    args: argparse.Namespace, folder: Path, stop: threading.Event, show: ProgressLine
) -> dict[str, Any]:
    from magicfuse_ros.commands.benchmark_node import NodeBenchmark, NodeRun
    from magicfuse_ros.commands.node_session import Stopped
    from magicfuse_ros.evaluation.benchmark.plan import HD, VGA
    from magicfuse_ros.resources import sample_video

    parameters = {"model": args.model, "device": args.device, "threads": str(args.threads)}
    benchmark = NodeBenchmark(
        parameters=parameters, video=sample_video(), folder=folder, stop=stop, show=show
    )
    runs: list[NodeRun] = [
        NodeRun(camera=camera, rate_hz=rate, seconds=NODE_SECONDS)
        for camera in (VGA, HD)
        for rate in RATES_HZ
    ]
    if args.quick:
        runs = [NodeRun(camera=VGA, rate_hz=SOAK_RATE_HZ, seconds=2.0, warm_up_s=1.0)]
    found: dict[str, Any] = {"node": {}, "soak": None}
    try:
        for each in runs:
            rates = found["node"].setdefault(f"{each.camera[0]}x{each.camera[1]}", {})
            rates[f"{each.rate_hz:.1f}fps"] = benchmark.run(each)
        if args.soak is not None:
            seconds = args.soak * 60.0
            found["soak"] = benchmark.soak(
                NodeRun(camera=VGA, rate_hz=SOAK_RATE_HZ, seconds=seconds)
            )
    except Stopped:
        raise _Stopped from None
    return found


def _tell(args: argparse.Namespace, results: dict[str, Any]) -> int:
    """Print the tables and write the files; 1 if anything could not be measured."""
    from magicfuse_ros.evaluation.benchmark.claims import claims
    from magicfuse_ros.evaluation.benchmark.plots import plot
    from magicfuse_ros.evaluation.benchmark.report import errors, machine_lines, markdown
    from magicfuse_ros.evaluation.benchmark.tables import tables

    results["claims"] = [claim.as_json() for claim in claims(results)]
    results["errors"] = errors(results)
    print("\n".join([*machine_lines(results), ""]))
    for table in tables(results):
        print(table.markdown())
    if args.output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        args.output.write_text(text + "\n", encoding="utf-8")
    if args.markdown is not None:
        picture = args.markdown.parent / "images" / f"{args.markdown.stem}.png"
        drawn = plot(results, picture)
        name = os.path.relpath(picture, args.markdown.parent) if drawn else None
        args.markdown.write_text(markdown(results, name), encoding="utf-8")
    for problem in results["errors"]:
        print(f"magicfuse benchmark: not measured: {problem}", file=sys.stderr)
    return 1 if results["errors"] else 0
