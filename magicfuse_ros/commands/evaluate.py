"""`magicfuse evaluate`: measures a model on validation images, as tables or as a picture sheet."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicfuse_ros.commands.exit_status import DONE, FAILED
from magicfuse_ros.whole_files import check_writable, write_whole

if TYPE_CHECKING:
    from magicfuse_ros.evaluation.subject import Evaluation
    from magicfuse_ros.evaluation.tables import Table

HELP = "measure a model on validation images: tables as Markdown and JSON, or a picture sheet"

SUBJECTS = (
    "autoencoder", "restoration", "infrared", "fusion", "people", "night", "segmentation",
    "weights",
)  # fmt: skip
LIMIT = 24
SHEET_ROWS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "subject",
        choices=[*SUBJECTS, "steps", "video", "all", "sheet"],
        help="a table (all: those before `steps`), or the picture sheet",
    )
    parser.add_argument("--model", default="tiny", help="name or weights folder (default: tiny)")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder of datasets (see docs/training.md)"
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
    parser.add_argument("--output", type=Path, help="JSON file of the tables, or the sheet's image")
    parser.add_argument(
        "--cache", type=Path, help="folder of decoded images (default: the user's cache folder)"
    )


def run(args: argparse.Namespace) -> int:
    """Print the tables or write the sheet; returns 0, or 2 with one line on stderr."""
    from magicfuse_ros.runtime.contract import EngineError

    try:
        _check(args)
        evaluation = _evaluation(args)
        if args.subject == "sheet":
            _write_sheet(evaluation, args)
        else:
            _write_tables(evaluation, args)
        evaluation.engine.close()
    except (OSError, ValueError, EngineError) as error:  # our other errors are ValueErrors
        print(f"magicfuse evaluate: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _evaluation(args: argparse.Namespace) -> Evaluation:
    """Load the engine, the model behind it on the same device, and the scenes."""
    from magicfuse_ros.evaluation.scenes import ValidationSet
    from magicfuse_ros.evaluation.subject import Evaluation
    from magicfuse_ros.model.magicfuse import MagicFuse
    from magicfuse_ros.resources import model_path, user_cache
    from magicfuse_ros.runtime.backends import candidates
    from magicfuse_ros.runtime.contract import EngineSettings
    from magicfuse_ros.runtime.engine import load_engine

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

    settings = EngineSettings(
        model=args.model, device=args.device, backend=args.backend, steps=args.steps or 0
    )
    device = candidates(args.backend, args.device)[0].device
    folder = model_path(args.model)
    model = MagicFuse.from_pretrained(folder).to(device)
    beside = MagicFuse.from_pretrained(model_path(args.beside)).to(device) if args.beside else None
    scenes = ValidationSet(args.data, args.cache or user_cache(), model.config, model.labels)
    engine = load_engine(settings, tell)
    engine.warm_up(tell)
    if engine.steps_warning:
        tell(f"WARNING: {engine.steps_warning}")
    return Evaluation(
        engine=engine,
        model=model,
        scenes=scenes,
        steps=args.steps,
        limit=LIMIT if args.limit is None else args.limit,
        unaided=beside,
        progress=tell,
    )


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
    if args.subject == "sheet":
        if args.output is None or args.output.suffix.lower() not in {".png", ".jpg", ".jpeg"}:
            raise ValueError(f"--output is {args.output}; a sheet needs a .png or .jpg file")
        if args.limit == 0:
            raise ValueError("--limit is 0; a sheet needs 1 row or more")
    if args.beside and args.subject not in {"segmentation", "all"}:
        raise ValueError(f"--beside goes with `segmentation` or `all`, not with `{args.subject}`")


def _write_tables(evaluation: Evaluation, args: argparse.Namespace) -> None:
    from magicfuse_ros.evaluation import picture_tables, report, segmentation, steps, video

    makers = {
        "autoencoder": (report.autoencoder_table,),
        "restoration": (report.restoration_table,),
        "infrared": (report.infrared_table,),
        "fusion": (report.fusion_table,),
        "people": (picture_tables.people_table, picture_tables.heat_table),
        "night": (picture_tables.night_table,),
        "segmentation": (segmentation.segmentation_table, segmentation.weak_mask_table),
        "weights": (segmentation.weight_table,),
        "steps": (steps.steps_table,),
        "video": (video.video_table,),
    }
    content = _header(evaluation, args)
    print(f"Model {content['model']}: {_in_words(content)}\n")
    tables: dict[str, list[Table]] = {}
    for subject in SUBJECTS if args.subject == "all" else (args.subject,):
        for maker in makers[subject]:
            table = maker(evaluation)
            tables.setdefault(subject, []).append(table)
            print(table.markdown(), flush=True)
    if args.output is not None:
        content["tables"] = {name: [t.as_json() for t in some] for name, some in tables.items()}
        text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
        write_whole(args.output, text + "\n")


def _write_sheet(evaluation: Evaluation, args: argparse.Namespace) -> None:
    from magicfuse_ros.evaluation.scene_sheet import picture_sheet
    from magicfuse_ros.training.sheets import write_sheet

    rows = SHEET_ROWS if args.limit is None else args.limit
    write_sheet(args.output, picture_sheet(evaluation, rows))
    print(f"wrote {args.output}")


def _header(evaluation: Evaluation, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a report's figures were measured with."""
    import torch

    config = evaluation.model.config
    return {
        "model": config.name,
        "weights": args.model,
        "trained": config.trained,
        "steps": args.steps or config.diffusion.steps,
        "tau": config.diffusion.tau,
        "seed": config.diffusion.seed,
        "resolution": list(config.resolution),
        "split": "val",
        "limit": evaluation.limit,
        "engine": evaluation.engine.backend_name,
        "parity": evaluation.parity(),
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
    }


def _in_words(content: dict[str, Any]) -> str:
    width, height = content["resolution"]
    weights = "trained" if content["trained"] else "NOT TRAINED"
    parity = content["parity"]
    agree = "agrees with" if parity["agree"] else "DIFFERS from"
    images = f"up to {content['limit']} images" if content["limit"] else "all images"
    return (
        f"{weights}, {content['steps']} step(s), {width}×{height}, seed {content['seed']}; "
        f"{images} a row of split {content['split']}; {content['threads']} threads, load "
        f"{content['load']:.1f} on {content['cpus']} CPUs; engine {content['engine']}, which "
        f"{agree} PyTorch on a scene (MagImg {parity['magimg_mean']:.2f} of 255 apart, "
        f"{100.0 * parity['mask_agreement']:.1f} % of the mask the same)"
    )
