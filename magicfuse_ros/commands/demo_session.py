"""One run of the demo: a bag is played to `fuse_node`; what comes out is recorded and shown."""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from magicfuse_ros.bags.from_video import write_bag
from magicfuse_ros.bags.image_topics import COMPRESSED_TYPE, describe_images
from magicfuse_ros.bags.player import PlayerSettings
from magicfuse_ros.bags.reader import BagReader, Topic
from magicfuse_ros.bags.suffixes import is_bag
from magicfuse_ros.bags.writer import BagWriter
from magicfuse_ros.commands.arguments import choose_topic
from magicfuse_ros.commands.demo_pictures import Texts, write_pictures
from magicfuse_ros.commands.exit_status import StopRequest
from magicfuse_ros.commands.node_process import NodeProcess, fuse_node_command
from magicfuse_ros.commands.node_session import (
    COLOR,
    CONFIDENCE,
    DIAGNOSTICS,
    ENHANCED,
    INFRARED,
    MAGIMG,
    MASK,
    NodeSession,
    Session,
    SessionError,
)
from magicfuse_ros.commands.progress_line import ProgressLine
from magicfuse_ros.evaluation.clip_degradation import degradation
from magicfuse_ros.resources import sample_video
from magicfuse_ros.ros.dds import isolate, prepare
from magicfuse_ros.ros.diagnostics import label_set_of
from magicfuse_ros.sources.source import open_source
from magicfuse_ros.whole_files import check_writable

OUTPUTS = (MAGIMG, MASK, COLOR, INFRARED, ENHANCED, CONFIDENCE, DIAGNOSTICS)


@dataclass(frozen=True)
class Input:
    """What is played: a bag, its image topic, and texts that describe it."""

    bag: Path
    topic: Topic
    description: str
    caption: str


class Demo:
    """One run of the demo, step by step; `args` are those of the command."""

    def __init__(self, args: argparse.Namespace, stop: StopRequest, show: ProgressLine) -> None:
        self._args, self._stop, self._show = args, stop, show
        self._folder: Path = args.output_dir.resolve()

    def run(self) -> None:
        """Run all steps, and print the table at the end.

        Raises SessionError, BagError, ValueError or OSError if a step failed; the message says
        which and why. Raises KeyboardInterrupt if a signal came.
        """
        check_writable(self._folder)
        out = self._folder / "output.bag"
        if out.exists():
            self._show.end(f"replaces  what an earlier run left in {self._folder}")
        source = self._prepare_input()
        self._show.end(f"input     {source.description}")
        remove_bag(out)
        session = self._fuse(source, out)
        pictures = self._make_pictures(source, session, out)
        for line in (
            "",
            *table(source.description, session),
            "",
            *(f"wrote {path}" for path in (*pictures, out)),
            f"to see the same input live, in the browser: {self._view(source)}",
        ):
            print(line)

    def _view(self, source: Input) -> str:
        beside = Path(sys.executable).with_name("magicfuse")  # of an environment that is not active
        program = str(beside) if beside.exists() else "magicfuse"
        topic = [] if self._args.topic is None else ["--topic", source.topic.name]
        return shlex.join([program, "view", str(source.bag.resolve()), *topic])

    def _prepare_input(self) -> Input:
        given: Path | None = self._args.input
        degrade: str | None = self._args.degrade
        if given is not None and is_bag(given):
            if degrade is not None:
                raise ValueError("--degrade works on a video or an image folder, not on a bag")
            bag_path = given
        else:
            if self._args.topic is not None:
                raise ValueError("--topic names a topic of a bag; the input is not a bag")
            bag_path = self._convert(given or sample_video(), degrade)
        with BagReader(bag_path) as bag:
            topic = choose_topic(bag.topics, self._args.topic, bag_path)
            picture = describe_images(bag)[topic.name]
            seconds = bag.duration_s
            rate = f"{(topic.count - 1) / seconds:.0f} fps" if seconds else "all at once"
        name = (given or sample_video()).name
        worse = f", made worse by {degrade}" if degrade else ""
        return Input(
            bag_path,
            topic,
            f"{name}: {topic.count} frames, {picture}, {rate}{worse}",
            re.sub(r"[-_:]", " ", degrade).replace(",", ", ") if degrade else name,
        )

    def _convert(self, path: Path, degrade: str | None) -> Path:
        source = open_source(path)
        bag = self._folder / "input.bag"
        remove_bag(bag)
        write_bag(
            source,
            bag,
            start_ns=time.time_ns(),
            transform=degradation(degrade) if degrade else None,
            progress=lambda count: self._tell(
                f"making {bag.name}: {count} of {source.count} frames"
            ),
        )
        return bag

    def _fuse(self, source: Input, out: Path) -> Session:
        # This process needs it too, because it plays and records.
        for warning in prepare(os.environ):
            self._show.end(warning)
        isolate(os.environ, 1 + os.getpid() % 100)
        compressed = source.topic.type == COMPRESSED_TYPE
        parameters = {"input_transport": "compressed" if compressed else "raw"}
        if self._args.model is not None:
            parameters["model"] = self._args.model
        command = fuse_node_command(
            {"image/compressed" if compressed else "image": source.topic.name}, parameters
        )
        # Frames are sent with the wall time as their stamp, so that their ages are real.
        settings = PlayerSettings(restamp=True, topics=(source.topic.name,))
        log, domain = self._folder / "node.log", os.environ["ROS_DOMAIN_ID"]
        with NodeProcess(command, os.environ, log) as process:
            self._show.end(f"node      another process, ROS_DOMAIN_ID={domain}, log in {log}")
            with closing(NodeSession(process, self._stop, self._show)) as node:
                try:
                    node.wait_until_active()
                    self._show.end("node      active")
                    with (
                        BagReader(source.bag) as bag,
                        BagWriter(out) as writer,
                        node.connected(bag, source.topic, settings, OUTPUTS, writer) as player,
                    ):
                        node.play(player, "playing")
                except SessionError as error:
                    lines = "\n".join(f"  {line}" for line in process.last_lines())
                    raise SessionError(
                        f"{error}; the node's last words ({log}):\n{lines}"
                    ) from error
                return node.session

    def _make_pictures(self, source: Input, session: Session, out: Path) -> list[Path]:
        said = session.diagnostics
        texts = Texts(
            source.topic.name,
            source.caption,
            facts=(
                f"model {model_name(said)}",
                f"{session.fps:.1f} fps, age at publish {ages_ms(session)[0]} ms (p50 / p95)",
            ),
            labels=label_set_of(said),
            trained=is_trained(session),
        )
        with BagReader(out) as bag:
            pictures = write_pictures(
                bag,
                self._folder / "side_by_side",
                texts,
                session.fps,
                lambda count: self._tell(f"making the video: {count} of {session.recorded} frames"),
            )
        if not pictures:
            raise SessionError(
                f"no input frame of {out} has all of the node's outputs with its stamp"
            )
        self._show.end()
        return pictures

    def _tell(self, text: str) -> None:
        """Show what is going on; raise KeyboardInterrupt if a signal came."""
        if self._stop.is_set():
            raise KeyboardInterrupt
        self._show(text)


