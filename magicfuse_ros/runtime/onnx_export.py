"""A model's parts as ONNX files, for those who bring a runtime of their own."""

from __future__ import annotations

import importlib.util
import logging
import os
import tempfile
from pathlib import Path

import torch

from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.runtime.backends import Part, parity
from magicfuse_ros.runtime.backends.openvino import read_network
from magicfuse_ros.runtime.contract import EngineError, Progress
from magicfuse_ros.runtime.heartbeat import heartbeat
from magicfuse_ros.runtime.parts import INPUTS, OUTPUTS, parts_of

NEEDED = ("onnx", "onnxscript", "openvino")
"""Packages that the export and its check need: the extra `onnx`."""

MOST_BYTES = 2**30
"""Weights above this size go into a file beside the ONNX file, which may not exceed 2 GiB."""


def export_onnx(
    model: MagicFuse, size: tuple[int, int], folder: Path, progress: Progress
) -> list[Path]:
    """Write one ONNX file a part, each read back and compared with PyTorch before it is kept.

    Parameters
    ----------
    size
        (height, width) of the input in pixels, multiples of the model's `multiple_of`; the files
        are for this size and batch 1.
    folder
        Where `encoder.onnx`, `psi.onnx` and so on go; made if it is missing.

    Returns
    -------
    list of Path
        The files; weights above `MOST_BYTES` are in `….onnx.data` beside them.

    Raises
    ------
    EngineError
        A package is missing, or a file does not give what the module gives.
    OSError
        The folder cannot be written.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise EngineError(
            f"{', '.join(missing)} is not installed; run: pip install {' '.join(NEEDED)}"
        )
    # The exporter warns about torchvision's operators, which no part uses.
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with heartbeat(progress) as tell:
        for name, part in parts_of(model, size, lambda tensor: tensor).items():
            tell(f"exporting {name}")
            with tempfile.TemporaryDirectory(dir=folder, prefix=".new-") as new:
                path = Path(new) / f"{name}.onnx"
                _export(part, path)
                result = read_network(path)(*part.inputs)
                apart = parity.check(f"{name} in ONNX", result, part.reference)
                for each in Path(new).iterdir():
                    os.replace(each, folder / each.name)  # noqa: PTH105 - onto the one before
            tell(f"{name}.onnx is {apart:.1e} of its values from PyTorch")
            files.append(folder / path.name)
    return files


def _export(part: Part, path: Path) -> None:
    weights = sum(each.numel() * each.element_size() for each in part.module.parameters())
    with torch.no_grad():
        torch.onnx.export(
            part.module,
            part.inputs,
            path,
            dynamo=True,
            verbose=False,
            input_names=INPUTS[part.name][: len(part.inputs)],
            output_names=OUTPUTS[part.name],
            external_data=weights > MOST_BYTES,
        )
