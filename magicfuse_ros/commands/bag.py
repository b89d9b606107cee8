"""`magicfuse bag …`: make, play, record, fuse and describe bags on a machine without ROS."""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from magicfuse_ros.commands import bag_fuse
from magicfuse_ros.commands.arguments import given, size
from magicfuse_ros.commands.exit_status import DONE, FAILED, INCOMPLETE, stop_on_signals

if TYPE_CHECKING:
    from magicfuse_ros.bags.reader import BagReader
    from magicfuse_ros.ros.tool_node import ToolNode

HELP = "make, play, record, fuse and describe ROS 2 bags, without a ROS installation"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions; their defaults are those of the classes they call."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    make = actions.add_parser("from-video", help="make a bag of a video or an image folder")
    make.add_argument("input", type=Path, help="video file or folder of images")
    make.add_argument("out", type=Path, help="bag to make (a folder)")
    make.add_argument(
        "--fps", type=float, help="frames a second (default: the video's; folder: 10)"
    )
    make.add_argument("--size", type=size, metavar="WxH", help="scale every frame, e.g. 640x480")
    make.add_argument("--storage", help="mcap (default) or sqlite3")
    make.add_argument("--compressed", action="store_true", help="JPEG CompressedImage, not raw")
    make.add_argument("--topic", help="default: /image, or /image/compressed with --compressed")
    make.add_argument("--frame-id", help="frame_id of every header (default: camera)")
    make.add_argument(
        "--degrade",
        metavar="KIND",
        help="make the pictures worse, the same way every time: low-light, noise, haze, ...",
    )

    play = actions.add_parser("play", help="publish a bag's messages with their own timing")
    play.add_argument("bag", type=Path)
    play.add_argument("--rate", type=float, help="speed; 2 plays twice as fast (default: 1)")
    play.add_argument("--loop", action="store_true", help="start over at the end; time goes on")
    play.add_argument("--topics", nargs="+", metavar="NAME", help="play only these")
    play.add_argument("--reliability", help="auto (default: as recorded), reliable or best_effort")
    play.add_argument(
        "--restamp",
        action="store_true",
        help="set header stamps to the wall time of sending; without it they stay as recorded and "
        "the bag's time is published on /clock for nodes with use_sim_time",
    )
    play.add_argument(
        "--wait-for-subscribers",
        type=float,
        metavar="SECONDS",
        help="start when every topic has a subscriber, and fail after this long without",
    )

    record = actions.add_parser("record", help="record topics until Ctrl-C")
    record.add_argument("out", type=Path, help="bag to make (a folder)")
    record.add_argument("topics", nargs="*", help="full topic names (default: every topic)")
    record.add_argument("--storage", help="mcap (default) or sqlite3")
    record.add_argument("--duration", type=float, metavar="SECONDS", help="stop by itself")

    bag_fuse.add_arguments(
        actions.add_parser("fuse", help=bag_fuse.HELP, description=bag_fuse.HELP)
    )

    info = actions.add_parser("info", help="say what is in a bag")
    info.add_argument("bag", type=Path)


def run(args: argparse.Namespace) -> int:
    """Run one action and return its exit status; errors are one line on stderr."""
    from magicfuse_ros.bags.reader import BagError

    actions = {
        "from-video": _from_video,
        "play": _play,
        "record": _record,
        "fuse": bag_fuse.run,
        "info": _info,
    }
    try:
        return actions[args.action](args)
    except (BagError, ValueError) as error:  # SourceError and the settings' checks are ValueErrors
        print(f"magicfuse bag {args.action}: {error}", file=sys.stderr)
        return FAILED


def _from_video(args: argparse.Namespace) -> int:
    from magicfuse_ros.bags.from_video import write_bag
    from magicfuse_ros.sources.source import open_source

    source = open_source(args.input)
    if args.fps is not None:
        source = source.at_rate(args.fps)
    if args.size is not None:
        source = source.of_size(args.size)
    options = given(args, "storage", "frame_id")
    options["topic"] = args.topic or ("/image/compressed" if args.compressed else "/image")
    if args.degrade is not None:
        from magicfuse_ros.evaluation.clip_degradation import degradation

        options["transform"] = degradation(args.degrade)
    stop = stop_on_signals()
    faults: list[str] = []

    def left_out(fault: str) -> None:
        faults.append(fault)
        print(f"left out: {fault}", file=sys.stderr)

    count = write_bag(
        source,
        args.out,
        start_ns=time.time_ns(),
        compressed=args.compressed,
        stop=stop,
        left_out=left_out,
        **options,
    )
    print(f"{args.out}: {count} frames, {count / source.rate:.1f} s at {source.rate:.4g} fps")
    return stop.status or (INCOMPLETE if faults else DONE)


