"""A session with `fuse_node` in another process: it is played to, heard and watched."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import GetState
from rclpy.client import Client
from rclpy.serialization import deserialize_message

from magicfuse_ros.bags.player import Player, PlayerSettings
from magicfuse_ros.bags.reader import BagReader, Topic
from magicfuse_ros.bags.recorder import Recorder
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.commands.node_process import NodeProcess
from magicfuse_ros.ros.stamps import read_stamp
from magicfuse_ros.ros.tool_node import ToolNode
from magicfuse_ros.runtime.contract import Progress

NODE = "/fuse_node"
MAGIMG = f"{NODE}/magimg"
MASK = f"{NODE}/semantic/mask"
CONFIDENCE = f"{NODE}/semantic/confidence"
COLOR = f"{NODE}/semantic/color"
INFRARED = f"{NODE}/infrared"
ENHANCED = f"{NODE}/enhanced"
DIAGNOSTICS = "/diagnostics"
OPTIONAL_OUTPUTS = (f"{NODE}/camera_info", f"{NODE}/semantic/label_info")

ACTIVE_TIMEOUT_S = 600.0
ANSWER_TIMEOUT_S = 2.0
CONNECT_TIMEOUT_S = 20.0
FRAME_TIMEOUT_S = 60.0
QUIET_S = 3.0
SETTLE_S = 0.5
_POLL_S = 0.05


class SessionError(RuntimeError):
    """The session cannot go on; the message says why."""


@dataclass
class Session:
    """What happened in a session."""

    # Header stamp of every frame sent, in order, in ns.
    sent_ns: list[int] = field(default_factory=list)
    # By output topic: header stamp → time of arrival at the recorder, both in ns.
    outputs_ns: dict[str, dict[int, int]] = field(default_factory=dict)
    # The node's last diagnostics, by key (see `magicfuse_ros.ros.diagnostics`) ...
    diagnostics: dict[str, str] = field(default_factory=dict)
    # ... and those when the session began; empty for a node that had done nothing yet.
    before: Mapping[str, str] = field(default_factory=dict)

    def count(self, key: str) -> int:
        """Return by how much one of the node's counts has grown; 0 if it is not known yet."""
        now = self.diagnostics.get(key)
        return 0 if now is None else int(now) - int(self.before.get(key, 0))

    @property
    def recorded(self) -> int:
        """Frames whose MagImg arrived here."""
        return len(self.outputs_ns.get(MAGIMG, {}))

    @property
    def fused(self) -> int:
        """Frames that the node published, by its own count."""
        return max(self.count("frames_out"), self.recorded)

    @property
    def fps(self) -> float:
        """MagImgs per second, from the first that arrived to the last."""
        arrived = sorted(self.outputs_ns.get(MAGIMG, {}).values())
        span_ns = arrived[-1] - arrived[0] if arrived else 0
        return (len(arrived) - 1) * 1e9 / span_ns if span_ns else 0.0

    def arrival_ages_ms(self, *levels: float) -> list[float]:
        """Percentiles of MagImg's age on arrival: recorder's clock less header stamp.

        Empty if none arrived. `levels` are 0 to 100.
        """
        arrived = self.outputs_ns.get(MAGIMG, {})
        ages = [(received - stamp) / 1e6 for stamp, received in arrived.items()]
        return [float(age) for age in np.percentile(ages, levels)] if ages else []


