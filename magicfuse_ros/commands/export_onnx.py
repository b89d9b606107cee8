"""`magicfuse export-onnx`: writes a model's networks as ONNX files."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magicfuse_ros.commands.arguments import add_model_arguments
from magicfuse_ros.commands.exit_status import DONE, FAILED
from magicfuse_ros.commands.progress_line import say

HELP = "write a model's networks as ONNX files, for a runtime of your own"

_DETAILS = """
FOLDER gets encoder.onnx, psi.onnx, phi.onnx, fusion.onnx, decoder.onnx and, of a model that has R,
refiner.onnx, for one size of input and batch 1, with names after the paper's symbols. Each is read
back by OpenVINO and compared with PyTorch before it is kept. magicfuse_ros/model/sampler.py is how
they are run; noise and the timestep t are inputs. Needs: pip install onnx onnxscript openvino
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _DETAILS
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the files go")
    parser.add_argument("--overwrite", action="store_true", help="replace files that are there")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Export; returns 0 when complete, 2 with a message on error."""
    from magicfuse_ros.runtime.contract import EngineError, EngineSettings
    from magicfuse_ros.runtime.engine import load_model
    from magicfuse_ros.runtime.letterbox import Letterbox
    from magicfuse_ros.runtime.onnx_export import export_onnx
    from magicfuse_ros.runtime.parts import INPUTS
    from magicfuse_ros.whole_files import check_writable

    there = [path for path in (args.folder / f"{name}.onnx" for name in INPUTS) if path.exists()]
    if there and not args.overwrite:
        print(
            f"magicfuse export-onnx: {there[0]} exists; give another FOLDER, or --overwrite to "
            "replace it",
            file=sys.stderr,
        )
        return FAILED
    try:
        check_writable(args.folder)
        model = load_model(args.model or EngineSettings.model)
        resolution = args.resolution or model.config.resolution
        width, height = args.camera or resolution
        size = Letterbox.fitting((height, width), resolution, model.config.multiple_of).padded
        files = export_onnx(model, size, args.folder, say)
    except (EngineError, OSError) as error:
        print(f"magicfuse export-onnx: {error}", file=sys.stderr)
        return FAILED
    print(f"{len(files)} files for {size[1]}x{size[0]} in {args.folder}")
    return DONE
