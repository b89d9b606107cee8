"""`semantic_cloud`, the program: `python -m magicfuse_ros.ros.cloud.semantic_cloud`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from magicfuse_ros.ros.program import run

if TYPE_CHECKING:
    from magicfuse_ros.ros.managed_node import ManagedNode
    from magicfuse_ros.ros.parameter_table import ParameterSpec


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status, see `program.run`.

    Parameters
    ----------
    argv
        Command line with its program name; None for `sys.argv`.
    """

    def make(stop_requested: Callable[[], bool]) -> ManagedNode:
        from magicfuse_ros.ros.cloud.cloud_lifecycle import SemanticCloudNode

        return SemanticCloudNode(stop_requested=stop_requested)

    return run("semantic_cloud", make, _parameters, argv)


def _parameters() -> Sequence[ParameterSpec]:
    from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS

    return CLOUD_PARAMETERS


if __name__ == "__main__":
    sys.exit(main())
