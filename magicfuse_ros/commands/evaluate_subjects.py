"""The subjects of `magicfuse evaluate`: each is measured, printed, and written where asked for."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from magicfuse_ros.commands.progress_line import say
from magicfuse_ros.evaluation.calibration import calibration
from magicfuse_ros.evaluation.fused_folders import fused_folders_table
from magicfuse_ros.evaluation.picture_tables import heat_table, night_table, people_table
from magicfuse_ros.evaluation.protocol import Protocol, protocols, read_protocol
from magicfuse_ros.evaluation.protocol_run import Findings, NotThereError, ProtocolRun
from magicfuse_ros.evaluation.report import autoencoder_table, infrared_table, restoration_table
from magicfuse_ros.evaluation.results_page import markdown, page
from magicfuse_ros.evaluation.scene_sheet import picture_sheet
from magicfuse_ros.evaluation.scenes import ValidationSet
from magicfuse_ros.evaluation.segmentation import segmentation_table, weak_mask_table, weight_table
from magicfuse_ros.evaluation.steps import steps_table
from magicfuse_ros.evaluation.subject import Evaluation
from magicfuse_ros.evaluation.tables import Table
from magicfuse_ros.evaluation.video import video_table
from magicfuse_ros.model.checkpoint import read_config
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.resources import model_path, user_cache
from magicfuse_ros.runtime.backends import candidates
from magicfuse_ros.runtime.contract import EngineSettings
from magicfuse_ros.runtime.engine import load_engine
from magicfuse_ros.training.sheets import write_sheet
from magicfuse_ros.whole_files import write_whole

REPORT_SCENES = 8
QUICK_SEGFORMER: dict[str, Any] = {"steps": 400, "batch": 4, "size": (160, 120)}

MAKERS: dict[str, tuple[Callable[[Evaluation], Table], ...]] = {
    "autoencoder": (autoencoder_table,),
    "restoration": (restoration_table,),
    "infrared": (infrared_table,),
    "people": (people_table, heat_table),
    "night": (night_table,),
    "segmentation": (segmentation_table, weak_mask_table),
    "weights": (weight_table,),
    "steps": (steps_table,),
    "video": (video_table,),
    "calibration": (lambda evaluation: calibration(evaluation).tables[0],),
}


def tables(args: argparse.Namespace) -> None:
    """Print the tables of a subject, or of all that `all` stands for."""
    evaluation = evaluation_of(args)
    with closing(evaluation.engine):
        content = header(evaluation, args)
        print(opening(content))
        made: dict[str, list[Table]] = {}
        for subject in args.tables:
            for maker in MAKERS[subject]:
                table = maker(evaluation)
                made.setdefault(subject, []).append(table)
                print(table.markdown(), flush=True)
    _write_json(args, made, content)


def sheet(args: argparse.Namespace) -> None:
    """Write the picture sheet."""
    evaluation = evaluation_of(args)
    with closing(evaluation.engine):
        write_sheet(args.output, picture_sheet(evaluation, args.limit))
    print(f"wrote {args.output}")


def fusion(args: argparse.Namespace) -> None:
    """Print the scores of fused pictures in folders."""
    quoted = read_protocol(args.quoted).fusion_quoted if args.quoted else None
    if args.quoted and quoted is None:
        raise ValueError(f"--quoted is {args.quoted}, which quotes no fusion; accepted: table2 ...")
    table = fused_folders_table(
        args.fused, args.visible, args.infrared, limit=args.limit, quoted=quoted
    )
    print(table.markdown())
    _write_json(args, {"fusion": [table]}, {})


def protocol(args: argparse.Namespace) -> None:
    """Carry out one experiment of the paper."""
    odd = [peer for peer in args.peer or () if not all(peer.partition("="))]
    if odd:
        raise ValueError(f"--peer is {', '.join(odd)}; accepted: NAME=DIR")
    recipe = read_protocol(args.protocol)
    evaluation = evaluation_of(args, recipe)
    with closing(evaluation.engine):
        content = header(evaluation, args)
        print(opening(content))
        found = _findings(recipe, evaluation, args)
    for table in found.tables:
        print(table.markdown())
    _write_json(args, {args.protocol: found.tables}, content)


def report(args: argparse.Namespace) -> None:
    """Carry out every experiment and the calibration, and write the report's two pages."""
    recipes = [read_protocol(str(path)) for path in protocols(args.protocol)]
    with ExitStack() as engines:

        def opened(evaluation: Evaluation) -> Evaluation:
            engines.callback(evaluation.engine.close)
            return evaluation

        evaluation = opened(evaluation_of(args))
        # First what is quick and may fail.
        intro = opening(header(evaluation, args))
        pictures = picture_sheet(evaluation, REPORT_SCENES)
        measures: dict[str, Callable[[], Findings]] = {
            "Confidence": partial(calibration, evaluation)
        }
        # Protocols that are measured with the same engine share it.
        shared: dict[tuple[bool, str], Evaluation] = {}

        def measured(recipe: Protocol) -> Findings:
            key = recipe.paper_fusion, recipe.labels
            if key not in shared:
                shared[key] = opened(evaluation_of(args, recipe))
            return _findings(recipe, shared[key], args)

        measures |= {recipe.title: partial(measured, recipe) for recipe in recipes}
        sections = {}
        for title, measure in measures.items():
            try:
                sections[title] = measure()
            except NotThereError as error:
                sections[title] = Findings(note=f"Not measured: {error}.")
    html = args.output.with_suffix(".html")
    write_whole(html, page(intro, sections, pictures))
    write_whole(args.output, markdown(intro, sections, html.name))
    print(f"wrote {args.output} and {html}")


