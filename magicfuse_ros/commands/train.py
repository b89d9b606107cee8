"""`magicfuse train`: one stage, or all of them in order."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "train a stage (autoencoder, psi, phi, mkf), or all of them in order"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("stage", choices=["autoencoder", "psi", "phi", "mkf", "all"])
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="the stage's YAML file, or for `all` the folder with one YAML a stage, as config/training/tiny",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets (see docs/training.md)")
    parser.add_argument("--output", type=Path, required=True, help="run folder: model/, checkpoints and logs/")
    parser.add_argument("--cache", type=Path, help="folder of decoded images (default: OUTPUT/cache)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in OUTPUT")


def run(args: argparse.Namespace) -> int:
    """Train; returns 0 when complete, 3 when a signal ended it early, 1 with a message on error."""
    from magicfuse_ros.model.checkpoint import CheckpointError
    from magicfuse_ros.model.config import ConfigError
    from magicfuse_ros.training.datasets import DatasetError
    from magicfuse_ros.training.loop import TrainingError
    from magicfuse_ros.training.recipe import STAGES, read_recipe, train_stage

    stages = STAGES if args.stage == "all" else (args.stage,)
    cache = args.cache or args.output / "cache"
    try:
        for stage in stages:
            path = args.config / f"{stage}.yaml" if args.stage == "all" else args.config
            recipe = read_recipe(path)
            if recipe.stage != stage:
                raise ConfigError(f"{path} is for stage {recipe.stage!r}; accepted here: {stage!r}")
            checkpoint = args.output / f"{stage}.state.safetensors"
            if checkpoint.is_file() and not args.resume:
                raise ConfigError(f"{checkpoint} exists; add --resume to go on from it, or remove it to start again")
            if not train_stage(recipe, args.data, cache, args.output):
                print(f"{stage}: stopped by a signal; the same command with --resume goes on", file=sys.stderr)
                return 3
    except (CheckpointError, ConfigError, DatasetError, TrainingError, ValueError) as error:
        print(f"magicfuse train: {error}", file=sys.stderr)
        return 1
    return 0
