"""Watches `fuse_node` in another process: its state, its diagnostics, its outputs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Mapping
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

from magicfuse_ros.bags.player import Player
from magicfuse_ros.bags.recorder import Recorder
from magicfuse_ros.commands.node_process import NodeProcess
from magicfuse_ros.ros.stamps import read_stamp

NODE = "/fuse_node"
MAGIMG = f"{NODE}/magimg"
MASK = f"{NODE}/semantic/mask"
CONFIDENCE = f"{NODE}/semantic/confidence"
COLOR = f"{NODE}/semantic/color"
INFRARED = f"{NODE}/infrared"
ENHANCED = f"{NODE}/enhanced"
DIAGNOSTICS = "/diagnostics"

ACTIVE_TIMEOUT_S = 600.0
CONNECT_TIMEOUT_S = 20.0
FRAME_TIMEOUT_S = 60.0
QUIET_S = 3.0
SETTLE_S = 0.5
_POLL_S = 0.05

Progress = Callable[[str], None]


class SessionError(RuntimeError):
    """The session cannot go on; the message says why."""


class Stopped(Exception):  # noqa: N818 - the user asked for it, nothing failed
    """Ctrl-C or a signal."""


@dataclass
class Session:
    """What happened in a session.

    Attributes
    ----------
    sent_ns
        Header stamp of every frame sent, in order, in ns.
    outputs_ns
        By output topic: header stamp → time of arrival at the recorder, both in ns.
    diagnostics
        The node's last diagnostics, by key (see `magicfuse_ros.ros.diagnostics`).
    before
        The diagnostics when the session began; empty for a node that had done nothing yet.
    """

    sent_ns: list[int] = field(default_factory=list)
    outputs_ns: dict[str, dict[int, int]] = field(default_factory=dict)
    diagnostics: dict[str, str] = field(default_factory=dict)
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
    """The ROS side of this process: one node, which a thread spins.

    Parameters
    ----------
    node_process
        The running `fuse_node`.
    stop
        Set by signals; every wait then ends with `Stopped`.
    progress
        Called with a line of text on what is going on.

    Attributes
    ----------
    session
        What happened so far.
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
        self._node = Node(
            "magicfuse_session", context=self._context, start_parameter_services=False
        )
        self._node.create_subscription(DiagnosticArray, DIAGNOSTICS, self._on_diagnostics, 10)
        self._get_state: Client[Any, Any] = self._node.create_client(GetState, f"{NODE}/get_state")
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name="session_executor")
        self._thread.start()

    def wait_until_active(self) -> None:
        """Wait until the node's lifecycle state is ``active``.

        Raises
        ------
        SessionError
            The node died, could not be configured, or took too long.
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
            lines = self._process.last_lines(1)
            self._progress(f"waiting for the node, {waited_s:.0f} s  {lines[-1] if lines else ''}")
            self._pause(0.25)

    def close(self) -> None:
        """Stop spinning, and shut this process's ROS node down."""
        self._closing.set()
        self._thread.join()
        self._executor.shutdown()
        self._node.destroy_node()
        self._context.try_shutdown()

    # --- waiting ---------------------------------------------------------------------------------

    def _connect(
        self, recorder: Recorder, outputs: Collection[str], subscribed: Callable[[], bool]
    ) -> None:
        """Wait until `recorder` is subscribed to all `outputs`, and the node to the camera."""
        end = time.monotonic() + CONNECT_TIMEOUT_S
        while True:
            ready = subscribed()
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

    def _run_player(self, player: Player, watch: Callable[[threading.Event], None]) -> None:
        """Play beside this thread, which watches the node.

        `watch` is called ten times a second meanwhile, with the event that ends the playing.
        """
        halt = threading.Event()
        errors: list[Exception] = []

        def play() -> None:
            try:
                player.play(halt)
            except Exception as error:  # noqa: BLE001 - raised again in the main thread
                errors.append(error)

        thread = threading.Thread(target=play, name="session_player")
        thread.start()
        try:
            while thread.is_alive():
                watch(halt)
                self._pause(0.1)
        finally:
            halt.set()
            thread.join()
        if errors:
            raise errors[0]

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
        """Sleep; raise if a signal came, the node died, or the executor's thread failed."""
        if self._stop.wait(seconds):
            raise Stopped
        if self._failure is not None:
            raise self._failure
        status = self._process.exit_status
        if status is not None:
            how = f"exit status {status}" if status >= 0 else f"signal {-status}"
            raise SessionError(f"the node ended unexpectedly ({how})")

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
        response = self._call(self._get_state, GetState.Request(), 2.0)
        return "" if response is None else str(response.current_state.label)

    def _call(self, client: Client[Any, Any], request: Any, timeout_s: float) -> Any:
        """Call a service of the node; None while it does not answer."""
        if not client.service_is_ready():
            return None
        future = client.call_async(request)
        end = time.monotonic() + timeout_s
        while not future.done():
            if time.monotonic() > end:
                client.remove_pending_request(future)
                return None
            self._pause(_POLL_S)
        return future.result()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f"{NODE.lstrip('/')}:"):
                values = {each.key: each.value for each in status.values}
                self._problem = status.message if status.level == DiagnosticStatus.ERROR else ""
                self._on_words(values)

    def _on_words(self, values: dict[str, str]) -> None:
        # Keep the last diagnostics that have ages: their window empties after the last frame.
        if "age_ms.p50" in values or "age_ms.p50" not in self.session.diagnostics:
            self.session.diagnostics = values

    def _on_output(self, name: str, received_ns: int, data: bytes) -> None:
        if name == DIAGNOSTICS:
            self._on_diagnostics(deserialize_message(data, DiagnosticArray))
        else:
            self.session.outputs_ns.setdefault(name, {})[read_stamp(data)] = received_ns
