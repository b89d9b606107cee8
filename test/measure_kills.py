"""Ends commands at random moments, says what was lost: `python test/measure_kills.py [NAME ...]`.

Each of `COMMANDS` is started and ended `MOMENTS` times: by SIGINT, by SIGINT twice, by SIGTERM, by
SIGKILL, or by a disk that is full (its files may grow no more). What is left must be readable, and
no ending may print a traceback. What can go on is then run again without a disturbance, and must
end with what an undisturbed run ends with.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
MAGICFUSE = [sys.executable, "-m", "magicfuse_ros"]
MOMENTS = 20
ENDINGS = ("SIGINT", "SIGINT twice", "SIGTERM", "SIGKILL", "full disk")


@dataclass(frozen=True)
class Command:
    """A command to end: what starts it, and what must hold of the folder it works in.

    Attributes
    ----------
    start
        The command line, in a folder of its own.
    begun
        Whether it is at work: it is ended at some moment behind that.
    within_s
        How long behind that at most.
    check
        What was lost, in words; empty if nothing. It may run the command again.
    """

    start: Callable[[Path], list[str]]
    begun: Callable[[Path], bool]
    within_s: float
    check: Callable[[Path], str]


def record(folder: Path) -> list[str]:
    return [*MAGICFUSE, "bag", "record", str(folder / "drive"), "/image"]


def readable(folder: Path) -> str:
    """All messages of the recording are there, up to a second before a kill and to a full disk."""
    from magicfuse_ros.bags.reader import BagError, BagReader

    try:
        with BagReader(folder / "drive") as bag:
            times = [message.received_ns for message in bag.messages()]
    except BagError as error:
        return str(error)
    return "" if times else "no message"


def fuse(folder: Path) -> list[str]:
    return [sys.executable, str(HERE / "support/noop_bag_fuse.py"), str(INPUT), f"{folder}/fused"]


def goes_on(folder: Path) -> str:
    from support.fuse_bags import command, contents

    for place in (folder, folder.parent):  # the second one makes what an undisturbed run makes
        again = command(INPUT, place / "fused")
        if again.returncode:
            return again.stderr[-300:]
    same = contents(folder / "fused") == contents(folder.parent / "fused")
    return "" if same else "other messages than from an undisturbed run"


def some_file(folder: Path, least: int) -> bool:
    return any(file.stat().st_size > least for file in folder.rglob("*.mcap") if file.is_file())


def fuse_video(folder: Path) -> list[str]:
    from support.videos import evenly, write_video

    video = write_video(folder / "street.mp4", evenly(300))
    return [sys.executable, str(HERE / "support/noop_fuse.py"), str(video), f"{folder}/out.mp4"]


def plays(folder: Path) -> str:
    """Every picture is whole, and the video plays, under its name or as `out.partial.mp4`."""
    import cv2

    from magicfuse_ros.sources.source import open_source

    masks = sorted(folder.glob("out_mask/[0-9]*.png"))
    torn = [mask.name for mask in masks if cv2.imread(str(mask), cv2.IMREAD_UNCHANGED) is None]
    if torn:
        return f"pictures that are not whole: {torn}"
    if not (folder / "out.mp4").exists() and len(masks) > 60:  # its first 2 s are behind it
        try:
            open_source(folder / "out.partial.mp4")
        except ValueError as error:
            return str(error)
    return ""


def node(folder: Path) -> list[str]:
    """The node as scripts/fuse_node starts it, with a cache in which it has to compile."""
    held = ["env", "--block-signal=INT,TERM", f"XDG_CACHE_HOME={folder}/cache"]
    module = [sys.executable, "-m", "magicfuse_ros.ros.node.fuse_node"]
    return [*held, *module, "--ros-args", "-r", "__node:=ended"]


def starts_again(folder: Path) -> str:
    """No half-written artifact stands in the way: each that has its name is whole."""
    from magicfuse_ros.hashing import file_hash

    wrong = []
    for manifest in (folder / "cache").rglob("[!.]*/manifest.json"):
        files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
        for name, known in files.items():
            if file_hash(manifest.parent / name) != known["sha256"]:
                wrong.append(name)
    return f"artifacts that are not whole: {wrong}" if wrong else ""


COMMANDS = {
    "fuse_node": Command(node, lambda _folder: True, 15.0, starts_again),
    "fuse": Command(fuse_video, lambda folder: (folder / "out_mask").is_dir(), 4.0, plays),
    "bag record": Command(record, lambda folder: some_file(folder, 100), 3.0, readable),
    "bag fuse": Command(fuse, lambda folder: some_file(folder, 0), 2.0, goes_on),
}
INPUT = Path()


def environment() -> dict[str, str]:
    path = os.pathsep.join([str(HERE.parent), str(HERE)])
    return os.environ | {"PYTHONPATH": path, "NOOP_DELAY_S": "0.02", "SEGMENT_S": "0.3"}


def end(process: subprocess.Popen[str], ending: str, folder: Path) -> None:
    if ending == "full disk":
        largest = max((f.stat().st_size for f in folder.rglob("*") if f.is_file()), default=0)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (largest, resource.RLIM_INFINITY))
        if "fuse_node" in " ".join(process.args):  # which goes on without its files
            time.sleep(2.0)
            process.send_signal(signal.SIGINT)
    else:
        number = signal.Signals[ending.split(maxsplit=1)[0]]
        process.send_signal(number)
        if ending.endswith("twice"):
            time.sleep(0.01)
            process.send_signal(number)


def one(name: str, folder: Path, dice: random.Random, ending: str) -> str:
    """End the command once; return what is wrong, in words."""
    command = COMMANDS[name]
    process = subprocess.Popen(
        command.start(folder), env=environment(), text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    while not command.begun(folder) and process.poll() is None:
        time.sleep(0.01)
    time.sleep(dice.random() * command.within_s)
    end(process, ending, folder)
    try:
        _, errors = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return "did not end within 60 s"
    if "Traceback" in errors:
        return errors.strip()[-300:]
    return command.check(folder)


def main() -> int:
    global INPUT  # noqa: PLW0603 - a script
    from support.fuse_bags import drive, encode_image, header, picture

    from magicfuse_ros.ros.dds import isolate

    names = sys.argv[1:] or list(COMMANDS)
    isolate(os.environ, 60)
    with tempfile.TemporaryDirectory() as scratch:
        INPUT = drive(Path(scratch, "input"), frames=60)
        source = Path(scratch, "source")
        write_source(
            source,
            [encode_image(picture(i, 320, 240), "rgb8", header(i, "eye")) for i in range(20)],
        )
        # Heard by what records.
        player = subprocess.Popen(
            [*MAGICFUSE, "bag", "play", str(source), "--loop"], stdout=subprocess.DEVNULL
        )
        dice, wrong = random.Random(13), 0
        for name in names:
            found: Counter[str] = Counter()
            for moment in range(MOMENTS):
                ending = ENDINGS[moment % len(ENDINGS)]
                folder = Path(scratch, name.replace(" ", "_"), str(moment))
                folder.mkdir(parents=True)
                trouble = one(name, folder, dice, ending)
                found["bad" if trouble else "good"] += 1
                print(f"{name}, {ending}: {trouble or 'nothing lost'}", flush=True)
            wrong += found["bad"]
            print(f"{name}: {found['good']} of {MOMENTS} moments without a loss", flush=True)
        player.terminate()
        player.wait()
    return 1 if wrong else 0


def write_source(path: Path, images: list[object]) -> None:
    from rclpy.serialization import serialize_message

    from magicfuse_ros.bags.reader import Topic
    from magicfuse_ros.bags.writer import BagWriter

    with BagWriter(path) as bag:
        bag.add_topic(Topic("/image", "sensor_msgs/msg/Image"))
        for index, image in enumerate(images):
            bag.write("/image", index * 50_000_000, serialize_message(image))


if __name__ == "__main__":
    sys.exit(main())
