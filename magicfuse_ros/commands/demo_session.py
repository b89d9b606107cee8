"""One run of the demo: a bag is played to `fuse_node`, and what the node publishes is recorded."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.srv import GetState
from rclpy.client import Client
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.signals import SignalHandlerOptions

from magicfuse_ros.ros.bag import BagReader, BagWriter, Topic
from magicfuse_ros.ros.node_process import NodeProcess
from magicfuse_ros.ros.player import Player, PlayerSettings
from magicfuse_ros.ros.recorder import Recorder
from magicfuse_ros.ros.stamps import read_stamp

NODE = "/fuse_node"
MAGIMG = f"{NODE}/magimg"
MASK = f"{NODE}/semantic/mask"
COLOR = f"{NODE}/semantic/color"
INFRARED = f"{NODE}/infrared"
ENHANCED = f"{NODE}/enhanced"
DIAGNOSTICS = "/diagnostics"
OUTPUTS = (MAGIMG, MASK, COLOR, INFRARED, ENHANCED, f"{NODE}/semantic/confidence", DIAGNOSTICS)
OPTIONAL_OUTPUTS = (f"{NODE}/camera_info", f"{NODE}/semantic/label_info")

ACTIVE_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 20.0
FRAME_TIMEOUT_S = 60.0
QUIET_S = 3.0
SETTLE_S = 0.5
_POLL_S = 0.05

Progress = Callable[[str], None]


class DemoError(RuntimeError):
    """The demo cannot go on; the text says why."""


class Stopped(Exception):  # noqa: N818 - the user asked for it, nothing failed
    """Ctrl-C or a signal."""


@dataclass
class Session:
    """What happened.

    Attributes
    ----------
    sent_ns
        Header stamp of every frame sent, in order.
    outputs_ns
        By output topic: header stamp → time of arrival at the recorder, both in ns.
    diagnostics
        The node's last words on /diagnostics, by key (see `magicfuse_ros.ros.diagnostics`).
    """

    sent_ns: list[int] = field(default_factory=list)
    outputs_ns: dict[str, dict[int, int]] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)

    @property
    def recorded(self) -> int:
        """Frames whose MagImg arrived here."""
        return len(self.outputs_ns.get(MAGIMG, {}))

    @property
    def fused(self) -> int:
        """Frames that the node published, by its own count."""
        return max(int(self.diagnostics.get("frames_out", 0)), self.recorded)

    @property
    def fps(self) -> float:
        """MagImgs a second between the first and the last that arrived."""
        arrived = sorted(self.outputs_ns.get(MAGIMG, {}).values())
        span_ns = arrived[-1] - arrived[0] if arrived else 0
        return (len(arrived) - 1) * 1e9 / span_ns if span_ns else 0.0

    def arrival_age_ms(self) -> tuple[float, float] | None:
        """p50 and p95 of MagImg's age on arrival: recorder's clock less header stamp."""
        ages = [
            (arrived - stamp) / 1e6 for stamp, arrived in self.outputs_ns.get(MAGIMG, {}).items()
        ]
        if not ages:
            return None
        p50, p95 = np.percentile(ages, (50, 95))
        return float(p50), float(p95)


class DemoSession:
    """The ROS side of the demo's own process: one node, spun by a thread.

    Parameters
    ----------
    node_process
        The running `fuse_node`.
    stop
        Set by signals; every wait ends with `Stopped` then.
    progress
        Shows a line of what is going on.
    """

    def __init__(
        self, node_process: NodeProcess, stop: threading.Event, progress: Progress
    ) -> None:
        self._process, self._stop, self._progress = node_process, stop, progress
        self.session = Session()
        self._problem = ""
        self._failure: Exception | None = None
        self._closing = threading.Event()
        self._context = Context()
        rclpy.init(context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node("magicfuse_demo", context=self._context, start_parameter_services=False)
        self._node.create_subscription(DiagnosticArray, DIAGNOSTICS, self._on_diagnostics, 10)
        self._get_state: Client[Any, Any] = self._node.create_client(GetState, f"{NODE}/get_state")
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="demo_executor")
        self._thread.start()

    def wait_until_active(self) -> None:
        """Wait until the node's lifecycle state is ``active``.

        Raises
        ------
        DemoError
            It died, could not be configured, or took too long.
        """
        start = time.monotonic()
        while True:
            state = self._lifecycle_state()
            if state == "active":
                return
            if state == "unconfigured" and self._problem:
                raise DemoError(f"the node stays unconfigured: {self._problem}")
            waited_s = time.monotonic() - start
            if waited_s > ACTIVE_TIMEOUT_S:
                raise DemoError(f"the node was not active after {ACTIVE_TIMEOUT_S:.0f} s")
            lines = self._process.last_lines(1)
            self._progress(f"waiting for the node, {waited_s:.0f} s  {lines[-1] if lines else ''}")
            self._pause(0.25)

    def play(self, bag: BagReader, topic: Topic, out: BagWriter) -> None:
        """Play the image topic of `bag` to the node and record its outputs into `out`.

        The frames are sent with the wall time as stamp: their ages are then real. They are written
        to `out` as well, as they were sent, so that it holds inputs and outputs by the same stamps.

        Raises
        ------
        DemoError
            The node died, topics did not connect, or no frame came out.
        """
        recorder = Recorder(self._node, out, (*OUTPUTS, *OPTIONAL_OUTPUTS), self._on_output)
        try:
            sent_as = Topic(topic.name, topic.type, reliability=topic.reliability)
            recorder.add_topic(sent_as)

            def on_sent(sent: Topic, stamp_ns: int, data: bytes) -> None:
                self.session.sent_ns.append(stamp_ns)
                recorder.write(sent.name, stamp_ns, data)

            settings = PlayerSettings(restamp=True, topics=(topic.name,))
            player = Player(bag, self._node, settings, on_sent)
            self._connect(player, recorder)
            # The player runs beside this thread, which watches the node and shows progress.
            self._run_player(player)
            self._drain()
            if self.session.recorded == 0:
                raise DemoError(f"no frame came out of {len(self.session.sent_ns)} sent")
        finally:
            recorder.close()

    def close(self) -> None:
        """Leave ROS."""
        self._closing.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    # --- waiting ---------------------------------------------------------------------------------

    def _connect(self, player: Player, recorder: Recorder) -> None:
        end = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            ready = player.wait_for_subscribers(_POLL_S, self._stop)
            missing = [name for name in OUTPUTS if name not in recorder.recorded]
            if ready and not missing:
                # The other side matches in its own time; what it sends before is resent late.
                self._pause(SETTLE_S)
                return
            if time.monotonic() > end:
                raise DemoError(
                    f"no publisher on {', '.join(missing)} after {CONNECT_TIMEOUT_S:.0f} s"
                    if missing
                    else f"the node did not subscribe to the images in {CONNECT_TIMEOUT_S:.0f} s"
                )
            self._progress("connecting to the node's topics")
            self._pause(_POLL_S)

    def _run_player(self, player: Player) -> None:
        halt = threading.Event()
        errors: list[Exception] = []

        def play() -> None:
            try:
                player.play(halt)
            except Exception as error:  # noqa: BLE001 - raised again in the main thread
                errors.append(error)

        thread = threading.Thread(target=play, name="demo_player")
        thread.start()
        try:
            while thread.is_alive():
                self._show_counts("playing")
                self._pause(0.1)
        finally:
            halt.set()
            thread.join()
        if errors:
            raise errors[0]

    def _drain(self) -> None:
        """Wait for the last outputs: until all that the node published came, or no more comes."""
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
        """Whether the node saw every frame, is done with it, and all it published arrived."""
        said = self.session.diagnostics
        return (
            int(said.get("frames_in", -1)) >= len(self.session.sent_ns)
            and said.get("frames_pending") == "0"
            and int(said.get("frames_out", -1)) <= self.session.recorded
        )

    def _pause(self, seconds: float) -> None:
        """Sleep; notice a signal, a dead node, a failure in the executor's thread."""
        if self._stop.wait(seconds):
            raise Stopped
        if self._failure is not None:
            raise self._failure
        status = self._process.exit_status
        if status is not None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            raise DemoError(f"the node ended unexpectedly ({how})")

    def _show_counts(self, what: str) -> None:
        self._progress(f"{what}: {len(self.session.sent_ns)} sent, {self.session.fused} fused")

    # --- ROS -------------------------------------------------------------------------------------

    def _spin(self) -> None:
        try:
            while not self._closing.is_set():
                self._executor.spin_once(timeout_sec=0.1)
        except Exception as error:  # noqa: BLE001 - a full disk, say: raised in the main thread
            self._failure = error

    def _lifecycle_state(self) -> str:
        """Return the node's state; an empty string while its service does not answer."""
        if not self._get_state.service_is_ready():
            return ""
        future = self._get_state.call_async(GetState.Request())
        end = time.monotonic() + 2.0
        while not future.done():
            if time.monotonic() > end:
                self._get_state.remove_pending_request(future)
                return ""
            self._pause(_POLL_S)
        response = future.result()
        return str(response.current_state.label) if response is not None else ""

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f"{NODE.lstrip('/')}:"):
                values = {each.key: each.value for each in status.values}
                self._problem = status.message if status.level == DiagnosticStatus.ERROR else ""
                # The last account that has ages: the window empties after the last frame.
                if "age_ms.p50" in values or "age_ms.p50" not in self.session.diagnostics:
                    self.session.diagnostics = values

    def _on_output(self, name: str, received_ns: int, data: bytes) -> None:
        if name == DIAGNOSTICS:
            self._on_diagnostics(deserialize_message(data, DiagnosticArray))
        else:
            self.session.outputs_ns.setdefault(name, {})[read_stamp(data)] = received_ns
