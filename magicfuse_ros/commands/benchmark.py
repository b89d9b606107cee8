"""`magicfuse benchmark`: how fast the engine and the node are here, and what they need for it.

What the figures mean. A frame costs the networks E + steps · (Ψ + Φ + F & S) + D: at one step most
of its time is theirs, and each further step adds the same again. The node fuses one frame at a
time, always the newest: frames come out at the camera's rate or as fast as one is fused, whichever
is slower, and the others are dropped. A frame's age is its wait for the frame before, its own time
and ROS's share. Seconds differ between machines, so the claims are ratios of figures of one run
wherever they can be.

It prints the page of tables and, as the last line, the claims as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from magicfuse_ros.commands.arguments import check_installed, check_output
from magicfuse_ros.commands.exit_status import (
    DONE,
    FAILED,
    INCOMPLETE,
    StopRequest,
    stop_on_signals,
)
from magicfuse_ros.commands.progress_line import ProgressLine
from magicfuse_ros.whole_files import write_whole

HELP = "measure how fast the engine and the node are on this machine, beside their peers"


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
    for option, what in (
        ("--output", "JSON file of all results"),
        ("--markdown", "page of the tables; its picture goes into images/ beside it"),
    ):
        parser.add_argument(option, type=Path, metavar="FILE", help=what)


def run(args: argparse.Namespace) -> int:
    """Measure and show.

    0 when all was measured, 1 when something was not, 2 with the reason on stderr when nothing
    could be, 130 after Ctrl-C.
    """
    from magicfuse_ros.evaluation.benchmark.machine import BenchmarkError
    from magicfuse_ros.runtime.contract import EngineError

    show = ProgressLine(sys.stderr)
    stop = stop_on_signals()
    try:
        _check(args)
        results = _measured(args, stop, show)
        show.end()
        _write(args, results)
    except KeyboardInterrupt:
        show.end("stopped")
        return stop.status
    except (BenchmarkError, EngineError, ValueError, OSError) as error:
        show.end()
        print(f"magicfuse benchmark: {error}", file=sys.stderr)
        return FAILED
    for problem in results["errors"]:
        print(f"magicfuse benchmark: not measured: {problem}", file=sys.stderr)
    return INCOMPLETE if results["errors"] else DONE


def _check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is measured."""
    if args.threads < 0:
        raise ValueError(f"--threads is {args.threads}; accepted: 1 or more, or 0 for all cores")
    if args.soak is not None:
        if args.level == "engine":
            raise ValueError("--soak runs the node; it does not go with --level engine")
        if not (math.isfinite(args.soak) and args.soak > 0.0):
            raise ValueError(f"--soak is {args.soak}; accepted: a number of minutes above 0")
    check_output("--output", args.output)
    check_output("--markdown", args.markdown)
    check_installed(dict.fromkeys(("matplotlib", "torchmetrics", "transformers"), "benchmark"))
    if args.level != "engine":
        without = "; or leave the node out: --level engine"
        check_installed({"rclpy": "ros", "rosbags": "bag"}, without)


def _measured(args: argparse.Namespace, stop: StopRequest, show: ProgressLine) -> dict[str, Any]:
    from magicfuse_ros.evaluation.benchmark.claims import claims
    from magicfuse_ros.evaluation.benchmark.engine_runs import Benchmark, run_engine
    from magicfuse_ros.evaluation.benchmark.machine import describe

    results: dict[str, Any] = {"machine": describe(), "quick": args.quick, "errors": []}
    with tempfile.TemporaryDirectory(prefix="magicfuse_benchmark_") as folder:
        benchmark = Benchmark(
            settings={"model": args.model, "device": args.device, "threads": args.threads},
            quick=args.quick,
            folder=Path(folder),
            stop=stop,
            show=show,
            errors=results["errors"],
        )
        if args.level != "node":
            results["engine"] = run_engine(benchmark)
        if args.level != "engine":
            from magicfuse_ros.commands.benchmark_node import run_node

            results |= run_node(benchmark, args.soak)
    results["claims"] = [each._asdict() | {"holds": each.holds} for each in claims(results)]
    return results


def _write(args: argparse.Namespace, results: dict[str, Any]) -> None:
    """Print the page, and write the files that were asked for."""
    from magicfuse_ros.evaluation.benchmark.page import page

    print(page(results))
    print(json.dumps({each["name"]: each["value"] for each in results["claims"]}))
    if args.output is not None:
        text = json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(args.output, text + "\n")
    if args.markdown is not None:
        picture = None
        if results.get("engine"):
            from magicfuse_ros.evaluation.benchmark.plot import plot

            picture = f"images/{args.markdown.stem}.png"
            plot(results["engine"], args.markdown.parent / picture)
        write_whole(args.markdown, page(results, picture))
