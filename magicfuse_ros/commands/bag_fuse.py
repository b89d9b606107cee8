"""`magicfuse bag fuse IN OUT`: fuses every image of a bag, or of many bags."""

from __future__ import annotations

import argparse
import glob
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from magicfuse_ros.commands.arguments import add_engine_arguments, engine_arguments, given
from magicfuse_ros.commands.exit_status import (
    DONE,
    FAILED,
    INCOMPLETE,
    StopRequest,
    status_of,
    stop_on_signals,
)
from magicfuse_ros.commands.progress_line import ProgressLine

if TYPE_CHECKING:
    from magicfuse_ros.bags.fleet import Row
    from magicfuse_ros.bags.fuse_plan import FuseOptions

HELP = "fuse every image of a bag into another bag; goes on after a kill"

_DETAILS = """
IN is a bag: a folder, or an .mcap or .db3 file. OUT is the bag to make. Every image message of
every camera is fused and none is dropped; the other topics are copied as they are. The results
have the names, stamps and frame_ids that fuse_node would give them: /front/image_raw becomes
/front/fuse_node/magimg and so on, /image becomes /fuse_node/magimg.

Several bags, a pattern such as 'DIR/*.mcap', or --ray: OUT is a folder, and OUT/NAME is made of
each NAME. With --ray they are fused at the same time, one task a bag.

Work under way is kept in OUT.partial. After Ctrl-C, a kill or a full disk the same command goes on
there, and ends in the same messages as a run that was not stopped. A bag that is done is not made
again.

Exit status: 0 all fused, 1 some frames could not be read, 2 nothing could be done (with several
bags: with at least one), 130 stopped by SIGINT (Ctrl-C), 143 by SIGTERM.

Examples:
  magicfuse bag fuse drive drive_fused
  magicfuse bag fuse drive.mcap fused --topics /front/image_raw /rear/image_raw/compressed
  magicfuse bag fuse 'drives/*.mcap' fused/ --ray local
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; what is not given is the node's, the engine's or the model's own."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _DETAILS
    parser.add_argument("input", nargs="+", metavar="IN", help="bag, or pattern of bags in quotes")
    parser.add_argument("output", type=Path, metavar="OUT", help="bag to make, or a folder of them")
    parser.add_argument("--topics", nargs="+", metavar="NAME", help="fuse only these image topics")
    parser.add_argument(
        "--outputs",
        metavar="LIST",
        help="topics to make, joined by commas, of: magimg, magimg/compressed, semantic/mask, "
        "semantic/confidence, semantic/color, infrared, enhanced, camera_info (default: the first "
        "four and camera_info)",
    )
    parser.add_argument(
        "--with-input", action="store_true", help="copy the fused images too, beside their results"
    )
    parser.add_argument("--storage", help="mcap or sqlite3 (default: the input's)")
    add_engine_arguments(parser)
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: all cores; with --ray, 1 a bag)"
    )
    parser.add_argument("--input-bits", type=int, help="used of a 16-bit picture, as the node's")
    parser.add_argument("--jpeg-quality", type=int, help="of magimg/compressed (default: 85)")
    parser.add_argument("--id-map", help="ids of the mask: 'person:6, car:7, *:0'")
    parser.add_argument(
        "--min-confidence", type=float, help="0 to 1: pixels below it are unknown in the mask"
    )
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="fuse the bags on a Ray cluster; `local` starts one on this machine. Every machine "
        "needs this package, and the bags under the same paths",
    )


def run(args: argparse.Namespace) -> int:
    """Fuse one bag or many; returns the exit status that the help describes."""
    from magicfuse_ros.bags.fuse_engine import Interrupted
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.runtime.contract import EngineError

    stop = stop_on_signals()
    try:
        options = _options(args)
        if args.ray is None and len(args.input) == 1 and not _is_pattern(args.input[0]):
            return _fuse_one(Path(args.input[0]), args.output, options, stop)
        return _fuse_many(args, options, stop)
    except (BagError, EngineError, ValueError) as error:
        print(f"magicfuse bag fuse: {error}", file=sys.stderr)
        return FAILED
    except (Interrupted, KeyboardInterrupt) as stopped:
        print("magicfuse bag fuse: stopped; the same command goes on from here", file=sys.stderr)
        return status_of(stopped) if isinstance(stopped, KeyboardInterrupt) else stop.status


def _options(args: argparse.Namespace) -> FuseOptions:
    from magicfuse_ros.bags.fuse_plan import FuseOptions
    from magicfuse_ros.runtime.contract import EngineSettings

    own = ("storage", "with_input", "input_bits", "jpeg_quality", "id_map", "min_confidence")
    chosen = given(args, *own)
    if args.topics is not None:
        chosen["topics"] = tuple(args.topics)
    if args.outputs is not None:
        chosen["outputs"] = tuple(filter(None, (part.strip() for part in args.outputs.split(","))))
    engine = engine_arguments(args) | given(args, "threads")
    return FuseOptions(engine=EngineSettings(**engine), **chosen)


def _fuse_one(source: Path, target: Path, options: FuseOptions, stop: StopRequest) -> int:
    from contextlib import closing

    from magicfuse_ros.bags.fuse_bag import fuse_bag
    from magicfuse_ros.bags.fuse_engine import LazyEngine

    show = ProgressLine(sys.stderr)
    try:
        with closing(LazyEngine(options.engine, stop, show.end)) as engine:
            summary = fuse_bag(
                source, target, options, engine, stop=stop, say=show.end, progress=show
            )
    finally:
        show.end()
    if summary.already:
        print(f"{target} is there already, made of this bag with these options")
    else:
        print(f"{target}: {summary}")
    return INCOMPLETE if summary.left_out else DONE


def _fuse_many(args: argparse.Namespace, options: FuseOptions, stop: StopRequest) -> int:
    from magicfuse_ros.bags import fleet

    jobs = fleet.jobs(_expanded(args.input), args.output)
    show = ProgressLine(sys.stderr)
    rows: list[Row] = []
    try:
        if args.ray is None:
            found = fleet.one_by_one(jobs, options, stop=stop, say=show.end, progress=show)
        else:
            found = fleet.on_ray(jobs, options, args.ray, stop=stop, progress=show)
        for row in found:
            rows.append(row)
            show.end(f"{len(rows)} of {len(jobs)}: {row.job.source.name}: {row.text}")
    finally:
        show.end()
        print(fleet.table(rows, len(jobs)))
    if any(row.error for row in rows):
        return FAILED
    return INCOMPLETE if any(row.summary.left_out for row in rows) else DONE


def _expanded(inputs: Sequence[str]) -> list[Path]:
    """Return the bags that are named and those that patterns find."""
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.bags.suffixes import is_bag

    bags: list[Path] = []
    for text in inputs:
        if not _is_pattern(text):
            bags.append(Path(text))
            continue
        found = [path for path in map(Path, sorted(glob.glob(text))) if is_bag(path)]  # noqa: PTH207
        if not found:
            raise BagError(f"no bag fits {text!r}; a bag is a folder, or an .mcap or .db3 file")
        bags += found
    return list(dict.fromkeys(bags))


def _is_pattern(text: str) -> bool:
    return glob.has_magic(text) and not Path(text).exists()
