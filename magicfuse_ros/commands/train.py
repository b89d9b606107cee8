"""`magicfuse train`: trains one stage, or all of them in order."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magicfuse_ros.commands.exit_status import DONE, FAILED, SIGNALLED

HELP = "train a stage, all of them in order, or distill to few steps"

STAGES = ("autoencoder", "psi", "phi", "mkf", "refine", "all", "distill")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument(
        "--config",
        type=Path,
        required=True,
        help="the stage's YAML file; for `all` their folder, as config/training/tiny",
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

    paths = recipe_files(args.config) if args.stage == "all" else [args.config]
    cache = args.cache or args.output / "cache"
    try:
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
        for path, recipe in zip(paths, recipes, strict=True):
            if not train_stage(recipe, args.data, cache, args.output, path.stem):
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
