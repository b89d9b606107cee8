"""`fuse_node`: a managed node that turns a camera's images into MagImgs and semantics."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from std_srvs.srv import SetBool

from magicfuse_ros.ros import diagnostics
from magicfuse_ros.ros.id_map import IdMap
from magicfuse_ros.ros.intake import Intake
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.node_parameters import NodeParameters
from magicfuse_ros.ros.parameters import SPECS, ParameterError
from magicfuse_ros.ros.session import EngineFactory, Session
from magicfuse_ros.ros.spinning import StopRequest, make_executor, spin_until
from magicfuse_ros.ros.statistics import Recent, Timings

_SUCCESS = TransitionCallbackReturn.SUCCESS


class FuseNode(LifecycleNode):
    """The node. Its executor thread moves messages and never computes.

    Parameters
    ----------
    engine_factory
        Makes the engine, in the worker thread; by default `runtime.engine.load_engine`.
    stop_requested
        Polled while the engine loads, so that a stop need not wait for it.
    node_arguments
        For `rclpy.lifecycle.LifecycleNode`, such as `namespace` or `parameter_overrides`.

    Attributes
    ----------
    abandoned
        True once an engine did not come back from native code in time: its thread still runs.
    """

    def __init__(
        self,
        *,
        engine_factory: EngineFactory | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
        **node_arguments: Any,
    ) -> None:
        super().__init__("fuse_node", **node_arguments)
        self.abandoned = False
        self._engine_factory, self._stop_requested = engine_factory, stop_requested
        self._state, self._error = "unconfigured", ""
        self._session: Session | None = None
        self._account, self._timings, self._recent = Ledger(), Timings(), Recent()
        self._intake = Intake(self, self._account)
        self._node_parameters = NodeParameters(self, refuse=self._refuse, changed=self._adopt)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # Steady: diagnostics go on while simulated time stands still.
        self.create_timer(1.0, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self.create_service(SetBool, "~/enable", self._on_enable)

    def autostart(self) -> None:
        """Configure and activate, if the parameter `autostart` says so."""
        if not self.get_parameter("autostart").value:
            self.get_logger().info("Waiting to be configured: autostart is false")
        elif self.trigger_configure() == _SUCCESS:
            self.trigger_activate()

    def stop(self) -> None:
        """Shut down, from whatever state it is in."""
        self.get_logger().info("Stopping")
        if rclpy.ok() and self._state != "finalized":
            self.trigger_shutdown()
        self._release()

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load and warm up the engine in the worker thread, showing progress; make the outputs."""
        self._state, self._error = "configuring", ""
        try:
            settings = self._node_parameters.settings()
        except ParameterError as error:
            return self._fail("configure", str(error), state)
        self._session = Session(
            self,
            settings,
            self._engine_factory,
            account=self._account,
            timings=self._timings,
            camera_info=lambda: self._intake.camera_info,
        )
        problem = self._session.load(
            stop_requested=lambda: self._stop_requested() or not rclpy.ok(),
            every_second=self._tick,
        )
        if problem:
            self._release()
            return self._fail("configure", problem, state)
        self._state = "inactive"
        return _SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the camera."""
        session = self._session
        if session is None or session.engine is None:
            return self._fail("activate", "it is not configured", state)
        try:
            settings = self._node_parameters.settings()
            changed = settings.needing_reconfigure(session.settings)
            if changed:
                raise ParameterError(f"{', '.join(changed)} changed; clean up and configure first")
            table = settings.id_map.table(session.engine.labels.names())
        except ValueError as error:
            return self._fail("activate", str(error), state)
        session.pipeline.settings = settings
        session.outputs.publish_labels(session.engine.labels.names(), table)
        self._timings.clear()
        self._recent.restart(self._account.account())
        session.pipeline.active = True
        subscriptions = self._intake.open(session.worker.mailbox, settings)
        self._state, self._error = "active", ""
        self.get_logger().info(
            f"Active: {subscriptions.topic}, model {settings.model}"
            f"{'' if session.engine.trained else ' (untrained)'}, "
            f"backend {session.engine.backend_name}"
        )
        return _SUCCESS

    def on_deactivate(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe; nothing is published afterwards."""
        self._pause()
        self._state = "inactive"
        return _SUCCESS

    def on_cleanup(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Close the engine."""
        self._release()
        self._state, self._error = "unconfigured", ""
        return _SUCCESS

    def on_shutdown(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Deactivate and clean up, as far as there is anything."""
        self._release()
        self._state, self._error = "finalized", ""
        self._tick()
        return _SUCCESS

    def on_error(self, _state: LifecycleState) -> TransitionCallbackReturn:
        """Recover from a transition that raised: back to unconfigured."""
        self._release()
        self._state, self._error = "unconfigured", "a transition failed unexpectedly"
        self.get_logger().error("A transition failed unexpectedly; the node is unconfigured again")
        return _SUCCESS

    def _fail(self, what: str, problem: str, state: LifecycleState) -> TransitionCallbackReturn:
        self._error, self._state = f"cannot {what}: {problem}", state.label
        self.get_logger().error(
            f"Cannot {what}: {problem.rstrip('.')}. The node stays {state.label}; when that is "
            f"mended, run: ros2 lifecycle set {self.get_fully_qualified_name()} {what}"
        )
        return TransitionCallbackReturn.FAILURE

    def _pause(self) -> None:
        if self._session is not None:
            self._session.pipeline.active = False
            self._intake.close()
            self._session.pause()

    def _release(self) -> None:
        self._pause()
        if self._session is not None:
            self.abandoned |= not self._session.close()
            self._session = None

    def _on_enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._intake.enabled = request.data
        response.success = True
        response.message = "enabled" if request.data else "paused"
        self.get_logger().info(f"{response.message.capitalize()} by ~/enable")
        return response

    def _refuse(self, names: set[str], id_map: IdMap) -> str:
        fixed = sorted(name for name in names if not SPECS[name].live)
        if fixed and self._state == "active":
            return (
                f"{', '.join(fixed)} needs a reconfigure: deactivate and clean up first "
                f"(ros2 lifecycle set {self.get_fully_qualified_name()} deactivate, then cleanup)"
            )
        if self._session is not None and self._session.engine is not None:
            try:
                id_map.table(self._session.engine.labels.names())
            except ValueError as error:
                return f"semantic.id_map: {error}"
        return ""

    def _adopt(self) -> None:
        """Take live parameters over; the worker sees them from its next frame on."""
        session, subscriptions = self._session, self._intake.subscriptions
        if session is None or session.engine is None or subscriptions is None:
            return
        settings = self._node_parameters.settings()
        remapped = settings.id_map != session.pipeline.settings.id_map
        session.pipeline.settings = settings
        subscriptions.set_reliability(settings.input_reliability)
        if remapped:
            names = session.engine.labels.names()
            session.outputs.publish_labels(names, settings.id_map.table(names))

    def _tick(self) -> None:
        """Once a second: match the camera's QoS anew, look after the engine, tell diagnostics."""
        if self._intake.subscriptions is not None:
            self._intake.subscriptions.refresh()
        if self._session is not None and self._state == "active":
            self._session.watch()
        account = self._account.account()
        self._recent.add(account)
        level, text = diagnostics.judge(self._health())
        values = diagnostics.key_values(
            self._facts(), account, self._recent.rates(), self._timings.summaries()
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

    def _health(self) -> diagnostics.Health:
        session, subscriptions = self._session, self._intake.subscriptions
        warnings = [self._intake.warning if subscriptions is not None else ""]
        if subscriptions is not None:
            warnings.append(subscriptions.mismatch)
        if session is not None and session.engine is not None:
            warnings.append(session.pipeline.degraded)
            if not session.engine.trained:
                warnings.append("the weights are untrained: the pictures mean nothing yet")
        return diagnostics.Health(
            state=self._state,
            enabled=self._intake.enabled,
            error=self._error or ("" if session is None else session.trouble),
            warnings=tuple(filter(None, warnings)),
            input_topic="" if subscriptions is None else subscriptions.topic,
            publishers=0 if subscriptions is None else subscriptions.publishers,
            silent_s=self._intake.silent_s,
            busy_s=0.0 if session is None else session.worker.busy_s,
            dropped=self._recent.dropped(),
        )

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {"state": self._state, "enabled": self._intake.enabled}
        session, subscriptions = self._session, self._intake.subscriptions
        if session is not None and session.engine is not None:
            engine = session.engine
            facts["degraded"] = bool(session.pipeline.degraded)
            facts["model"], facts["trained"] = session.settings.model, engine.trained
            facts["labels"], facts["backend"] = engine.labels.name, engine.backend_name
        if subscriptions is not None:
            facts["input_topic"] = subscriptions.topic
            facts["input_reliability"] = subscriptions.reliability.name.lower()
            facts["input_publishers"] = subscriptions.publishers
        facts["stamps_backwards"] = self._intake.stamps_backwards
        facts["ages_unknown"] = self._timings.ages_unknown
        return facts


def main(argv: Sequence[str] | None = None, engine_factory: EngineFactory | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit code.

    Parameters
    ----------
    argv
        Command line with its program name; None for `sys.argv`.
    engine_factory
        See `FuseNode`.
    """
    stop = StopRequest()
    try:
        rclpy.init(
            args=None if argv is None else list(argv),
            signal_handler_options=SignalHandlerOptions.NO,
        )
        node = FuseNode(engine_factory=engine_factory, stop_requested=stop)
    except Exception as error:  # noqa: BLE001 - rcl has no common type for bad arguments
        print(f"fuse_node cannot start: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        rclpy.try_shutdown()
        return 2
    executor = make_executor()
    executor.add_node(node)
    try:
        node.autostart()
        spin_until(executor, stop)
    finally:
        node.stop()
        executor.shutdown()
        node.destroy_node()
        rclpy.try_shutdown()
    if node.abandoned:
        # Its thread is inside native code; Python's orderly exit would tear that down under it.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
