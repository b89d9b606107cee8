"""`semantic_cloud`, the program: `python -m magicfuse_ros.ros.cloud.semantic_cloud`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from magicfuse_ros.ros.program import run

if TYPE_CHECKING:
    from magicfuse_ros.ros.cloud.cloud_lifecycle import SemanticCloudNode


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `program.run`."""
    return run("semantic_cloud", _load, argv)


def _load() -> type[SemanticCloudNode]:
    from magicfuse_ros.ros.cloud.cloud_lifecycle import SemanticCloudNode

    return SemanticCloudNode


if __name__ == "__main__":
    sys.exit(main())
