"""A node's parameters: one table of them, checked at the start and whenever one is set."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

T = TypeVar("T")
Value = bool | int | float | str

_TYPE_NAMES = {bool: "true or false", int: "an integer", float: "a decimal number", str: "a string"}


class ParameterError(ValueError):
    """A parameter value that is not accepted; the message names it and what is accepted."""


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """One row of the table.

    Attributes
    ----------
    name, default, description
        As `ros2 param describe` shows them; the default's Python type is the parameter's type.
    low, high
        Inclusive range of a number; None for strings and booleans.
    choices
        The accepted strings; empty where any string may be given.
    live
        Whether it may change while the node is active, between two frames.
    """

    name: str
    default: Value
    description: str
    live: bool = False
    low: int | float | None = None
    high: int | float | None = None
    choices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.check(self.default)

    @property
    def type(self) -> type[Value]:
        """`bool`, `int`, `float` or `str`."""
        return type(self.default)

    @property
    def accepted(self) -> str:
        """The accepted values, in words."""
        if self.choices:
            return ", ".join(self.choices)
        if self.low is not None:
            return f"{_TYPE_NAMES[self.type]} from {self.low} to {self.high}"
        return _TYPE_NAMES[self.type]

    @property
    def default_text(self) -> str:
        """The default as it is typed after `name:=`."""
        return str(self.default).lower() if self.type is bool else str(self.default)

    def understood(self, value: Any) -> Any:
        """Return a value as it was meant: YAML reads the words on and off as true and false."""
        word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
        return word if word in self.choices else value

    def check(self, value: object) -> None:
        """Raise `ParameterError` unless `value` has this parameter's type and range.

        A decimal number may be given as an integer.
        """
        right_type = type(value) is self.type or (self.type is float and type(value) is int)
        accepted = right_type and (not self.choices or value in self.choices)
        if accepted and self.low is not None and self.high is not None:
            accepted = self.low <= value <= self.high  # type: ignore[operator]  # False for NaN
        if not accepted:
            raise ParameterError(f"{self.name} is {value!r}; accepted: {self.accepted}")

    def descriptor(self) -> ParameterDescriptor:
        """Build the descriptor with which rclpy declares the parameter."""
        descriptor = ParameterDescriptor(
            name=self.name,
            type=Parameter.Type.from_parameter_value(self.default).value,
            description=self.description,
        )
        # `check` guards the type: rclpy refuses 1 for 1.0, and "expected '3' got '2'" helps nobody.
        descriptor.dynamic_typing = True
        constraints = [f"one of: {self.accepted}"] if self.choices else []
        if not self.live:
            constraints.append("cannot change while the node is active")
        descriptor.additional_constraints = "; ".join(constraints)
        if self.low is not None and self.high is not None:
            if self.type is int:
                low, high = int(self.low), int(self.high)
                descriptor.integer_range = [IntegerRange(from_value=low, to_value=high)]
            else:
                least, most = float(self.low), float(self.high)
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=least, to_value=most)
                ]
        return descriptor


AUTOSTART = ParameterSpec(
    name="autostart",
    default=True,
    description="Configure and activate at start; false waits for a lifecycle manager.",
)
"""A parameter of every node."""


class ParameterTable(Generic[T]):
    """Declares every parameter and guards its changes; used in the executor thread.

    A start-up value that is not accepted does not stop the node from starting: it is remembered,
    and `settings` raises until a good value is set. A start-up value for a parameter that the node
    does not have is named in a warning, with the parameter whose name is nearest.

    Parameters
    ----------
    read
        Makes the settings from the values of all parameters; raises `ParameterError`.
    refuse
        Called with the names that would change, and all values as they would be. It returns, or
        raises as a `ValueError`, the reason to refuse the change; an empty string accepts it.
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
        self._warn_of_unknown()
        node.add_pre_set_parameters_callback(self._as_meant)
        node.add_on_set_parameters_callback(self._on_set)
        node.add_post_set_parameters_callback(self._after_set)

    def settings(self) -> T:
        """Return the values in force; raise a `ParameterError` that names every bad one."""
        if self._bad_values:
            raise ParameterError("; ".join(str(error) for error in self._bad_values.values()))
        return self._read(self._values())

    def _values(self) -> dict[str, object]:
        return {name: self._node.get_parameter(name).value for name in self._specs}

    def _declare(self, spec: ParameterSpec) -> None:
        """Declare with the start-up value if it is accepted, else with the default."""
        # Untyped first: rclpy's own check of a start-up value ends the process without naming it.
        untyped = ParameterDescriptor(dynamic_typing=True)
        given: Any = self._node.declare_parameter(spec.name, spec.default, untyped).value
        value = spec.understood(given)
        self._node.undeclare_parameter(spec.name)
        try:
            spec.check(value)
        except ParameterError as error:
            self._bad_values[spec.name] = error
            value = spec.default
        self._node.declare_parameter(spec.name, value, spec.descriptor(), ignore_override=True)

    def _warn_of_unknown(self) -> None:
        """Name the start-up values that no parameter takes; ROS itself drops them silently."""
        # rclpy has no public way to the overrides that does not declare them.
        for name in self._node._parameter_overrides:  # noqa: SLF001
            if self._node.has_parameter(name) or name.startswith("qos_overrides."):
                continue
            nearest = difflib.get_close_matches(name, self._specs, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else "see --help for those it has"
            self._node.get_logger().warning(
                f"Parameter {name} is ignored: the node has none of that name; {hint}"
            )

    def _as_meant(self, parameters: list[Parameter[Any]]) -> list[Parameter[Any]]:
        return [
            Parameter(each.name, value=self._specs[each.name].understood(each.value))
            if each.name in self._specs
            else each
            for each in parameters
        ]

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
