"""`magicfuse train`: trains one stage, or all of them in order."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from magicfuse_ros.commands.exit_status import DONE, FAILED, SIGNALLED
from magicfuse_ros.resources import share_dir

HELP = "train a stage, all of them in order, or distill to few steps"

STAGES = ("autoencoder", "psi", "phi", "mkf", "refine", "all", "distill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--config",
        type=Path,
        help="the stage's YAML file; for `all` their folder, as config/training/tiny",
    )
    parser.add_argument(
        "--size", choices=("paper", "base", "tiny"), help="for `all`: the shipped recipes of a size"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        help="for `all`: train so long, each stage its share, in the place of the recipes' steps",
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="folder with the datasets, each named after its layout (see docs/training.md)",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="run folder: model/, checkpoints and logs/"
    )
    parser.add_argument(
        "--cache", type=Path, help="folder of decoded images (default: OUTPUT/cache)"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on from the checkpoints in OUTPUT"
    )


def run(args: argparse.Namespace) -> int:
    """Train; returns 0 when complete, 2 with a message on error, 128 + number after a signal."""
    try:
        from magicfuse_ros.model.config_values import ConfigError
        from magicfuse_ros.training.loop import StopRequest, TrainingError
        from magicfuse_ros.training.recipe import read_recipe, recipe_files
        from magicfuse_ros.training.state import state_path
        from magicfuse_ros.training.train_stage import train_stage
    except ModuleNotFoundError as error:
        print(
            f"magicfuse train: the module {error.name!r} is missing; install the package with its "
            "extra `train`: pip install '.[train]'",
            file=sys.stderr,
        )
        return FAILED

    cache = args.cache or args.output / "cache"
    try:
        config = _config(args)
        paths = recipe_files(config) if args.stage == "all" else [config]
        # All recipes are checked first, so that a mistake in the last does not show after hours.
        recipes = []
        for path in paths:
            stage = path.stem.partition("_")[0] if args.stage == "all" else args.stage
            recipe = read_recipe(path)
            if recipe.stage != stage:
                raise ConfigError(f"{path} is for stage {recipe.stage!r}; accepted here: {stage!r}")
            recipes.append(recipe)
            checkpoint = state_path(args.output, path.stem)
            if checkpoint.is_file() and not args.resume:
                raise ConfigError(
                    f"{checkpoint} exists; add --resume to go on from it, or remove it to start "
                    "again"
                )
        shares = sum(recipe.loop.share for recipe in recipes)
        for path, recipe in zip(paths, recipes, strict=True):
            minutes = args.minutes and args.minutes * recipe.loop.share / shares
            if not train_stage(recipe, args.data, cache, args.output, path.stem, minutes):
                print(
                    f"{path.stem}: stopped by a signal; the same command with --resume goes on",
                    file=sys.stderr,
                )
                return SIGNALLED + StopRequest.last
    # Errors of the configuration, the data, the model folder and checkpoints are ValueErrors.
    except (TrainingError, ValueError, OSError) as error:
        print(f"magicfuse train: {error}", file=sys.stderr)
        return FAILED
    return DONE


def _config(args: argparse.Namespace) -> Path:
    if args.minutes is not None and not (args.stage == "all" and 0.0 < args.minutes < math.inf):
        raise ValueError(
            f"--minutes is {args.minutes:g} for stage {args.stage!r}; accepted: more than 0, for "
            "`all` alone"
        )
    if args.config is not None:
        return Path(args.config)
    if args.stage != "all" or args.size is None:
        raise ValueError("--config is missing; give it, or --size for `all`")
    return share_dir() / "config" / "training" / str(args.size)
