"""`fuse_node`, the program: `python -m magicfuse_ros.ros.node.fuse_node`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from magicfuse_ros.ros.program import run

if TYPE_CHECKING:
    from magicfuse_ros.ros.node.fuse_lifecycle import FuseNode


def main(argv: Sequence[str] | None = None, **node_arguments: Any) -> int:
    """Run a `FuseNode` with these arguments until SIGINT or SIGTERM; see `program.run`."""
    return run("fuse_node", _load, argv, **node_arguments)


def _load() -> type[FuseNode]:
    from magicfuse_ros.ros.node.fuse_lifecycle import FuseNode

    return FuseNode


if __name__ == "__main__":
    sys.exit(main())