class NodeSession:
    """Plays a camera to `fuse_node`, hears what it publishes, and watches that it lives.

    Every wait ends with KeyboardInterrupt once `stop` is set; `progress` is called with a line of
    text on what is going on. What happened so far is in `session`.
    """

    def __init__(self, process: NodeProcess, stop: threading.Event, progress: Progress) -> None:
        self.process, self._stop, self._progress = process, stop, progress
        self.session = Session()
        self._problem = ""
        self._ros = ToolNode("magicfuse_session")
        node = self._ros.node
        node.create_subscription(DiagnosticArray, DIAGNOSTICS, self._on_diagnostics, 10)
        self._get_state: Client[Any, Any] = node.create_client(GetState, f"{NODE}/get_state")
        self._ros.start()

    def wait_until_active(self) -> None:
        """Wait until the node's lifecycle state is ``active``.

        Raises SessionError if the node died, could not be configured, or took too long.
        """
        start = time.monotonic()
        while True:
            state = self._lifecycle_state()
            if state == "active":
                return
            if state == "unconfigured" and self._problem:
                raise SessionError(f"the node stays unconfigured: {self._problem}")
            waited_s = time.monotonic() - start
            if waited_s > ACTIVE_TIMEOUT_S:
                raise SessionError(f"the node was not active after {ACTIVE_TIMEOUT_S:.0f} s")
            lines = self.process.last_lines(1)
            self._progress(f"waiting for the node, {waited_s:.0f} s  {lines[-1] if lines else ''}")
            self._pause(0.25)

    @contextmanager
    def connected(
        self,
        bag: BagReader,
        topic: Topic,
        settings: PlayerSettings,
        outputs: Collection[str],
        out: BagWriter | None = None,
    ) -> Iterator[Player]:
        """Yield a player of an image topic once the node listens to it and publishes `outputs`.

        What is sent is written to `out`, and what arrives of `outputs` and `OPTIONAL_OUTPUTS`.

        Raises SessionError if the node died, or the topics did not connect.
        """
        node = self._ros.node
        heard = outputs if out is None else (*outputs, *OPTIONAL_OUTPUTS)
        recorder = Recorder(node, out, heard, self._on_output)

        def on_sent(sent: Topic, stamp_ns: int, data: bytes) -> None:
            self.session.sent_ns.append(stamp_ns)
            recorder.write(sent.name, stamp_ns, data)

        try:
            recorder.add_topic(Topic(topic.name, topic.type, reliability=topic.reliability))
            player = Player(bag, node, settings, on_sent)
            self._wait_for_topics(recorder, player, outputs)
            yield player
        finally:
            recorder.close()

    def play(
        self, player: Player, what: str, watch: Callable[[threading.Event], None] | None = None
    ) -> None:
        """Play in another thread, and wait until everything that the node made of it has arrived.

        `what` says for `progress` what is going on. `watch` is called ten times a second meanwhile,
        with the event that ends the playing.

        Raises SessionError if the node died, or no frame came out.
        """
        halt = threading.Event()
        errors: list[Exception] = []

        def run() -> None:
            try:
                player.play(halt)
            except Exception as error:  # noqa: BLE001 - raised again in the main thread
                errors.append(error)

        thread = threading.Thread(target=run, name="session_player")
        thread.start()
        try:
            while thread.is_alive():
                if watch is not None:
                    watch(halt)
                self._show_counts(what)
                self._pause(0.1)
        finally:
            halt.set()
            thread.join()
        if errors:
            raise errors[0]
        self._drain()
        if self.session.recorded == 0:
            raise SessionError(f"no frame came out of {len(self.session.sent_ns)} sent")

    def close(self) -> None:
        """Leave ROS."""
        self._ros.close()

    # --- waiting ---------------------------------------------------------------------------------

    def _wait_for_topics(
        self, recorder: Recorder, player: Player, outputs: Collection[str]
    ) -> None:
        """Wait until `recorder` is subscribed to all `outputs`, and the node to the camera."""
        end = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            ready = player.wait_for_subscribers(0.0, self._stop)
            missing = [name for name in outputs if name not in recorder.recorded]
            if ready and not missing:
                # The other side may match later, and what it sends before that arrives late.
                self._pause(SETTLE_S)
                return
            if time.monotonic() > end:
                raise SessionError(
                    f"no publisher on {', '.join(missing)} after {CONNECT_TIMEOUT_S:.0f} s"
                    if missing
                    else f"the node did not subscribe to the images in {CONNECT_TIMEOUT_S:.0f} s"
                )
            self._progress("connecting to the node's topics")
            self._pause(_POLL_S)

    def _drain(self) -> None:
        """Wait until everything that the node published has arrived, or nothing more comes."""
        seen, quiet_since = -1, 0.0
        while True:
            now = time.monotonic()
            if self.session.recorded != seen:
                seen, quiet_since = self.session.recorded, now
            working = self.session.diagnostics.get("frames_pending", "0") != "0"
            patience_s = FRAME_TIMEOUT_S if working else QUIET_S
            if self._complete() or now - quiet_since > patience_s:
                return
            self._show_counts("waiting for the last frames")
            self._pause(0.1)

    def _complete(self) -> bool:
        """Whether the node is done with every frame, and everything it published has arrived."""
        session = self.session
        return (
            session.diagnostics.get("frames_pending") == "0"
            and session.count("frames_in") >= len(session.sent_ns)
            and session.count("frames_out") <= session.recorded
        )

    def _pause(self, seconds: float) -> None:
        """Sleep; raise if a signal came, the node died, or what arrived could not be kept."""
        if self._stop.wait(seconds):
            raise KeyboardInterrupt
        if self._ros.failure is not None:  # a full disk, say
            raise self._ros.failure
        status = self.process.exit_status
        if status is not None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            raise SessionError(f"the node ended unexpectedly ({how})")

    def _show_counts(self, what: str) -> None:
        self._progress(f"{what}: {len(self.session.sent_ns)} sent, {self.session.fused} fused")

    # --- ROS -------------------------------------------------------------------------------------

    def _lifecycle_state(self) -> str:
        """Return the node's state; an empty string while its service does not answer."""
        if not self._get_state.service_is_ready():
            return ""
        future = self._get_state.call_async(GetState.Request())
        end = time.monotonic() + ANSWER_TIMEOUT_S
        while not future.done():
            if time.monotonic() > end:
                self._get_state.remove_pending_request(future)
                return ""
            self._pause(_POLL_S)
        answer: Any = future.result()
        return str(answer.current_state.label)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f"{NODE.lstrip('/')}:"):
                values = {each.key: each.value for each in status.values}
                self._problem = status.message if status.level == DiagnosticStatus.ERROR else ""
                # The last that have ages are kept: their window empties after the last frame.
                if "age_ms.p50" in values or "age_ms.p50" not in self.session.diagnostics:
                    self.session.diagnostics = values

    def _on_output(self, name: str, received_ns: int, data: bytes) -> None:
        if name == DIAGNOSTICS:
            self._on_diagnostics(deserialize_message(data, DiagnosticArray))
        else:
            self.session.outputs_ns.setdefault(name, {})[read_stamp(data)] = received_ns
