"""What `magicfuse evaluate` measures, and what its reports say of how it was measured."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from magicfuse_ros.whole_files import write_whole

if TYPE_CHECKING:
    from magicfuse_ros.evaluation.subject import Evaluation

LIMIT = 24
"""Images a row, where nothing else is said."""


def evaluation_of(
    args: argparse.Namespace, *, paper_fusion: bool = False, labels: str = ""
) -> Evaluation:
    """Load the engine, the model behind it on the same device, and the scenes.

    Where the model has learned the label set `labels` beside its own, masks are in that.
    """
    from magicfuse_ros.evaluation.scenes import ValidationSet
    from magicfuse_ros.evaluation.subject import Evaluation
    from magicfuse_ros.model.checkpoint import read_config
    from magicfuse_ros.model.magicfuse import MagicFuse
    from magicfuse_ros.resources import model_path, user_cache
    from magicfuse_ros.runtime.backends import candidates
    from magicfuse_ros.runtime.contract import EngineSettings
    from magicfuse_ros.runtime.engine import load_engine

    def tell(line: str) -> None:
        print(line, file=sys.stderr)

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
        limit=args.limit
        if args.limit is not None
        else (0 if args.subject == "protocol" else LIMIT),
        unaided=beside,
        progress=tell,
    )


def header(evaluation: Evaluation, args: argparse.Namespace) -> dict[str, Any]:
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


def opening(content: dict[str, Any]) -> str:
    """Return a report's first line, in words."""
    return f"Model {content['model']}: {_in_words(content)}\n"


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


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a report's figures, whole or not at all."""
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, text + "\n")
