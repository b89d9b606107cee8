"""One parameter of a node: its default, what is accepted, and its rclpy descriptor."""

from __future__ import annotations

from dataclasses import dataclass

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, ParameterType

Value = bool | int | float | str

_ROS_TYPES = {
    bool: ParameterType.PARAMETER_BOOL,
    int: ParameterType.PARAMETER_INTEGER,
    float: ParameterType.PARAMETER_DOUBLE,
    str: ParameterType.PARAMETER_STRING,
}
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
        May change while the node is active, between two frames; the others may not.
    """

    name: str
    default: Value
    description: str
    live: bool
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
        """Build what rclpy declares the parameter with."""
        descriptor = ParameterDescriptor(
            name=self.name, type=_ROS_TYPES[self.type], description=self.description
        )
        # `check` guards the type: rclpy refuses 1 for 1.0, and "expected '3' got '2'" helps nobody.
        descriptor.dynamic_typing = True
        constraints = [f"one of: {self.accepted}"] if self.choices else []
        if not self.live:
            constraints.append("cannot change while the node is active")
        descriptor.additional_constraints = "; ".join(constraints)
        if self.low is not None and self.high is not None:
            if self.type is int:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.low), to_value=int(self.high), step=0)
                ]
            else:
                descriptor.floating_point_range = [
                    FloatingPointRange(
                        from_value=float(self.low), to_value=float(self.high), step=0.0
                    )
                ]
        return descriptor
