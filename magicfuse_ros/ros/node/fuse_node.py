"""`fuse_node`, the program: `python -m magicfuse_ros.ros.node.fuse_node`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from magicfuse_ros.ros.program import run

if TYPE_CHECKING:
    from magicfuse_ros.ros.node.fuse_lifecycle import FuseNode
    from magicfuse_ros.ros.node.session import EngineFactory


def main(argv: Sequence[str] | None = None, engine_factory: EngineFactory | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; see `program.run`, and `FuseNode` for the factory."""
    return run("fuse_node", _load, argv, engine_factory=engine_factory)


def _load() -> type[FuseNode]:
    from magicfuse_ros.ros.node.fuse_lifecycle import FuseNode

    return FuseNode


if __name__ == "__main__":
    sys.exit(main())
