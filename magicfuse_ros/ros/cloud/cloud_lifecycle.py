"""The lifecycle of `semantic_cloud`: it paints clouds with what fuse_node saw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from magicfuse_ros.ros import diagnostics, ledger
from magicfuse_ros.ros.cloud.cloud_parameters import CLOUD_PARAMETERS, CloudSettings
from magicfuse_ros.ros.cloud.extrinsics import Extrinsics
from magicfuse_ros.ros.cloud.inputs import PICTURE_TOPICS, CloudInputs
from magicfuse_ros.ros.cloud.matching import EXPIRED, NO_MASK, TIME_JUMP, Pair
from magicfuse_ros.ros.cloud.painter import CloudPainter
from magicfuse_ros.ros.ledger import Ledger
from magicfuse_ros.ros.managed_node import ManagedNode
from magicfuse_ros.ros.parameter_table import ParameterError

_ORDINARY = {NO_MASK, TIME_JUMP}
"""Ordinary reasons to drop clouds: the sensor is faster than the masks, or a recording restarts."""


class SemanticCloudNode(ManagedNode[CloudSettings]):
    """The node. Painting takes only milliseconds, so its one thread does everything.

    Its diagnostics have the keys of every node (see `diagnostics`; a frame there is a cloud here),
    and `masks_in`, `masks_out`, `masks_pending` and `masks_dropped.<reason>` of fuse_node's frames.
    """

    parameters = CLOUD_PARAMETERS
    _read = staticmethod(CloudSettings.from_values)
    _input: CloudInputs | None

    def __init__(self, **node_arguments: Any) -> None:
        super().__init__("semantic_cloud", **node_arguments)
        self._painter: CloudPainter | None = None
        self._extrinsics: Extrinsics | None = None
        self._frames = Ledger()

    def _configure(self, settings: CloudSettings) -> str:
        self._painter = CloudPainter(self, settings, account=self._account, timings=self._timings)
        return ""

    def _activate(self, settings: CloudSettings) -> str:
        if self._painter is None:
            raise ParameterError("it is not configured")
        self._painter.settings = settings
        self._extrinsics = Extrinsics(self)
        self._input = CloudInputs(
            self,
            settings,
            account=self._account,
            frames=self._frames,
            enabled=lambda: self._enabled,
            on_pair=self._on_pair,
        )
        mask = self.resolve_topic_name(PICTURE_TOPICS["mask"])
        return f"{self._input.topic} painted from {mask}"

    def _pause(self) -> None:
        super()._pause()
        if self._extrinsics is not None:
            self._extrinsics.close()
        self._extrinsics = None

    def _release(self) -> None:
        self._pause()
        if self._painter is not None:
            self._painter.destroy()
        self._painter = None

    def _on_pair(self, pair: Pair) -> None:
        inputs, painter, extrinsics = self._input, self._painter, self._extrinsics
        if inputs is None or painter is None or extrinsics is None or inputs.camera_info is None:
            self._account.drop(ledger.INACTIVE)
            return
        painter.process(pair, inputs.camera_info, inputs.label_info, extrinsics)

    def _check(self, names: set[str], values: Mapping[str, object]) -> None:  # noqa: ARG002 - each is checked
        CloudSettings.from_values(values)

    def _adopt(self) -> None:
        """Adopt the live parameters, between two clouds."""
        if self._painter is None or self._input is None:
            return
        settings = self._table.settings()
        self._painter.settings = settings
        self._input.adopt(settings)

    def _health(self) -> diagnostics.Health:
        health, inputs = super()._health(), self._input
        dropped = {
            reason: count for reason, count in health.dropped.items() if reason not in _ORDINARY
        }
        expired = dropped.pop(EXPIRED, 0)
        warnings = []
        if inputs is not None:
            silence = self._silence(inputs) if self._enabled else ""
            warnings.append(silence)
            if expired and not silence:
                warnings.append("clouds expired before their mask came: raise the parameter queue")
            if inputs.camera_info is None and inputs.waiting[1] > 0:
                topic = self.resolve_topic_name("fuse_node/camera_info")
                warnings.append(f"no CameraInfo on {topic}: points cannot be projected")
        return replace(
            health, warnings=(*health.warnings, *filter(None, warnings)), dropped=dropped
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
        facts, frames = super()._facts(), self._frames.account()
        facts["masks_in"], facts["masks_out"] = frames.frames_in, frames.frames_out
        facts["masks_pending"] = frames.pending
        for reason, count in sorted(frames.dropped.items()):
            facts[f"masks_dropped.{reason}"] = count
        return facts
