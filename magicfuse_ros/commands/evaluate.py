"""`magicfuse evaluate`: measures a model on validation images, or fused pictures in folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subjects, each with its arguments."""
    subjects = parser.add_subparsers(dest="subject", required=True, metavar="SUBJECT")
    for name, told in TABLES.items():
        table = subjects.add_parser(name, help=told)
        frames = "frames, shared by the videos"
        images = (
            "images a row (a quarter of it for one degradation alone), evenly from all datasets"
        )
        _add_model(table, LIMIT, frames if name == "video" else images)
        if name in ("segmentation", "all"):
            table.add_argument(
                "--beside",
                metavar="MODEL",
                help="weights whose F & S were trained without Ψ and Φ, to put beside",
            )
        _add_output(table, "JSON file of the tables")
        table.set_defaults(tables=tuple(PART_OF_ALL) if name == "all" else (name,))

    sheet = subjects.add_parser("sheet", help="picture sheet: scenes, and what becomes of them")
    _add_model(sheet, SHEET_ROWS, "rows", least=1)
    _add_output(sheet, "the sheet, .png or .jpg", required=True)

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
    _add_limit(fusion, 0, "pictures, evenly from all")
    _add_output(fusion, "JSON file of the table")

    protocol = subjects.add_parser("protocol", help="an experiment of the paper")
    protocol.add_argument("protocol", help="one that ships (table2 ...), or a YAML file of yours")
    _add_model(protocol, 0, "images beside the protocol's own limit, evenly from all")
    protocol.add_argument(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=DIR",
        help="measure another method's pictures too, named as the dataset's",
    )
    _add_segformer(protocol)
    _add_output(protocol, "JSON file of the tables")

    report = subjects.add_parser("report", help="every experiment of the paper on one page")
    report.add_argument(
        "protocol", nargs="?", help="folder of YAML files of yours (default: those that ship)"
    )
    _add_model(report, LIMIT, "images a row, evenly from all datasets")
    _add_segformer(report)
    _add_output(report, "the report's .md, its .html beside", required=True)


def _add_model(
    parser: argparse.ArgumentParser, limit: int, limited: str, *, least: int = 0
) -> None:
    parser.set_defaults(beside=None, peer=[])
    parser.add_argument("--model", default="tiny", help="name or weights folder (default: tiny)")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of datasets (see docs/training.md)"
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--backend", default="auto", help="of the engine that is scored (default: auto)"
    )
    parser.add_argument("--steps", type=at_least(1), help="DDIM steps (default: the model's)")
    parser.add_argument(
        "--cache", type=Path, help="folder of decoded images (default: the user's cache folder)"
    )
    _add_limit(parser, limit, limited, least=least)


def _add_limit(
    parser: argparse.ArgumentParser, limit: int, limited: str, *, least: int = 0
) -> None:
    every = "" if least else ", 0 for all"
    parser.add_argument(
        "--limit",
        type=at_least(least),
        default=limit,
        help=f"at most so many {limited}{every} (default: {limit})",
    )


def _add_segformer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--segformer", type=Path, metavar="DIR", help="checkpoint that SegFormer begins with"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="train SegFormer for minutes on a CPU: enough to see a table, not to compare with",
    )


def _add_output(parser: argparse.ArgumentParser, what: str, *, required: bool = False) -> None:
    parser.add_argument("--output", type=Path, metavar="FILE", required=required, help=what)


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
