"""`magicfuse fuse …`: fuse an image, a folder of images or a video, without ROS running."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from magicfuse_ros.commands.arguments import add_engine_arguments, engine_arguments
from magicfuse_ros.commands.exit_status import DONE, FAILED, INCOMPLETE, SCHEME, status_of

HELP = "fuse an image, a folder of images or a video into files"

OUTPUTS = ("magimg", "infrared", "enhanced", "mask", "color", "confidence")
DEFAULT_OUTPUTS = ("magimg", "mask")

_DETAILS = f"""
INPUT is one image, a folder of images (not its subfolders), or a video.

OUTPUT is a folder, unless its name ends like an image or a video:
  folder         OUTPUT/magimg/NAME.png, OUTPUT/mask/NAME.png ... one folder an output, every
                 picture named after its image without the ending (with it, where two images
                 would share a name); a video's frames are 000000.png, 000001.png ...
  image file     (INPUT is an image) the first of --outputs goes there, any other beside it:
                 fused.png, fused_mask.png ...
  video file     (INPUT is a video; .mp4 .m4v .mov .mkv .avi) the same, each frame at its own
                 time; mask and confidence go to folders of PNG files instead, because a video
                 codec would change their numbers

Outputs, all of the input's size:
  magimg         the fused picture, RGB
  infrared       the infrared picture that the model imagines, grey
  enhanced       the restored visible picture, RGB
  mask           class ids, grey: 0, 1, 2 ... of the model's label set
  color          the classes' colours over magimg, RGB
  confidence     how sure the mask is, grey: 0 to 255

With --mcap or --rerun, all streams (the input and every output) also go into one file, under the
topics that fuse_node has, with the names of the classes. Foxglove opens the first, with the layout
in config/foxglove.json; it holds raw pictures, some 5 MB a frame of 640x480. The Rerun viewer opens
the second, whose pictures are JPEGs.

The same input and settings give the same files. Nothing is replaced without --overwrite. A file
has its name when it is whole; a video that an error or a crash ended stays as NAME.partial.mp4.
Ctrl-C and SIGTERM finish the videos first. Videos need the package av.

Examples:
  magicfuse fuse night.jpg fused.png
  magicfuse fuse photos/ results/ --outputs magimg,infrared,mask,color
  magicfuse fuse street.mp4 fused.mp4
  magicfuse fuse street.mp4 fused.mp4 --mcap street.mcap

{SCHEME}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments; for those not given, the engine or the model has defaults."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _DETAILS
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help="image, folder of images or video"
    )
    parser.add_argument(
        "output", type=Path, metavar="OUTPUT", help="folder, image or video to write"
    )
    parser.add_argument(
        "--outputs",
        type=_outputs,
        default=DEFAULT_OUTPUTS,
        metavar="LIST",
        help=f"what to write, joined by commas, of: {', '.join(OUTPUTS)} "
        f"(default: {','.join(DEFAULT_OUTPUTS)})",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace results that are there already"
    )
    for kind, viewer in (("mcap", "Foxglove"), ("rerun", "the Rerun viewer")):
        parser.add_argument(
            f"--{kind}", type=Path, metavar="FILE", help=f"log all streams for {viewer} too"
        )
    add_engine_arguments(parser)


def _outputs(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [name for name in names if name not in OUTPUTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown) or 'nothing'} asked for; accepted: {', '.join(OUTPUTS)}"
        )
    return names


def run(args: argparse.Namespace) -> int:
    """Fuse everything; returns the exit status that the help describes."""
    from magicfuse_ros.commands.fuse_files import OutputError
    from magicfuse_ros.commands.fuse_session import fuse_all
    from magicfuse_ros.runtime.contract import EngineError, EngineSettings
    from magicfuse_ros.sources.frame import SourceError

    try:
        left_out = fuse_all(
            args.input,
            args.output,
            args.outputs,
            EngineSettings(**engine_arguments(args)),
            overwrite=args.overwrite,
            logs={kind: vars(args)[kind] for kind in ("mcap", "rerun") if vars(args)[kind]},
        )
    except (EngineError, OutputError, SourceError) as error:
        print(f"magicfuse fuse: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        print("magicfuse fuse: stopped; what was written stays", file=sys.stderr)
        return status_of(stop)
    return INCOMPLETE if left_out else DONE
