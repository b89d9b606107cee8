"""What a bag looks like from outside; told without the library that reads it."""

from __future__ import annotations

from pathlib import Path

SUFFIXES = (".mcap", ".db3")
"""How a bag's files of messages end."""


def is_bag(path: Path) -> bool:
    """Whether `path` looks like a bag (its content is not checked)."""
    if path.is_dir():
        return any(
            file.name == "metadata.yaml" or file.suffix in SUFFIXES for file in path.iterdir()
        )
    return path.suffix in SUFFIXES
