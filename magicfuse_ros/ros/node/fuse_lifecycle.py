"""The lifecycle of `fuse_node`: a camera's images in, MagImgs and semantics out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from magicfuse_ros.ros import diagnostics, outputs
from magicfuse_ros.ros.managed_node import ManagedNode
from magicfuse_ros.ros.node.camera_input import CameraInput, StampOrder, camera_topic
from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.node.parameters import PARAMETERS, Settings
from magicfuse_ros.ros.node.session import EngineFactory, Session, load_engine
from magicfuse_ros.ros.parameter_table import ParameterError
from magicfuse_ros.runtime.engine_type import Engine


class FuseNode(ManagedNode[Settings]):
    """The node. Its executor thread only moves messages; the worker thread does the computing.

    `engine_factory` makes the engine, in the worker thread. `stop_requested` of `ManagedNode` is
    polled while the engine loads, so that a stop need not wait.
    """

    parameters = PARAMETERS
    _read = staticmethod(Settings.from_values)
    _input: CameraInput | None

    def __init__(
        self, *, engine_factory: EngineFactory = load_engine, **node_arguments: Any
    ) -> None:
        super().__init__("fuse_node", **node_arguments)
        self._engine_factory = engine_factory
        self._session: Session | None = None
        self._logged_warnings: tuple[str, ...] = ()
        self._order = StampOrder(self)
        if outputs.NO_LABEL_INFO:
            self.get_logger().info(outputs.NO_LABEL_INFO)

    def _configure(self, settings: Settings) -> str:
        """Make the outputs; load and warm up the engine in the worker thread, showing progress."""
        self._session = Session(
            self,
            settings,
            self._engine_factory,
            account=self._account,
            timings=self._timings,
            camera_info=lambda: None if self._input is None else self._input.camera_info,
        )
        return self._session.load(stop_requested=self._stopping, every_second=self._tick)

    def _activate(self, settings: Settings) -> str:
        session = self._session
        if session is None or session.labels is None:
            raise ParameterError("it is not configured")
        changed = settings.needing_reconfigure(session.settings)
        if changed:
            raise ParameterError(f"{', '.join(changed)} changed; clean up and configure first")
        ids = settings.id_map.table(session.labels.names())
        session.adopt(settings)
        session.outputs.publish_labels(session.labels.names(), ids)
        session.pipeline.active = True
        self._order.begin()
        self._input = CameraInput(
            self,
            settings,
            session.worker.mailbox,
            account=self._account,
            enabled=lambda: self._enabled,
            in_order=self._order.follows,
        )
        engine = session.engine
        return f"{self._input.topic}, model {settings.engine.model}" + (
            "" if engine is None else f"{_untrained(engine)}, backend {engine.backend_name}"
        )

    def _pause(self) -> None:
        if self._session is not None:
            self._session.pipeline.active = False
            super()._pause()
            self._session.pause()

    def _release(self) -> None:
        self._pause()
        if self._session is not None:
            self.abandoned |= not self._session.close()
            self._session = None

    def _check(self, names: set[str], values: Mapping[str, object]) -> None:
        if self._state == "active":
            # This checks the rules between parameters too; until then, configure does.
            Settings.from_values(values)
        if "semantic.id_map" in names:
            id_map = IdMap.parse(str(values["semantic.id_map"]))
            if self._session is not None and self._session.labels is not None:
                id_map.table(self._session.labels.names())

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
        if self._input is not None:
            self._input.set_reliability(settings.input_reliability)
        if remapped:
            names = session.labels.names()
            session.outputs.publish_labels(names, settings.id_map.table(names))

    def _will_read(self) -> Mapping[str, type[Any]]:
        transport = str(self.get_parameter("input_transport").value)
        message_type, topic = camera_topic(self, transport)
        return {self.resolve_topic_name(topic): message_type}

    def _every_second(self) -> None:
        """Match the camera's QoS again, and replace an engine that hangs or is gone."""
        super()._every_second()
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
        health, session = super()._health(), self._session
        if session is None or session.labels is None:
            return health
        pipeline, engine = session.pipeline, session.engine
        warnings = [session.loading, pipeline.refused, pipeline.degraded, pipeline.advice]
        if engine is not None:
            warnings += [engine.steps_warning, engine.parts_warning]
            if not engine.trained:
                warnings.append("the weights are untrained: the pictures mean nothing yet")
        return replace(
            health,
            error="; ".join(filter(None, [health.error, session.trouble])),
            warnings=(*health.warnings, *filter(None, warnings)),
            busy_s=session.worker.busy_s,
        )

    def _facts(self) -> dict[str, object]:
        facts, session = super()._facts(), self._session
        if session is not None and session.engine is not None:
            engine = session.engine
            facts["degraded"] = bool(session.pipeline.degraded or engine.parts_warning)
            facts["model"], facts["trained"] = session.settings.engine.model, engine.trained
            facts["labels"], facts["backend"] = engine.labels.name, engine.backend_name
            facts["preparing"] = engine.under_way
        facts["label_info"] = (
            "vision_msgs is not installed" if outputs.NO_LABEL_INFO else "published"
        )
        facts["stamps_backwards"] = self._order.backwards
        return facts


def _untrained(engine: Engine) -> str:
    return "" if engine.trained else " (untrained)"
