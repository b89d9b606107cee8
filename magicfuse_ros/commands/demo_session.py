"""One run of the demo: a bag is played to `fuse_node`, and what the node publishes is recorded."""

from __future__ import annotations

from magicfuse_ros.bags.player import Player, PlayerSettings
from magicfuse_ros.bags.reader import BagReader, Topic
from magicfuse_ros.bags.recorder import Recorder
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.commands.node_session import (
    COLOR,
    CONFIDENCE,
    DIAGNOSTICS,
    ENHANCED,
    INFRARED,
    MAGIMG,
    MASK,
    NODE,
    NodeSession,
    SessionError,
)

OUTPUTS = (MAGIMG, MASK, COLOR, INFRARED, ENHANCED, CONFIDENCE, DIAGNOSTICS)
OPTIONAL_OUTPUTS = (f"{NODE}/camera_info", f"{NODE}/semantic/label_info")


class DemoSession(NodeSession):
    """A session that plays a bag itself."""

    def play(self, bag: BagReader, topic: Topic, out: BagWriter) -> None:
        """Play the image topic of `bag` to the node and record its outputs into `out`.

        The frames are sent with the wall time as their stamp, so that their ages are real. They are
        also written to `out` as they were sent, so that inputs and outputs have the same stamps.

        Raises
        ------
        SessionError
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
            self._connect(recorder, OUTPUTS, lambda: player.wait_for_subscribers(0.0, self._stop))
            self._run_player(player, lambda _halt: self._show_counts("playing"))
            self._drain()
            if self.session.recorded == 0:
                raise SessionError(f"no frame came out of {len(self.session.sent_ns)} sent")
        finally:
            recorder.close()