def _play(args: argparse.Namespace) -> int:
    from magicfuse_ros.bags.player import Player, PlayerSettings
    from magicfuse_ros.bags.reader import BagReader

    settings = PlayerSettings(
        loop=args.loop,
        restamp=args.restamp,
        topics=tuple(args.topics) if args.topics else None,
        **given(args, "rate", "reliability"),
    )
    stop = stop_on_signals()
    with BagReader(args.bag) as reader, _node("magicfuse_bag_play") as ros:
        _remark(reader)
        player = Player(reader, ros.node, settings)
        for name, kind in player.skipped.items():
            print(f"not playing {name}: {kind} is not installed here", file=sys.stderr)
        if args.wait_for_subscribers is not None:
            ready = player.wait_for_subscribers(args.wait_for_subscribers, stop)
            if not ready and not stop.is_set():
                print(
                    f"magicfuse bag play: no subscriber on every topic within "
                    f"{args.wait_for_subscribers:g} s; check topic names and ROS_DOMAIN_ID",
                    file=sys.stderr,
                )
                return FAILED
        _say(f"playing {args.bag}: {player.duration_s:.1f} s")
        sent = player.play(stop)
        _say(f"sent {sent} messages")
    for name, text in player.left_out.items():
        print(f"left out of {name}: {text}", file=sys.stderr)
    return stop.status or (INCOMPLETE if player.left_out else DONE)


def _record(args: argparse.Namespace) -> int:
    stop = stop_on_signals(impatient=False)  # a second Ctrl-C must not keep the bag from closing
    from magicfuse_ros.bags.reader import BagError
    from magicfuse_ros.bags.recorder import Recorder
    from magicfuse_ros.bags.writer import BagWriter

    writer = BagWriter(args.out, **given(args, "storage"))
    recorder, trouble = None, ""
    try:
        with writer, _node("magicfuse_bag_record") as ros:
            recorder = Recorder(ros.node, writer, args.topics or None)
            _say(f"recording into {args.out}; Ctrl-C ends it")
            end = time.monotonic() + (args.duration or float("inf"))
            while not stop.is_set() and time.monotonic() < end:
                ros.executor.spin_once(timeout_sec=0.1)
            recorder.take_arrived(ros.executor)
            recorder.close()
    except BagError as error:
        trouble = str(error)
    counts = recorder.counts if recorder is not None else {}
    for name, count in sorted(counts.items()):
        _say(f"{count:8d}  {name}")
    if trouble:
        kept = f"{writer.count} messages are kept in it" if writer.count else "nothing is in it"
        print(f"magicfuse bag record: {trouble}; {kept}", file=sys.stderr)
        return FAILED
    missing = sorted(set(args.topics) - set(counts))
    if missing:
        print(f"nothing was published on {', '.join(missing)}", file=sys.stderr)
    return INCOMPLETE if missing else DONE


def _info(args: argparse.Namespace) -> int:
    from magicfuse_ros.bags.image_topics import describe_topic, image_topics
    from magicfuse_ros.bags.reader import BagError, BagReader

    with BagReader(args.bag) as bag:
        _remark(bag)
        print(f"bag       {args.bag} ({bag.storage})")
        if bag.message_count:
            start = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(bag.start_ns / 1e9))
            print(f"start     {start} ({bag.start_ns / 1e9:.3f})")
        print(f"duration  {bag.duration_s:.2f} s")
        print(f"messages  {bag.message_count}")
        unreadable = []
        for topic in bag.topics:
            rate = (topic.count - 1) / bag.duration_s if bag.duration_s and topic.count > 1 else 0
            details = [f"{topic.count:6d}", f"{rate:6.2f} Hz", topic.reliability]
            if topic.durability == "transient_local":
                details.append(topic.durability)
            if topic in image_topics(bag):
                try:
                    details.append(describe_topic(bag, topic))
                except BagError as error:
                    unreadable.append(str(error))
            print(f"  {topic.name}  {topic.type}  {'  '.join(details)}")
    for text in unreadable:
        print(text, file=sys.stderr)
    return INCOMPLETE if unreadable else DONE


def _remark(bag: BagReader) -> None:
    for text in bag.remarks:
        print(f"bag {bag.path}: {text}", file=sys.stderr)


def _say(text: str) -> None:
    """Print a line that nobody needs: the reader of the output may have gone."""
    with suppress(OSError):
        print(text, flush=True)


def _node(name: str) -> closing[ToolNode]:
    """Open a ROS node of this command's own."""
    from magicfuse_ros.ros.dds import prepare
    from magicfuse_ros.ros.tool_node import ToolNode

    for warning in prepare(os.environ):
        print(f"magicfuse bag: {warning}", file=sys.stderr)
    return closing(ToolNode(name))