SUBJECTS: dict[str, Callable[[argparse.Namespace], None]] = {
    **dict.fromkeys([*MAKERS, "all"], tables),
    "sheet": sheet,
    "fusion": fusion,
    "protocol": protocol,
    "report": report,
}


def evaluation_of(args: argparse.Namespace, recipe: Protocol | None = None) -> Evaluation:
    """Load the engine, the model behind it on the same device, and the scenes.

    Where the model has learned the label set of `recipe` beside its own, masks are in that.
    """
    paper_fusion = recipe is not None and recipe.paper_fusion
    labels = recipe.labels if recipe is not None else ""
    folder = model_path(args.model)
    refiner = read_config(folder).refiner
    learned = refiner is not None and labels in refiner.more_labels and not paper_fusion
    settings = EngineSettings(
        model=args.model,
        labels=labels if learned else None,
        device=args.device,
        backend=args.backend,
        steps=args.steps or 0,
        paper_fusion=paper_fusion,
    )
    device = candidates(args.backend, args.device)[0].device
    model = MagicFuse.from_pretrained(folder).to(device)
    if learned:
        model = model.with_classes_of(labels)
    beside = MagicFuse.from_pretrained(model_path(args.beside)).to(device) if args.beside else None
    scenes = ValidationSet(args.data, _cache(args), model.config, model.labels)
    engine = load_engine(settings, say)
    engine.warm_up(say)
    if engine.steps_warning:
        say(f"WARNING: {engine.steps_warning}")
    return Evaluation(
        engine=engine,
        model=model,
        scenes=scenes,
        steps=args.steps,
        limit=args.limit,
        unaided=beside,
        progress=say,
    )


def header(evaluation: Evaluation, args: argparse.Namespace) -> dict[str, Any]:
    """Return what a report's figures were measured with."""
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


def opening(content: dict[str, Any]) -> str:
    """Return a report's first line, in words."""
    width, height = content["resolution"]
    weights = "trained" if content["trained"] else "NOT TRAINED"
    parity = content["parity"]
    agree = "agrees with" if parity["agree"] else "DIFFERS from"
    images = f"up to {content['limit']} images" if content["limit"] else "all images"
    return (
        f"Model {content['model']}: {weights}, {content['steps']} step(s), {width}×{height}, "
        f"seed {content['seed']}; {images} a row of split {content['split']}; "
        f"{content['threads']} threads, load {content['load']:.1f} on {content['cpus']} CPUs; "
        f"engine {content['engine']}, which {agree} PyTorch on a scene (MagImg "
        f"{parity['magimg_mean']:.2f} of 255 apart, {100.0 * parity['mask_agreement']:.1f} % of "
        "the mask the same)\n"
    )


def _findings(recipe: Protocol, evaluation: Evaluation, args: argparse.Namespace) -> Findings:
    if args.quick and recipe.segformer is not None:
        recipe = replace(recipe, segformer=replace(recipe.segformer, **QUICK_SEGFORMER))
    peers = {name: Path(folder) for name, _, folder in (p.partition("=") for p in args.peer or ())}
    run = ProtocolRun(
        recipe, evaluation, args.data, _cache(args), peers=peers, checkpoint=args.segformer
    )
    return run.findings()


def _write_json(args: argparse.Namespace, made: dict[str, Any], content: dict[str, Any]) -> None:
    """Write `content` and the tables to the file asked for, whole or not at all."""
    if args.output is not None:
        some = {name: [table.as_json() for table in tables] for name, tables in made.items()}
        text = json.dumps(
            {**content, "tables": some}, indent=1, ensure_ascii=False, allow_nan=False
        )
        write_whole(args.output, text + "\n")


def _cache(args: argparse.Namespace) -> Path:
    return args.cache or user_cache()
