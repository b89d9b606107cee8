"""What the package's nodes have in common: lifecycle, autostart, ~/enable, diagnostics, stop."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from std_srvs.srv import SetBool

from magicfuse_ros.ros import dds, diagnostics, graph
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.statistics import Recent, Timings

SUCCESS = TransitionCallbackReturn.SUCCESS

_NUMBER = re.compile(r"\d+")

TICK_S = 1.0
"""Seconds between two rounds of a node's checks and diagnostics."""


class ManagedNode(LifecycleNode, ABC):
    """A lifecycle node that publishes diagnostics; subclasses configure and activate it.

    Parameters
    ----------
    name
        The node's name.
    stop_requested
        Returns whether the process was asked to stop; work that takes long has to check it.
    node_arguments
        Passed to `rclpy.lifecycle.LifecycleNode`, such as `namespace` or `parameter_overrides`.

    Attributes
    ----------
    abandoned
        True once a thread did not come back from native code in time and was left running.
    memory_warning
        A warning if shared memory was full when this process began, which then has no segment of
        it; else empty.
    """

    def __init__(
        self, name: str, *, stop_requested: Callable[[], bool], **node_arguments: Any
    ) -> None:
        super().__init__(name, **node_arguments)
        self.abandoned, self.memory_warning = False, ""
        self._stop_requested = stop_requested
        self._state, self._error = "unconfigured", ""
        self._warned_of: set[str] = set()
        self._account, self._timings, self._recent = Ledger(), Timings(), Recent()
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # A steady clock, so that diagnostics go on while simulated time stands still.
        self.create_timer(TICK_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(SetBool, "~/enable", self._on_enable)

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

    @property
    @abstractmethod
    def _enabled(self) -> bool:
        """Whether ~/enable is on."""

    @_enabled.setter
    @abstractmethod
    def _enabled(self, enabled: bool) -> None:
        """Pause or go on."""

    @abstractmethod
    def _pause(self) -> None:
        """Unsubscribe, if subscribed."""

    @abstractmethod
    def _release(self) -> None:
        """Pause, and release what configuring made, if anything."""

    def _will_read(self) -> Mapping[str, type[Any]]:
        """Return what the node subscribes to once activated: resolved topic → message class."""
        return {}

    @abstractmethod
    def _every_second(self) -> None:
        """Do the node's own checks, once a second before the diagnostics are published."""

    @abstractmethod
    def _health(self) -> diagnostics.Health:
        """Return what decides the level of the diagnostics."""

    @abstractmethod
    def _facts(self) -> dict[str, object]:
        """Return the node's own keys of the diagnostics."""

    def _fail(self, what: str, problem: str, state: LifecycleState) -> TransitionCallbackReturn:
        self._error, self._state = f"cannot {what}: {problem}", state.label
        self.get_logger().error(
            f"Cannot {what}: {problem.rstrip('.')}. The node stays {state.label}; when that is "
            f"mended, run: ros2 lifecycle set {self.get_fully_qualified_name()} {what}"
        )
        return TransitionCallbackReturn.FAILURE

    def _why_not_now(self, fixed: set[str]) -> str:
        """Say why parameters that are not live cannot change now; empty if they can."""
        if not fixed or self._state != "active":
            return ""
        return (
            f"{', '.join(sorted(fixed))} needs a reconfigure: deactivate and clean up first "
            f"(ros2 lifecycle set {self.get_fully_qualified_name()} deactivate, then cleanup)"
        )

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
                self.get_fully_qualified_name(),
                self.get_clock().now(),
                level,
                text,
                values,
            )
        )