def remove_bag(path: Path) -> None:
    """Remove a bag of an earlier run; if `path` is anything else, the writer will report it."""
    if path.is_dir() and ((path / "metadata.yaml").is_file() or not any(path.iterdir())):
        shutil.rmtree(path)


def is_trained(session: Session) -> bool:
    """Whether the node said that its weights are trained."""
    return session.diagnostics.get("trained") == "true"


def table(description: str, session: Session) -> list[str]:
    """Return the lines of the closing table."""
    said = session.diagnostics
    sent = len(session.sent_ns)
    at_publish, on_arrival = ages_ms(session)
    dropped = {
        key.partition(".")[2]: int(value)
        for key, value in said.items()
        if key.startswith("dropped.") and value != "0"
    }
    names = {"replaced": "replaced by a newer frame"}
    reasons = [f"{count} {names.get(reason, reason)}" for reason, count in dropped.items()]
    lost = sent - session.fused - sum(dropped.values())
    if lost > 0:
        reasons.append(f"{lost} lost on the way")
    weights = "trained" if is_trained(session) else "UNTRAINED: the pictures mean nothing"
    missed = session.fused - session.recorded
    rows = {
        "input": description,
        "model": f"{model_name(said)}, {weights}",
        "frames sent": f"{sent}",
        "frames fused": f"{session.fused}",
        "frames recorded": f"{session.recorded}  ({missed} lost on the way)" if missed else "",
        "frames dropped": f"{sent - session.fused}"
        + (f"  ({', '.join(reasons)})" if reasons else ""),
        "fps": f"{session.fps:.1f}",
        "age at publish, p50 / p95 ms": f"{at_publish}  (the node's /diagnostics)",
        "age on arrival, p50 / p95 ms": f"{on_arrival}  (recorder's clock - header stamp)",
    }
    width = max(map(len, rows))
    return [f"{name:<{width}}  {value}" for name, value in rows.items() if value]


def model_name(said: Mapping[str, str]) -> str:
    """Name the model and what ran it, without the folders of a path."""
    return f"{Path(said.get('model', 'unknown')).name} ({said.get('backend', 'unknown')})"


def ages_ms(session: Session) -> tuple[str, str]:
    """Return p50 / p95 in ms of a frame's age when the node published it, and when it was recorded.

    The first is by the node's clock, from its /diagnostics (last 30 s); the second is over all
    frames.
    """
    said = session.diagnostics
    publish = "unknown"
    if "age_ms.p50" in said:
        publish = f"{float(said['age_ms.p50']):.0f} / {float(said['age_ms.p95']):.0f}"
    arrival = session.arrival_ages_ms(50.0, 95.0)
    return publish, f"{arrival[0]:.0f} / {arrival[1]:.0f}" if arrival else "unknown"
