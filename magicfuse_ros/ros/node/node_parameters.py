"""`fuse_node`'s parameters as declared on the node."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from rclpy.node import Node

from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.node.parameters import PARAMETERS, Settings
from magicfuse_ros.ros.parameter_table import ParameterTable


class NodeParameters(ParameterTable[Settings]):
    """See `ParameterTable`.

    Parameters
    ----------
    node
        Where they are declared.
    refuse
        Gets (names that would change, the new id map); returns why not, or an empty string.
    changed
        Called after parameters were set.
    """

    def __init__(
        self,
        node: Node,
        *,
        refuse: Callable[[set[str], IdMap], str],
        changed: Callable[[], None],
    ) -> None:
        def check(names: set[str], values: Mapping[str, object]) -> str:
            return refuse(names, IdMap.parse(str(values["semantic.id_map"])))

        super().__init__(node, PARAMETERS, Settings.from_values, refuse=check, changed=changed)
