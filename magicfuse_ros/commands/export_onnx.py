"""`magicfuse export-onnx`: a model's networks as ONNX files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magicfuse_ros.commands.arguments import add_model_arguments

HELP = "write a model's networks as ONNX files, for a runtime of your own"

_DETAILS = """
FOLDER gets encoder.onnx, psi.onnx, phi.onnx, fusion.onnx and decoder.onnx, for one size of input
and batch 1, with names after the paper's symbols. Each is read back by OpenVINO and compared with
PyTorch before it is kept. magicfuse_ros/model/sampler.py is how they are run; noise and the
timestep t are inputs. Needs: pip install onnx onnxscript openvino
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _DETAILS
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the files go")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Export; returns 0 when complete, 1 with a message on error."""
    from magicfuse_ros.runtime.contract import EngineError, EngineSettings
    from magicfuse_ros.runtime.engine import load_model
    from magicfuse_ros.runtime.letterbox import Letterbox
    from magicfuse_ros.runtime.onnx_export import export_onnx

    try:
        model = load_model(args.model or EngineSettings.model)
        resolution = args.resolution or model.config.resolution
        width, height = args.camera or resolution
        size = Letterbox.fitting((height, width), resolution, model.config.multiple_of).padded
        files = export_onnx(model, size, args.folder, _say)
    except (EngineError, OSError) as error:
        print(f"magicfuse export-onnx: {error}", file=sys.stderr)
        return 1
    print(f"{len(files)} files for {size[1]}x{size[0]} in {args.folder}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
