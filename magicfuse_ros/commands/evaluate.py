"""`magicfuse evaluate`: measures a model on validation images, or fused pictures in folders."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from magicfuse_ros.commands.arguments import at_least, check_installed, check_output
from magicfuse_ros.commands.exit_status import DONE, FAILED

HELP = "measure a model on validation images, or fused pictures: tables, a picture sheet, a report"

LIMIT = 24
"""Images a row, where nothing else is said."""
SHEET_ROWS = 8

PART_OF_ALL = {
    "autoencoder": "table: what E and D lose",
    "restoration": "table: Ψ against clean images, beside CLAHE and Zero-DCE++",
    "infrared": "table: Φ against the real infrared, beside grey",
    "people": "tables: people in MagImg, and heat where nobody is",
    "night": "table: real nights, beside CLAHE",
    "segmentation": "tables: S against labels and weak masks",
    "weights": "table: how Ψ weighs in the fused noise",
}
TABLES = {
    **PART_OF_ALL,
    "steps": "table: what fewer DDIM steps cost and give",
    "video": "table: flicker and ghosting with and without the picture before",
    "calibration": "table: whether the confidence is what it says",
    "all": f"the tables {', '.join(PART_OF_ALL)}",
}


OPTIONS: dict[str, dict[str, Any]] = {
    "--model": {"default": "tiny", "help": "name or weights folder (default: tiny)"},
    "--data": {"type": Path, "required": True, "help": "folder of datasets (see docs/training.md)"},
    "--device": {"default": "auto", "help": "auto (default), cpu, cuda or cuda:N"},
    "--backend": {"default": "auto", "help": "of the engine that is scored (default: auto)"},
    "--steps": {"type": at_least(1), "help": "DDIM steps (default: the model's)"},
    "--cache": {
        "type": Path,
        "help": "folder of decoded images (default: the user's cache)",
    },
    "--beside": {
        "metavar": "MODEL",
        "help": "weights whose F & S were trained without Ψ and Φ, to put beside",
    },
    "--peer": {
        "action": "append",
        "metavar": "NAME=DIR",
        "help": "measure another method's pictures too, named as the dataset's",
    },
    "--segformer": {
        "type": Path,
        "metavar": "DIR",
        "help": "checkpoint SegFormer begins with",
    },
    "--quick": {
        "action": "store_true",
        "help": "train SegFormer for minutes on a CPU: enough to see a table, not to compare with",
    },
}
OF_A_MODEL = ("--model", "--data", "--device", "--backend", "--steps", "--cache")
OF_SEGFORMER = ("--segformer", "--quick")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subjects, each with its arguments."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, told in TABLES.items():
        table = subjects.add_parser(name, help=told)
        table.set_defaults(tables=tuple(PART_OF_ALL) if name == "all" else (name,))
        beside = ("--beside",) if name in ("segmentation", "all") else ()
        images = "images a row (a quarter of it for one degradation alone), evenly from all"
        limited = "frames, shared by the videos" if name == "video" else images
        _declare(table, (*OF_A_MODEL, *beside), LIMIT, limited)
        table.add_argument("--output", type=Path, metavar="FILE", help="JSON file of the tables")

    sheet = subjects.add_parser("sheet", help="picture sheet: scenes, and what becomes of them")
    _declare(sheet, OF_A_MODEL, SHEET_ROWS, "rows", least=1)
    sheet.add_argument("--output", type=Path, metavar="FILE", required=True, help=".png or .jpg")

    fusion = subjects.add_parser("fusion", help="scores of any methods' fused pictures in folders")
    for name, nargs, told in (
        ("--fused", "+", "fused pictures, a folder a method"),
        ("--visible", None, "the visible pictures that were fused"),
        ("--infrared", None, "the infrared pictures that were fused"),
    ):
        fusion.add_argument(name, nargs=nargs, type=Path, metavar="DIR", required=True, help=told)
    fusion.add_argument(
        "--quoted", metavar="PROTOCOL", help="put the paper's rows of table2 ... below"
    )
    _declare(fusion, (), 0, "pictures, evenly from all")
    fusion.add_argument("--output", type=Path, metavar="FILE", help="JSON file of the table")

    protocol = subjects.add_parser("protocol", help="an experiment of the paper")
    protocol.add_argument("protocol", help="one that ships (table2 ...), or a YAML file of yours")
    limited = "images beside the protocol's own limit, evenly from all"
    _declare(protocol, (*OF_A_MODEL, "--peer", *OF_SEGFORMER), 0, limited)
    protocol.add_argument("--output", type=Path, metavar="FILE", help="JSON file of the tables")

    report = subjects.add_parser("report", help="every experiment of the paper on one page")
    report.add_argument(
        "protocol", nargs="?", help="folder of YAML files of yours (default: those that ship)"
    )
    _declare(report, (*OF_A_MODEL, *OF_SEGFORMER), LIMIT, "images a row, evenly from all")
    report.add_argument(
        "--output", type=Path, metavar="FILE", required=True, help=".md, its .html beside"
    )


def _declare(
    parser: argparse.ArgumentParser,
    options: Sequence[str],
    limit: int,
    limited: str,
    *,
    least: int = 0,
) -> None:
    """Declare some of `OPTIONS`, and `--limit` with its default; what is not there stays None."""
    parser.set_defaults(beside=None, peer=None)
    for name in options:
        parser.add_argument(name, **OPTIONS[name])
    every = "" if least else ", 0 for all"
    parser.add_argument(
        "--limit",
        type=at_least(least),
        default=limit,
        help=f"at most so many {limited}{every} (default: {limit})",
    )


def run(args: argparse.Namespace) -> int:
    """Measure; returns 0, or 2 with one line on stderr."""
    from magicfuse_ros.runtime.contract import EngineError

    try:
        _check(args)
        from magicfuse_ros.commands import evaluate_subjects

        evaluate_subjects.SUBJECTS[args.subject](args)
    except (OSError, ValueError, EngineError, ImportError) as error:  # ours are ValueErrors
        print(f"magicfuse evaluate: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is computed."""
    check_output("--output", args.output)
    if args.subject == "sheet" and args.output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
        raise ValueError(f"--output is {args.output}; a sheet needs a .png or .jpg file")
    if args.subject == "report":
        if args.output.suffix != ".md":
            raise ValueError(f"--output is {args.output}; a report needs a .md file")
        check_installed({"matplotlib": "benchmark", "transformers": "benchmark"})
