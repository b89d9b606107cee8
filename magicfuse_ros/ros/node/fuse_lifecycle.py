"""The lifecycle of `fuse_node`: a camera's images in, MagImgs and semantics out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import rclpy
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from magicfuse_ros.ros import diagnostics, outputs
from magicfuse_ros.ros.managed_node import SUCCESS, ManagedNode
from magicfuse_ros.ros.node.camera_input import camera_topic
from magicfuse_ros.ros.node.intake import Intake
from magicfuse_ros.ros.node.parameters import PARAMETERS, SPECS, Settings, ids_of, read_id_map
from magicfuse_ros.ros.node.session import EngineFactory, Session
from magicfuse_ros.ros.parameter_table import ParameterError, ParameterTable
from magicfuse_ros.runtime.contract import Engine


class FuseNode(ManagedNode):
    """The node. Its executor thread only moves messages; the worker thread does the computing.

    Parameters
    ----------
    engine_factory
        Makes the engine, in the worker thread; by default `runtime.engine.load_engine`.
    node_arguments
        Passed to `ManagedNode`. `stop_requested` is polled while the engine loads, so that a stop
        need not wait for the engine.
    """

    def __init__(
        self, *, engine_factory: EngineFactory | None = None, **node_arguments: Any
    ) -> None:
        super().__init__("fuse_node", **node_arguments)
        self._engine_factory = engine_factory
        self._session: Session | None = None
        self._logged_warnings: tuple[str, ...] = ()
        self._intake = Intake(self, self._account)
        if outputs.NO_LABEL_INFO:
            self.get_logger().info(outputs.NO_LABEL_INFO)
        self._table = ParameterTable(
            self, PARAMETERS, Settings.from_values, refuse=self._refuse, changed=self._adopt
        )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Make the outputs; load and warm up the engine in the worker thread, showing progress."""
        self._state, self._error = "configuring", ""
        try:
            settings = self._table.settings()
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

        def stopping() -> bool:
            return self._stop_requested() or not rclpy.ok()

        problem = self._session.load(stop_requested=stopping, every_second=self._tick)
        if problem:
            self._release()
            if stopping():
                self._state = state.label
                self.get_logger().info("Asked to stop while the engine was loading")
                return TransitionCallbackReturn.FAILURE
            return self._fail("configure", problem, state)
        self._state = "inactive"
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the camera."""
        session = self._session
        if session is None or session.labels is None:
            return self._fail("activate", "it is not configured", state)
        try:
            settings = self._table.settings()
            changed = settings.needing_reconfigure(session.settings)
            ids = settings.ids(session.labels.names())
        except ParameterError as error:
            return self._fail("activate", str(error), state)
        if changed:
            problem = f"{', '.join(changed)} changed; clean up and configure first"
            return self._fail("activate", problem, state)
        session.adopt(settings)
        session.outputs.publish_labels(session.labels.names(), ids)
        self._timings.clear()
        self._recent.restart(self._account.account())
        session.pipeline.active = True
        subscriptions = self._intake.open(session.worker.mailbox, settings)
        self._state, self._error = "active", ""
        engine = session.engine
        self.get_logger().info(
            f"Active: {subscriptions.topic}, model {settings.engine.model}"
            + ("" if engine is None else f"{_untrained(engine)}, backend {engine.backend_name}")
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

    def _refuse(self, names: set[str], values: Mapping[str, object]) -> str:
        reason = self._why_not_now({name for name in names if not SPECS[name].live})
        if not reason and self._state == "active":
            # This checks the rules between parameters too; until then, configure does.
            Settings.from_values(values)
        if not reason and "semantic.id_map" in names:
            id_map = read_id_map(str(values["semantic.id_map"]))
            if self._session is not None and self._session.labels is not None:
                ids_of(id_map, self._session.labels.names())
        return reason

    def _adopt(self) -> None:
        """Adopt the live parameters; the worker uses them from its next frame on."""
        session = self._session
        if session is None or session.labels is None:
            return
        try:
            settings = self._table.settings()
        except ParameterError:  # while inactive, one side of a resolution may be set first
            return
        remapped = settings.id_map != session.pipeline.settings.id_map
        session.adopt(settings)
        if self._intake.subscriptions is not None:
            self._intake.subscriptions.set_reliability(settings.input_reliability)
        if remapped:
            names = session.labels.names()
            session.outputs.publish_labels(names, settings.ids(names))

    def _will_read(self) -> Mapping[str, type[Any]]:
        transport = str(self.get_parameter("input_transport").value)
        message_type, topic = camera_topic(self, transport)
        return {self.resolve_topic_name(topic): message_type}

    def _every_second(self) -> None:
        """Match the camera's QoS again, and replace an engine that hangs or is gone."""
        if self._intake.subscriptions is not None:
            self._intake.subscriptions.refresh()
        session = self._session
        if session is not None and self._state in {"active", "inactive"}:
            session.watch()
            engine = session.engine
            found = () if engine is None else (engine.steps_warning, engine.parts_warning)
            for warning in found:
                if warning and warning not in self._logged_warnings:
                    self.get_logger().warning(warning)
            self._logged_warnings = found

    def _health(self) -> diagnostics.Health:
        session, subscriptions = self._session, self._intake.subscriptions
        warnings = [self._intake.warning if subscriptions is not None else ""]
        if subscriptions is not None:
            warnings.append(subscriptions.mismatch)
        trouble = ""
        if session is not None and session.labels is not None:
            trouble = session.trouble
            pipeline = session.pipeline
            warnings += [session.loading, pipeline.refused, pipeline.degraded, pipeline.advice]
            if session.engine is not None:
                warnings += [session.engine.steps_warning, session.engine.parts_warning]
                if not session.engine.trained:
                    warnings.append("the weights are untrained: the pictures mean nothing yet")
        return diagnostics.Health(
            state=self._state,
            enabled=self._intake.enabled,
            error="; ".join(filter(None, [self._error, trouble])),
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
            facts["degraded"] = bool(session.pipeline.degraded or engine.parts_warning)
            facts["model"], facts["trained"] = session.settings.engine.model, engine.trained
            facts["labels"], facts["backend"] = engine.labels.name, engine.backend_name
            facts["preparing"] = engine.under_way
        if subscriptions is not None:
            facts["input_topic"] = subscriptions.topic
            facts["input_reliability"] = subscriptions.reliability.name.lower()
            facts["input_publishers"] = subscriptions.publishers
        facts["label_info"] = (
            "vision_msgs is not installed" if outputs.NO_LABEL_INFO else "published"
        )
        facts["stamps_backwards"] = self._intake.stamps_backwards
        facts["ages_unknown"] = self._timings.ages_unknown
        return facts


def _untrained(engine: Engine) -> str:
    return "" if engine.trained else " (untrained)"
