"""`fuse_node`, the program: `python -m magicfuse_ros.ros.node.fuse_node`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from magicfuse_ros.ros.program import run

if TYPE_CHECKING:
    from magicfuse_ros.ros.managed_node import ManagedNode
    from magicfuse_ros.ros.node.session import EngineFactory
    from magicfuse_ros.ros.parameter_table import ParameterSpec


def main(argv: Sequence[str] | None = None, engine_factory: EngineFactory | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status, see `program.run`.

    Parameters
    ----------
    argv
        Command line with its program name; None for `sys.argv`.
    engine_factory
        See `FuseNode`.
    """

    def make(stop_requested: Callable[[], bool]) -> ManagedNode:
        from magicfuse_ros.ros.node.fuse_lifecycle import FuseNode

        return FuseNode(engine_factory=engine_factory, stop_requested=stop_requested)

    return run("fuse_node", make, _parameters, argv)


def _parameters() -> Sequence[ParameterSpec]:
    from magicfuse_ros.ros.node.parameters import PARAMETERS

    return PARAMETERS


if __name__ == "__main__":
    sys.exit(main())
