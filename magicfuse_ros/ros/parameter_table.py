"""A table of parameters as declared on a node: start-up values, live changes, refusals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import ParameterDescriptor, SetParametersResult
from rclpy.node import Node
from rclpy.parameter import Parameter

from magicfuse_ros.ros.parameter_spec import ParameterError, ParameterSpec

T = TypeVar("T")


class ParameterTable(Generic[T]):
    """Declares every parameter and guards its changes; used in the executor thread.

    A start-up value that is not accepted does not stop the node from starting: it is remembered,
    and `settings` raises until a good value is set.

    Parameters
    ----------
    node
        Where they are declared.
    table
        The parameters.
    read
        Makes the settings of a value for each parameter; raises `ParameterError`.
    refuse
        Gets (names that would change, all values as they would be); returns why not, or an empty
        string. A `ValueError` that it raises is a reason too.
    changed
        Called after parameters were set.
    """

    def __init__(
        self,
        node: Node,
        table: Sequence[ParameterSpec],
        read: Callable[[Mapping[str, object]], T],
        *,
        refuse: Callable[[set[str], Mapping[str, object]], str],
        changed: Callable[[], None],
    ) -> None:
        self._node, self._read, self._refuse, self._changed = node, read, refuse, changed
        self._specs = {spec.name: spec for spec in table}
        self._bad_values: dict[str, ParameterError] = {}
        for spec in table:
            self._declare(spec)
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)

    def settings(self) -> T:
        """Return the values in force.

        Raises
        ------
        ParameterError
            A value is not accepted; the message names every one.
        """
        if self._bad_values:
            raise ParameterError("; ".join(str(error) for error in self._bad_values.values()))
        return self._read(self._values())

    def _values(self) -> dict[str, object]:
        return {name: self._node.get_parameter(name).value for name in self._specs}

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
            parameter.name: parameter.value
            for parameter in parameters
            if parameter.name in self._specs
        }
        changes = {name for name in ours if ours[name] != values[name]}
        try:
            for name, value in ours.items():
                self._specs[name].check(value)
            reason = self._refuse(changes, values | ours)
        except ValueError as error:
            reason = str(error)
        return SetParametersResult(successful=not reason, reason=reason)

    def _after_set(self, parameters: list[Parameter[Any]]) -> None:
        for parameter in parameters:
            self._bad_values.pop(parameter.name, None)
        if any(parameter.name in self._specs for parameter in parameters):
            self._changed()
