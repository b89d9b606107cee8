"""`magicfuse evaluate`: measures a model on validation images, or fused pictures in folders."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from magicfuse_ros.commands import evaluate_experiments
from magicfuse_ros.commands.evaluate_subject import (
    LIMIT,
    evaluation_of,
    header,
    opening,
    write_json,
)
from magicfuse_ros.commands.exit_status import DONE, FAILED
from magicfuse_ros.whole_files import check_writable

if TYPE_CHECKING:
    from magicfuse_ros.evaluation.subject import Evaluation
    from magicfuse_ros.evaluation.tables import Table

HELP = "measure a model on validation images, or fused pictures: tables, a picture sheet, a report"

SUBJECTS = ("autoencoder", "restoration", "infrared", "people", "night", "segmentation", "weights")
OTHERS = ("steps", "video", "calibration", "all", "sheet", "fusion", "protocol", "report")
SHEET_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "subject",
        choices=[*SUBJECTS, *OTHERS],
        help="a table (all: those before `steps`), the picture sheet, fused pictures in folders, "
        "an experiment of the paper, or every one of them on one page",
    )
    parser.add_argument(
        "protocol",
        nargs="?",
        help="of `protocol`: one that ships (table2 ...) or a YAML file; of "
        "`report`: a folder of your own YAML files (default: those that ship)",
    )
    parser.add_argument("--model", default="tiny", help="name or weights folder (default: tiny)")
    parser.add_argument(
        "--data",
        type=Path,
        help="folder of datasets (see docs/training.md); of all but `fusion`",
    )
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda or cuda:N")
    parser.add_argument(
        "--backend", default="auto", help="of the engine that is scored (default: auto)"
    )
    parser.add_argument("--steps", type=int, help="DDIM steps (default: the model's)")
    parser.add_argument(
        "--limit",
        type=int,
        help="images a row (a quarter of it for one degradation alone), evenly from every dataset, "
        f"0 for all (default: {LIMIT}); for `video` the frames, shared by the videos; for a sheet "
        f"its rows (default: {SHEET_ROWS})",
    )
    parser.add_argument(
        "--beside",
        metavar="MODEL",
        help="weights whose F & S were trained without Ψ and Φ, to put beside in `segmentation`",
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="JSON file of the tables, the sheet's image, or the report's .md, its .html beside",
    )
    parser.add_argument(
        "--cache", type=Path, help="folder of decoded images (default: the user's cache folder)"
    )
    evaluate_experiments.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Print the tables or write the sheet; returns 0, or 2 with one line on stderr."""
    from magicfuse_ros.runtime.contract import EngineError

    try:
        _check(args)
        if args.subject == "fusion":
            evaluate_experiments.score_folders(args)
            return DONE
        if args.subject == "protocol":
            evaluate_experiments.run_protocol(args)
            return DONE
        if args.subject == "report":
            evaluate_experiments.write_report(args)
            return DONE
        evaluation = evaluation_of(args)
        if args.subject == "sheet":
            _write_sheet(evaluation, args)
        else:
            _write_tables(evaluation, args)
        evaluation.engine.close()
    except (OSError, ValueError, EngineError, ImportError) as error:  # ours are ValueErrors
        print(f"magicfuse evaluate: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is computed."""
    if args.steps is not None and args.steps < 1:
        raise ValueError(f"--steps is {args.steps}; accepted: 1 or more")
    if args.limit is not None and args.limit < 0:
        raise ValueError(f"--limit is {args.limit}; accepted: 0 (all) or more")
    if args.output is not None and not args.output.parent.is_dir():
        raise ValueError(f"--output is {args.output}, but its folder is missing; make it first")
    if args.output is not None:
        check_writable(args.output.parent)
    evaluate_experiments.check(args)
    if args.subject == "sheet":
        if args.output is None or args.output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
            raise ValueError(f"--output is {args.output}; a sheet needs a .png or .jpg file")
        if args.limit == 0:
            raise ValueError("--limit is 0; a sheet needs 1 row or more")
    if args.beside and args.subject not in {"segmentation", "all"}:
        raise ValueError(f"--beside goes with `segmentation` or `all`, not with `{args.subject}`")


def _write_tables(evaluation: Evaluation, args: argparse.Namespace) -> None:
    from magicfuse_ros.evaluation import (
        calibration,
        picture_tables,
        report,
        segmentation,
        steps,
        video,
    )

    makers = {
        "autoencoder": (report.autoencoder_table,),
        "restoration": (report.restoration_table,),
        "infrared": (report.infrared_table,),
        "people": (picture_tables.people_table, picture_tables.heat_table),
        "night": (picture_tables.night_table,),
        "segmentation": (segmentation.segmentation_table, segmentation.weak_mask_table),
        "weights": (segmentation.weight_table,),
        "steps": (steps.steps_table,),
        "video": (video.video_table,),
        "calibration": (lambda evaluation: calibration.calibration(evaluation).tables[0],),
    }
    content = header(evaluation, args)
    print(opening(content))
    tables: dict[str, list[Table]] = {}
    for subject in SUBJECTS if args.subject == "all" else (args.subject,):
        for maker in makers[subject]:
            table = maker(evaluation)
            tables.setdefault(subject, []).append(table)
            print(table.markdown(), flush=True)
    if args.output is not None:
        content["tables"] = {name: [t.as_json() for t in some] for name, some in tables.items()}
        write_json(args.output, content)


def _write_sheet(evaluation: Evaluation, args: argparse.Namespace) -> None:
    from magicfuse_ros.evaluation.scene_sheet import picture_sheet
    from magicfuse_ros.training.sheets import write_sheet

    rows = SHEET_ROWS if args.limit is None else args.limit
    write_sheet(args.output, picture_sheet(evaluation, rows))
    print(f"wrote {args.output}")
