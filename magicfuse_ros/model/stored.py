"""A weights folder whose networks are made only when somebody asks for one.

Where all networks are found compiled nobody does. Their classes then are never imported, nor the
library behind them, which is most of a start's seconds and a quarter of a node's memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from magicfuse_ros.hashing import file_hash
from magicfuse_ros.model import checkpoint
from magicfuse_ros.model.checkpoint import PARTS, CheckpointError

if TYPE_CHECKING:
    from magicfuse_ros.model.magicfuse import MagicFuse


class StoredModel:
    """What a runtime needs of a model: its settings, what names its weights, its networks.

    Parameters
    ----------
    folder
        `config.json` and one safetensors file a part.

    Attributes
    ----------
    folder, config, labels
        As opened; what becomes of the folder later does not change them.

    Raises
    ------
    CheckpointError
        The folder or a file is missing or corrupt. Whether the tensors fit the configuration shows
        when a network is made.
    LabelSetError
        The configuration names a label set that is unknown.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.config = checkpoint.read_config(self.folder)
        self.labels = checkpoint.read_labels(self.folder, self.config)
        for part in PARTS:
            checkpoint.check_file(self._path(part))
        self._weights: dict[str, str] = {}
        self._model: MagicFuse | None = None

    def weights(self, part: str) -> str:
        """Return the SHA-256 of a part's file; taken once, so it names what was opened."""
        if part not in self._weights:
            self._weights[part] = _hash(self._path(part))
        return self._weights[part]

    def module(self, part: str) -> nn.Module:
        """Return a network in evaluation mode, on the CPU; the first call makes all of them.

        Raises
        ------
        CheckpointError
            The files are damaged, do not fit the configuration, or are not those that were opened.
        """
        model = self._model  # which another thread may release
        if model is None:
            # Imported here only: see this file's first lines.
            from magicfuse_ros.model.magicfuse import MagicFuse

            with torch.inference_mode(
                mode=False
            ):  # whoever asks may be in it; weights outlive that
                model = MagicFuse.from_pretrained(self.folder)
            self._check_unchanged(model)
            self._model = model
        network: nn.Module = getattr(model, part)
        return network

    def release(self) -> None:
        """Let go of the networks; whoever asks again has them made again."""
        self._model = None

    def _check_unchanged(self, model: MagicFuse) -> None:
        """Refuse files that came later: a folder may be trained into while a node runs."""
        now = {part: _hash(self._path(part)) for part in self._weights}
        changed = [part for part, known in self._weights.items() if now[part] != known]
        if changed or model.config != self.config or model.labels != self.labels:
            path = self._path(changed[0]) if changed else self.folder / checkpoint.CONFIG_FILE
            raise CheckpointError(f"{path} has changed since it was opened; load the model again")

    def _path(self, part: str) -> Path:
        return checkpoint.part_path(self.folder, part)


def _hash(path: Path) -> str:
    try:
        return file_hash(path)
    except OSError as error:
        raise CheckpointError(
            f"weights file {path} cannot be read: {error.strerror}; copy the model folder again"
        ) from error
