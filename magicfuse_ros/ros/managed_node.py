"""What the package's nodes have in common: lifecycle, autostart, ~/enable, diagnostics, stop."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool

from magicfuse_ros.ros import dds, diagnostics, graph
from magicfuse_ros.ros.ledger import DISABLED, Ledger
from magicfuse_ros.ros.node_input import NodeInput
from magicfuse_ros.ros.parameter_table import ParameterError, ParameterSpec, ParameterTable
from magicfuse_ros.ros.statistics import Recent, Timings

T = TypeVar("T")
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE

_NUMBER = re.compile(r"\d+")

TICK_S = 1.0
"""Seconds between two rounds of a node's checks and diagnostics."""


class ManagedNode(LifecycleNode, ABC, Generic[T]):
    """A lifecycle node with parameters, ~/enable and diagnostics; subclasses do the node's work.

    Parameters
    ----------
    stop_requested
        Returns whether the process was asked to stop; work that takes long has to check it.
    node_arguments
        Passed to `rclpy.lifecycle.LifecycleNode`, such as `namespace` or `parameter_overrides`.

    Attributes
    ----------
    parameters
        The node's table of parameters, of its class.
    abandoned
        True once a thread did not come back from native code in time and was left running.
    memory_warning
        A warning if shared memory was full when this process began, which then has no segment of
        it; else empty.
    """

    parameters: ClassVar[Sequence[ParameterSpec]]

    def __init__(
        self, name: str, *, stop_requested: Callable[[], bool], **node_arguments: Any
    ) -> None:
        super().__init__(name, **node_arguments)
        self.abandoned, self.memory_warning = False, ""
        self._stop_requested = stop_requested
        self._state, self._error, self._enabled = "unconfigured", "", True
        self._input: NodeInput | None = None
        self._warned_of: set[str] = set()
        self._account, self._timings, self._recent = Ledger(), Timings(), Recent()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock, so that diagnostics go on while simulated time stands still.
        self.create_timer(TICK_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(SetBool, "~/enable", self._on_enable)
        self._live = {spec.name for spec in self.parameters if spec.live}
        self._table = ParameterTable(
            self, self.parameters, self._read, refuse=self._refuse, changed=self._adopt
        )

    def autostart(self) -> None:
        """Configure and activate, if the parameter `autostart` says so."""
        if not self.get_parameter("autostart").value:
            self.get_logger().info("Waiting to be configured: autostart is false")
        elif self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def stop(self) -> None:
        """Shut the node down, whatever state it is in."""
        self.get_logger().info("Stopping")
        if rclpy.ok() and self._state != "finalized":
            self.trigger_shutdown()
        self._release()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the parameters, and make what the node needs before it subscribes."""
        self._state, self._error = "configuring", ""
        try:
            problem = self._configure(self._table.settings())
        except ParameterError as error:
            problem = str(error)
        if not problem:
            self._state = "inactive"
            return SUCCESS
        self._release()
        if self._stopping():
            self._state = state.label
            self.get_logger().info(problem[0].upper() + problem[1:])
            return FAILURE
        return self._fail("configure", problem, state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the input."""
        try:
            what = self._activate(self._table.settings())
        except ParameterError as error:
            return self._fail("activate", str(error), state)
        self._timings.clear()
        self._recent.restart(self._account.account())
        self._state, self._error = "active", ""
        self.get_logger().info(f"Active: {what}")
        return SUCCESS

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; nothing is published afterwards."""
        self._pause()
        self._forget_destroyed()
        self._state = "inactive"
        return SUCCESS

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Release what configuring made."""
        self._release()
        self._forget_destroyed()
        self._state, self._error = "unconfigured", ""
        return SUCCESS

    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate and clean up, as far as the node's state requires it."""
        self._release()
        self._state, self._error = "finalized", ""
        self._tick()
        return SUCCESS

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Recover from a transition that raised: back to unconfigured."""
        self._release()
        self._state, self._error = "unconfigured", "a transition failed unexpectedly"
        self.get_logger().error("A transition failed unexpectedly; the node is unconfigured again")
        return SUCCESS

    @staticmethod
    @abstractmethod
    def _read(values: Mapping[str, object]) -> T:
        """Return the settings of the parameters' values; raise `ParameterError`."""

    @abstractmethod
    def _configure(self, settings: T) -> str:
        """Make what the node needs before it subscribes; return what went wrong, or nothing."""

    @abstractmethod
    def _activate(self, settings: T) -> str:
        """Set `_input`, and return what is done now; raise `ParameterError` if that cannot be."""

    def _pause(self) -> None:
        """Unsubscribe, if subscribed."""
        if self._input is not None:
            self._input.close()
            self._input = None

    @abstractmethod
    def _release(self) -> None:
        """Pause, and release what configuring made, if anything."""

    def _check(self, names: set[str], values: Mapping[str, object]) -> None:
        """Raise a `ValueError` unless the values may be set, of which `names` would change."""

    @abstractmethod
    def _adopt(self) -> None:
        """Adopt the live parameters, which may have changed."""

    def _will_read(self) -> Mapping[str, type[Any]]:
        """Return what the node subscribes to once activated: resolved topic → message class."""
        return {}

    def _every_second(self) -> None:
        """Do the node's own checks, once a second before the diagnostics are published."""
        if self._input is not None:
            self._input.refresh()

    def _health(self) -> diagnostics.Health:
        """Return what decides the level of the diagnostics."""
        given = self._input
        return diagnostics.Health(
            state=self._state,
            enabled=self._enabled,
            error=self._error,
            warnings=() if given is None or not given.warning else (given.warning,),
            input_topic="" if given is None else given.topic,
            publishers=0 if given is None else given.publishers,
            silent_s=0.0 if given is None else given.silent_s,
            dropped=self._recent.dropped(),
        )

    def _facts(self) -> dict[str, object]:
        """Return the node's own keys of the diagnostics."""
        facts: dict[str, object] = {"ages_unknown": self._timings.ages_unknown}
        if self._input is not None:
            facts["input_topic"] = self._input.topic
            facts["input_reliability"] = self._input.reliability.name.lower()
            facts["input_publishers"] = self._input.publishers
        return facts

    def _stopping(self) -> bool:
        return self._stop_requested() or not rclpy.ok()

    def _fail(self, what: str, problem: str, state: LifecycleState) -> TransitionCallbackReturn:
        self._error, self._state = f"cannot {what}: {problem}", state.label
        self.get_logger().error(
            f"Cannot {what}: {problem.rstrip('.')}. The node stays {state.label}; when that is "
            f"mended, run: ros2 lifecycle set {self.get_fully_qualified_name()} {what}"
        )
        return FAILURE

    def _refuse(self, names: set[str], values: Mapping[str, object]) -> str:
        fixed = names - self._live
        if fixed and self._state == "active":
            return (
                f"{', '.join(sorted(fixed))} needs a reconfigure: deactivate and clean up first "
                f"(ros2 lifecycle set {self.get_fully_qualified_name()} deactivate, then cleanup)"
            )
        self._check(names, values)
        return ""

    def _forget_destroyed(self) -> None:
        """Drop the dead references that rclpy keeps of destroyed entities, which are a leak."""
        entities = self.default_callback_group.entities
        entities -= {reference for reference in entities if reference() is None}

    def warn_once(self, text: str) -> None:
        """Log a standing warning the first time; texts that differ only in numbers are the same.

        An empty text is ignored. The diagnostics may repeat the warning.
        """
        kind = _NUMBER.sub("", text)
        if text and kind not in self._warned_of:
            self._warned_of.add(kind)
            self.get_logger().warning(text[0].upper() + text[1:])

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._enabled = request.data
        if self._input is not None and not request.data:
            self._input.drop_waiting(DISABLED)
        response.success = True
        response.message = "enabled" if request.data else "paused"
        self.get_logger().info(f"{response.message.capitalize()} by ~/enable")
        return response

    def _tick(self) -> None:
        """Do the node's checks and publish its diagnostics, once a second."""
        self._every_second()
        account = self._account.account()
        self._recent.add(account)
        health = self._health()
        memory = self.memory_warning or dds.shared_memory_warning()
        around = [text for text in (*graph.wrong_types(self, self._will_read()), memory) if text]
        health = replace(health, warnings=(*health.warnings, *around))
        for text in around:
            self.warn_once(text)
        level, text = diagnostics.judge(health)
        facts = {"state": self._state, "enabled": self._enabled, **self._facts()}
        values = diagnostics.key_values(
            facts, account, self._recent.rates(), self._timings.summaries()
        )
        self._diagnostics.publish(
            diagnostics.message(
                self.get_fully_qualified_name(), self.get_clock().now(), level, text, values
            )
        )
