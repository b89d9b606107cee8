"""Shots of what a running `fuse_node` publishes, and its parameters."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.parameter_client import AsyncParameterClient
from rclpy.task import Future

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.diagnostics import label_set_of
from magicfuse_ros.ros.tool_node import ToolNode
from magicfuse_ros.runtime.contract import MOST_TEMPORAL
from magicfuse_ros.view.ros_topics import FOLLOW_S, NODE, PictureTopic, read_message
from magicfuse_ros.view.shot import Shot

TOPICS = {
    "enhanced": "enhanced",
    "magimg": "magimg",
    "infrared": "infrared",
    "semantics": "semantic/color",
}
"""The node's topics by picture; the input's is the one that the node says it listens to."""

SILENT_S = 3.0
_STAMPS = 16
"""Stamps whose pictures are kept until all of them are there."""
_LEVELS = {
    DiagnosticStatus.OK: "ok",
    DiagnosticStatus.WARN: "warn",
    DiagnosticStatus.STALE: "stopped",
    DiagnosticStatus.ERROR: "error",
}


class NodeShow:
    """Watches the node of this full name, such as `/front/fuse_node`; see `Show`.

    Pictures that nobody looks at are not subscribed to.
    """

    def __init__(self, name: str) -> None:
        self.on_shot: Callable[[Shot], None] = lambda _shot: None
        self.failure = ""
        self._name = name
        self._wanted: frozenset[str] = frozenset()
        self._topics: dict[str, PictureTopic] = {}
        self._came: dict[int, tuple[float, dict[str, Any]]] = {}
        self._number = 0
        self._said: dict[str, str] = {}
        self._health, self._heard_s = ("wait", f"waiting for {name}"), 0.0
        self._labels: LabelSet | None = None
        self._refused = ""
        self._tau, self._temporal = -1.0, 0.0
        self._ros = ToolNode(NODE)
        node = self._ros.node
        node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 10)
        self._parameters = AsyncParameterClient(node, name)
        node.create_timer(FOLLOW_S, self._follow)
        node.create_timer(1.0, self._ask_parameters)
        self._ros.start()

    def state(self) -> dict[str, Any]:
        """See `Show`."""
        if self._ros.failure is not None:
            self.failure = one_line(self._ros.failure)
        said, (level, text) = self._said, self._health
        silent_s = time.monotonic() - self._heard_s
        if self._heard_s and silent_s > SILENT_S:
            level, text = "stopped", f"{self._name} has said nothing for {silent_s:.0f} s"
        elif level == "wait" and not self._parameters.services_are_ready():
            text += ": there is no such node; check --node and ROS_DOMAIN_ID"
        warnings = [self._refused] if self._refused else []
        if said.get("trained") == "false":
            warnings.append("untrained weights: the pictures mean nothing")
        labels = [] if self._labels is None else self._labels.labels
        return {
            "source": self._name,
            "level": level,
            "text": "" if level == "ok" and text == "active" else text,
            "fps": float(said.get("fps_out", 0.0)),
            "drops": int(said.get("dropped_total", 0)),
            "backend": said.get("backend", ""),
            "warnings": warnings,
            "labels": [[each.name, each.color] for each in labels],
            "tau": None if self._tau < 0.0 else self._tau,
            "model_tau": None,
            "temporal": self._temporal,
            "most_temporal": MOST_TEMPORAL,
            "playback": None,
        }

    def want(self, pictures: frozenset[str]) -> None:
        """See `Show`."""
        self._wanted = pictures

    def tune(self, tau: float | None, temporal: float) -> None:
        """See `Show`; what the node refuses is shown as a warning."""
        if not self._parameters.services_are_ready():
            raise ValueError(f"{self._name} is not there to be set")
        wanted = [
            Parameter("tau", value=-1.0 if tau is None else tau),
            Parameter("temporal", value=temporal),
        ]
        self._parameters.set_parameters(wanted, callback=self._on_set)

    def play(self, order: str, value: float) -> None:  # noqa: ARG002 - there is no file
        """See `Show`."""
        raise ValueError(f"{self._name} is live: it cannot {order}")

    def close(self) -> None:
        """See `Show`."""
        self._ros.close()

    # --- in the thread that spins ----------------------------------------------------------------

    def _follow(self) -> None:
        """Subscribe to what is wanted, as it is published."""
        topics = {name: f"{self._name}/{topic}" for name, topic in TOPICS.items()}
        if self._said.get("input_topic"):
            topics["input"] = self._said["input_topic"]
        for name, topic in topics.items():
            there = self._topics.get(name)
            if there is not None and (name not in self._wanted or there.topic != topic):
                self._topics.pop(name).close()
            elif there is not None:
                there.refresh()
            elif name in self._wanted:
                on_message = partial(self._on_picture, name)
                self._topics[name] = PictureTopic(self._ros.node, topic, on_message)

    def _on_picture(self, name: str, message: Any) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        earlier = [each for each, (_, came) in self._came.items() if came.keys() - {"input"}]
        _, pictures = self._came.setdefault(stamp, (time.monotonic(), {}))
        pictures[name] = message
        outputs = self._topics.keys() - {"input"}
        if pictures.keys() >= (outputs or {"input"}):
            self._show(stamp)
        elif name != "input" and earlier and stamp not in earlier:
            self._show(earlier[-1])  # what it lacks does not come: the node has gone on
        while len(self._came) > _STAMPS:
            del self._came[next(iter(self._came))]

    def _show(self, stamp: int) -> None:
        taken_s, pictures = self._came[stamp]
        for each in list(self._came):
            if self._came[each][0] <= taken_s:
                del self._came[each]
        self._number += 1
        made = {name: partial(read_message, message) for name, message in pictures.items()}
        self.on_shot(Shot(self._number, taken_s, made))

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f"{self._name.lstrip('/')}: magicfuse":
                before = self._said.get("labels")
                self._said = {each.key: each.value for each in status.values}
                self._health = _LEVELS.get(status.level, "warn"), status.message
                self._heard_s = time.monotonic()
                if self._said.get("labels") != before:
                    self._labels = label_set_of(self._said)

    def _ask_parameters(self) -> None:
        if self._parameters.services_are_ready():
            self._parameters.get_parameters(["tau", "temporal"], callback=self._on_parameters)

    def _on_parameters(self, future: Future[Any]) -> None:
        answer: Any = future.result()
        tau, temporal = (parameter_value_to_python(each) for each in answer.values)
        if isinstance(tau, float | int) and isinstance(temporal, float | int):
            self._tau, self._temporal = float(tau), float(temporal)

    def _on_set(self, future: Future[Any]) -> None:
        answer: Any = future.result()
        reasons = [each.reason for each in answer.results if not each.successful]
        self._refused = f"{self._name} refuses: {'; '.join(reasons)}" if reasons else ""
        self._ask_parameters()
