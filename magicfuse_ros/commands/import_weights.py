"""`magicfuse import-weights`: converts the authors' released weights into a weights folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magicfuse_ros.commands.exit_status import DONE, FAILED

HELP = "convert the authors' released weights (four .pth files) into a model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--ae", type=Path, required=True, help="the autoencoder: ae.pth")
    parser.add_argument("--ikr", type=Path, required=True, help="Ψ, the IKR branch: ikr.pth")
    parser.add_argument("--ckg", type=Path, required=True, help="Φ, the CKG branch: ckg.pth")
    parser.add_argument("--mkf", type=Path, required=True, help="F & S, the MKF branch: model.pth")
    parser.add_argument(
        "--output",
        type=Path,
        help="the new model folder; Φ alone takes 2 GB (default: magicfuse/models/paper in "
        "$XDG_DATA_HOME or ~/.local/share, where `--model paper` finds it)",
    )


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0 when complete, 2 with a message on error."""
    from magicfuse_ros.model.checkpoint import CheckpointError
    from magicfuse_ros.model.release import import_release
    from magicfuse_ros.model.sizes import PAPER
    from magicfuse_ros.resources import new_model_path

    files = {"ae": args.ae, "ikr": args.ikr, "ckg": args.ckg, "mkf": args.mkf}
    try:
        folder = args.output or new_model_path(PAPER.name)
        import_release(files, folder, print)
    except CheckpointError as error:
        print(f"magicfuse import-weights: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(
            f"magicfuse import-weights: {error.filename} cannot be written: {error.strerror}; give "
            "another folder with --output",
            file=sys.stderr,
        )
        return FAILED
    model = folder if args.output else PAPER.name
    print(f"written to {folder}; use it with `magicfuse fuse --model {model}` or as the node's")
    return DONE
