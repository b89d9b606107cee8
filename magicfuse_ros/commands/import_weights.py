"""`magicfuse import-weights`: the authors' released weights into a weights folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

HELP = "convert the authors' released weights (four .pth files) into a model folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--ae", type=Path, required=True, help="the autoencoder: ae.pth")
    parser.add_argument("--ikr", type=Path, required=True, help="Ψ, the IKR branch: ikr.pth")
    parser.add_argument("--ckg", type=Path, required=True, help="Φ, the CKG branch: ckg.pth")
    parser.add_argument("--mkf", type=Path, required=True, help="F & S, the MKF branch: model.pth")
    parser.add_argument(
        "--output", type=Path, required=True, help="the new model folder (Φ alone takes 2 GB)"
    )


def run(args: argparse.Namespace) -> int:
    """Convert; returns 0 when complete, 1 with a message on error."""
    from magicfuse_ros.model.checkpoint import CheckpointError
    from magicfuse_ros.model.release import ReleaseFiles, import_release

    files = ReleaseFiles(ae=args.ae, ikr=args.ikr, ckg=args.ckg, mkf=args.mkf)
    try:
        import_release(files, args.output, print)
    except CheckpointError as error:
        print(f"magicfuse import-weights: {error}", file=sys.stderr)
        return 1
    print(f"written to {args.output}; use it as the model of `magicfuse fuse` or the node")
    return 0
