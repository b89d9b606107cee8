"""`fuse_node`: a managed node that turns a camera's images into MagImgs and semantics."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from magicfuse_ros.ros import diagnostics
from magicfuse_ros.ros.managed_node import SUCCESS, ManagedNode, run
from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.node.intake import Intake
from magicfuse_ros.ros.node.node_parameters import NodeParameters
from magicfuse_ros.ros.node.parameters import SPECS
from magicfuse_ros.ros.node.session import EngineFactory, Session
from magicfuse_ros.ros.parameter_spec import ParameterError


class FuseNode(ManagedNode):
    """The node. Its executor thread moves messages and never computes.

    Parameters
    ----------
    engine_factory
        Makes the engine, in the worker thread; by default `runtime.engine.load_engine`.
    node_arguments
        For `ManagedNode`; its `stop_requested` is polled while the engine loads, so that a stop
        need not wait for it.
    """

    def __init__(
        self, *, engine_factory: EngineFactory | None = None, **node_arguments: Any
    ) -> None:
        super().__init__("fuse_node", **node_arguments)
        self._engine_factory = engine_factory
        self._session: Session | None = None
        self._intake = Intake(self, self._account)
        self._node_parameters = NodeParameters(self, refuse=self._refuse, changed=self._adopt)

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
        return SUCCESS

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
        return SUCCESS

    @property
    def _enabled(self) -> bool:
        return self._intake.enabled

    @_enabled.setter
    def _enabled(self, enabled: bool) -> None:
        self._intake.enabled = enabled

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

    def _refuse(self, names: set[str], id_map: IdMap) -> str:
        reason = self._why_not_now({name for name in names if not SPECS[name].live})
        if reason:
            return reason
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

    def _every_second(self) -> None:
        """Match the camera's QoS anew; look after the engine."""
        if self._intake.subscriptions is not None:
            self._intake.subscriptions.refresh()
        if self._session is not None and self._state == "active":
            self._session.watch()

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
        facts: dict[str, object] = {}
        session, subscriptions = self._session, self._intake.subscriptions
        if session is not None and session.engine is not None:
            engine = session.engine
            facts["degraded"] = bool(session.pipeline.degraded)
            facts["model"], facts["trained"] = session.settings.model, engine.trained
            facts["labels"], facts["backend"] = engine.labels.name, engine.backend_name
            facts["preparing"] = engine.under_way
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

    def make(stop_requested: Callable[[], bool]) -> FuseNode:
        return FuseNode(engine_factory=engine_factory, stop_requested=stop_requested)

    return run("fuse_node", make, argv)


if __name__ == "__main__":
    sys.exit(main())
