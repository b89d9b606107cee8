"""The lifecycle of `semantic_cloud`: it paints clouds with what fuse_node saw."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn

from magicfuse_ros.ros import diagnostics, ledger
from magicfuse_ros.ros.cloud.cloud_parameters import (
    CLOUD_PARAMETERS,
    CLOUD_SPECS,
    CloudSettings,
)
from magicfuse_ros.ros.cloud.extrinsics import Extrinsics
from magicfuse_ros.ros.cloud.inputs import PICTURE_TOPICS, CloudInputs
from magicfuse_ros.ros.cloud.matching import EXPIRED, NO_MASK, TIME_JUMP, Pair
from magicfuse_ros.ros.cloud.painter import CloudPainter
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.managed_node import SUCCESS, ManagedNode
from magicfuse_ros.ros.parameter_table import ParameterError, ParameterTable

_ORDINARY = {NO_MASK, TIME_JUMP}
"""Ordinary reasons to drop clouds: the sensor is faster than the masks, or a recording restarts."""


class SemanticCloudNode(ManagedNode):
    """The node. Painting takes only milliseconds, so its one thread does everything.

    Its diagnostics have the keys of every node (see `diagnostics`; a frame there is a cloud here),
    and `masks_in`, `masks_out`, `masks_pending` and `masks_dropped.<reason>` of fuse_node's frames.

    Parameters
    ----------
    node_arguments
        Passed to `ManagedNode`.
    """

    def __init__(self, **node_arguments: Any) -> None:
        self._inputs: CloudInputs | None = None
        self._painter: CloudPainter | None = None
        self._extrinsics: Extrinsics | None = None
        self._is_enabled = True
        self._frames = Ledger()
        super().__init__("semantic_cloud", **node_arguments)
        self._parameters_table = ParameterTable(
            self,
            CLOUD_PARAMETERS,
            CloudSettings.from_values,
            refuse=self._refuse,
            changed=self._adopt,
        )

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the parameters; make the outputs."""
        try:
            settings = self._parameters_table.settings()
        except ParameterError as error:
            return self._fail("configure", str(error), state)
        self._painter = CloudPainter(self, settings, account=self._account, timings=self._timings)
        self._state, self._error = "inactive", ""
        return SUCCESS

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the clouds and to fuse_node's outputs."""
        if self._painter is None:
            return self._fail("activate", "it is not configured", state)
        try:
            settings = self._parameters_table.settings()
        except ParameterError as error:
            return self._fail("activate", str(error), state)
        self._painter.settings = settings
        self._timings.clear()
        self._recent.restart(self._account.account())
        self._extrinsics = Extrinsics(self)
        self._inputs = CloudInputs(
            self, settings, clouds=self._account, frames=self._frames, on_pair=self._on_pair
        )
        self._inputs.enabled = self._is_enabled
        self._state, self._error = "active", ""
        mask = self.resolve_topic_name(PICTURE_TOPICS["mask"])
        self.get_logger().info(f"Active: {self._inputs.points.topic} painted from {mask}")
        return SUCCESS

    @property
    def _enabled(self) -> bool:
        return self._is_enabled

    @_enabled.setter
    def _enabled(self, enabled: bool) -> None:
        self._is_enabled = enabled
        if self._inputs is not None:
            self._inputs.enabled = enabled
            if not enabled:
                self._inputs.clear(ledger.DISABLED)

    def _pause(self) -> None:
        if self._inputs is not None:
            self._inputs.close()
        if self._extrinsics is not None:
            self._extrinsics.close()
        self._inputs = self._extrinsics = None

    def _release(self) -> None:
        self._pause()
        if self._painter is not None:
            self._painter.destroy()
        self._painter = None

    def _on_pair(self, pair: Pair) -> None:
        inputs, painter, extrinsics = self._inputs, self._painter, self._extrinsics
        if inputs is None or painter is None or extrinsics is None or inputs.camera_info is None:
            self._account.drop(ledger.INACTIVE)
            return
        painter.process(pair, inputs.camera_info, inputs.label_info, extrinsics)

    def _refuse(self, names: set[str], values: Mapping[str, object]) -> str:
        CloudSettings.from_values(values)
        return self._why_not_now({name for name in names if not CLOUD_SPECS[name].live})

    def _adopt(self) -> None:
        """Adopt the live parameters, between two clouds."""
        if self._painter is None or self._inputs is None:
            return
        settings = self._parameters_table.settings()
        self._painter.settings = settings
        self._inputs.adopt(settings)

    def _every_second(self) -> None:
        if self._inputs is not None:
            self._inputs.points.refresh()

    def _health(self) -> diagnostics.Health:
        inputs = self._inputs
        dropped = {
            reason: count
            for reason, count in self._recent.dropped().items()
            if reason not in _ORDINARY
        }
        warnings = []
        if inputs is not None:
            warnings.append(inputs.warning)
            silence = self._silence(inputs) if self._is_enabled else ""
            warnings.append(silence)
            if dropped.pop(EXPIRED, 0) and not silence:
                warnings.append("clouds expired before their mask came: raise the parameter queue")
            if inputs.camera_info is None and inputs.waiting[1] > 0:
                topic = self.resolve_topic_name("fuse_node/camera_info")
                warnings.append(f"no CameraInfo on {topic}: points cannot be projected")
        dropped.pop(EXPIRED, 0)
        return diagnostics.Health(
            state=self._state,
            enabled=self._is_enabled,
            error=self._error,
            warnings=tuple(filter(None, warnings)),
            input_topic="" if inputs is None else inputs.points.topic,
            publishers=0 if inputs is None else inputs.points.publishers,
            silent_s=0.0 if inputs is None else inputs.silent_s,
            dropped=dropped,
        )

    def _silence(self, inputs: CloudInputs) -> str:
        """Name the first part of a frame that no longer comes; empty if all come."""
        for part, silent_s in inputs.parts_silent_s.items():
            if silent_s > diagnostics.NO_INPUT_S:
                topic = self.resolve_topic_name(PICTURE_TOPICS[part])
                count = self.count_publishers(topic)
                return f"no {part} on {topic} for {silent_s:.0f} s ({count} publishers)"
        return ""

    def _facts(self) -> dict[str, object]:
        facts: dict[str, object] = {}
        if self._inputs is not None:
            points = self._inputs.points
            facts["input_topic"] = points.topic
            facts["input_reliability"] = points.reliability.name.lower()
            facts["input_publishers"] = points.publishers
        frames = self._frames.account()
        facts["masks_in"], facts["masks_out"] = frames.frames_in, frames.frames_out
        facts["masks_pending"] = frames.pending
        for reason, count in sorted(frames.dropped.items()):
            facts[f"masks_dropped.{reason}"] = count
        facts["ages_unknown"] = self._timings.ages_unknown
        return facts
