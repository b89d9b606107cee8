"""The parameter table as declared on a node: start-up values, live changes, refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from magicfuse_ros.ros.id_map import IdMap
from magicfuse_ros.ros.parameters import PARAMETERS, SPECS, ParameterError, ParameterSpec, Settings


class NodeParameters:
    """Declares every parameter and guards its changes; used in the executor thread.

    A start-up value that is not accepted does not stop the node from starting: it is remembered,
    and `settings` raises until a good value is set.

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
        self._node, self._refuse, self._changed = node, refuse, changed
        self._bad_values: dict[str, ParameterError] = {}
        for spec in PARAMETERS:
            self._declare(spec)
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)

    def settings(self) -> Settings:
        """Return the values in force.

        Raises
        ------
        ParameterError
            A value is not accepted; the message names every one.
        """
        if self._bad_values:
            raise ParameterError("; ".join(str(error) for error in self._bad_values.values()))
        return Settings.from_values(self._values())

    def _values(self) -> dict[str, object]:
        return {spec.name: self._node.get_parameter(spec.name).value for spec in PARAMETERS}

    def _declare(self, spec: ParameterSpec) -> None:
        """Declare with the start-up value if it is accepted, else with the default."""
        # Untyped first: rclpy's own check of a start-up value ends the process without naming it.
        untyped = ParameterDescriptor(dynamic_typing=True)
        value: Any = self._node.declare_parameter(spec.name, spec.default, untyped).value
        self._node.undeclare_parameter(spec.name)
        try:
            spec.check(value)
        except ParameterError as error:
            self._bad_values[spec.name] = error
            value = spec.default
        self._node.declare_parameter(spec.name, value, spec.descriptor(), ignore_override=True)

    def _on_set(self, parameters: list[Parameter[Any]]) -> SetParametersResult:
        values = self._values()
        ours = {
            parameter.name: parameter.value for parameter in parameters if parameter.name in SPECS
        }
        try:
            for name, value in ours.items():
                SPECS[name].check(value)
            id_map = IdMap.parse(str(ours.get("semantic.id_map", values["semantic.id_map"])))
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        reason = self._refuse({name for name in ours if ours[name] != values[name]}, id_map)
        return SetParametersResult(successful=not reason, reason=reason)

    def _after_set(self, parameters: list[Parameter[Any]]) -> None:
        for parameter in parameters:
            self._bad_values.pop(parameter.name, None)
        if any(parameter.name in SPECS for parameter in parameters):
            self._changed()
