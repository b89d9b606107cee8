"""Folder layouts of the public datasets, each turned into a `Source` of frames.

Every reader takes the dataset's folder and the split, `train` or `val`, checks that each visible
file has its partners, and raises `DatasetError` naming the first that is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import cv2

from magicfuse_ros.sources.picture_errors import PictureError
from magicfuse_ros.sources.pictures import picture_files
from magicfuse_ros.training.datasets import label_maps
from magicfuse_ros.training.datasets.boxes import read_lines, read_voc, read_yolo
from magicfuse_ros.training.datasets.frames import DatasetError, Frame, Source

VISIBLE = ("visible", "Visible", "vi", "crop_LR_visible")
INFRARED = ("infrared", "Infrared", "ir", "cropinfrared")
LABELS = ("labels", "Label", "Segmentation_labels", "label")
PSEUDO = "pseudo"
_NIGHT = {"N": True, "D": False}
"""What the last letter of a name in MSRS and MFNet tells."""

# Held out of training as moving-picture validation: a street scene at dusk with a person walking,
# and one of the two smoke videos. No other clip shows these scenes.
M3SVD_VAL_VIDEOS = ("0117_1620",)
M3SVD_VAL_CLIPS = ("0111_1803",)
# Videos taken in smoke: their visible image is no clean target.
M3SVD_SMOKE = ("0117_",)
# Neighbouring frames of a 30 fps video teach next to nothing new.
M3SVD_STRIDE = 5


def read_source(layout: str, root: Path, split: str) -> Source:
    """Read the folder `root` of a dataset in one of `LAYOUTS`; the split is `train` or `val`.

    Raises
    ------
    DatasetError
        If the layout or split is unknown, a file is missing, two pictures have one name, or a
        value among the boxes is wrong. Pictures are read by `Source.items` alone.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> import cv2, numpy as np
    >>> from magicfuse_ros.training.datasets.layouts import read_source
    >>> root = pathlib.Path(tempfile.mkdtemp()) / "camvid"
    >>> for folder, shape in (("visible", (48, 64, 3)), ("labels", (48, 64))):
    ...     (root / "train" / folder).mkdir(parents=True)
    ...     _ = cv2.imwrite(str(root / "train" / folder / "1.png"), np.full(shape, 3, np.uint8))
    >>> source = read_source("camvid", root, "train")
    >>> source.name, len(source.frames), source.classes[3]
    ('camvid/train', 1, 'road')
    >>> next(source.items()).visible.shape
    (48, 64, 3)
    """
    if layout not in LAYOUTS:
        raise DatasetError(f"layout {layout!r} is unknown; use one of {tuple(LAYOUTS)}")
    if split not in {"train", "val"}:
        raise DatasetError(f"split {split!r} is unknown; use train or val")
    if not root.is_dir():
        raise DatasetError(f"{root} is missing; give the folder of the {layout} dataset")
    return LAYOUTS[layout](root, split)


def find_sources(root: Path, split: str, layouts: Sequence[str] | None = None) -> list[Source]:
    """Read every dataset under `root` whose folder is named after its layout and has the split.

    One without labels takes those in `root/pseudo/<layout>/<split>/labels`: PNG files in the ids of
    CamVid, named as its frames, with `_` for `:`. A frame that has none there stays without.

    Raises
    ------
    DatasetError
        If a file is missing, or nothing is found at all.
    """
    found = []
    for layout in LAYOUTS if layouts is None else layouts:
        folder = root / layout
        if folder.is_dir() and (split == "train" or _has_validation(layout, folder)):
            labels = root / PSEUDO / layout / split / LABELS[0]
            found.append(_with_pseudo_labels(read_source(layout, folder, split), labels))
        elif layouts is not None and not folder.is_dir():
            raise DatasetError(f"{folder} is missing; it should hold the {layout} dataset")
    if not found:
        raise DatasetError(f"{root} holds no dataset; name its folders as in {tuple(LAYOUTS)}")
    return found


def _with_pseudo_labels(source: Source, folder: Path) -> Source:
    if source.classes or not folder.is_dir():
        return source
    labels = by_stem(folder)
    frames = []
    for frame in source.frames:
        found = labels.get(frame.name.replace(":", "_"))
        frames.append(frame if found is None else replace(frame, labels=found, pseudo=True))
    return Source(source.name, tuple(frames), label_maps.CAMVID)


def _pairs(root: Path, split: str, classes: dict[int, str] = label_maps.MFNET) -> Source:
    """Read `<split>/{visible,infrared}/` and, if there, `labels/` and YOLO `boxes/*.txt`."""
    folder = _split_folder(root, split)
    pairs, labels, boxes = _pair(folder), _one_of(folder, LABELS), folder / "boxes"
    masks: Sequence[Path | None] = [None] * len(pairs)
    if labels is not None:
        masks = _partners([visible for visible, _ in pairs], labels)
    frames = []
    for (visible, infrared), mask in zip(pairs, masks, strict=True):
        stem = visible.stem
        known = read_yolo(boxes / f"{stem}.txt") if boxes.is_dir() else None
        night = _NIGHT.get(stem[-1])
        frames.append(Frame(stem, visible, infrared, mask, boxes=known, night=night))
    return _source(root, split, frames, {} if labels is None else classes)


def _mfnet(root: Path, split: str) -> Source:
    """Read the original MFNet: `images/*.png` (RGB + thermal), `labels/`, `<split>.txt`."""
    listing = root / f"{split}.txt"
    if not listing.is_file():
        return _pairs(root, split)
    frames = []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(listing), 1):
        stem = line.strip()
        if not stem:
            continue
        image, mask = root / "images" / f"{stem}.png", root / "labels" / f"{stem}.png"
        for path in (image, mask):
            if not path.is_file():
                raise DatasetError(f"{path} is missing; {listing} line {number} names it")
        if lines.setdefault(stem, number) != number:
            raise DatasetError(
                f"{listing} line {number} names {stem!r} again, as line {lines[stem]}; remove one"
            )
        frames.append(Frame(stem, image, image, mask, night=_NIGHT.get(stem[-1])))
    return _source(root, split, frames, label_maps.MFNET)


def _llvip(root: Path, split: str) -> Source:
    """Read `<split>/{visible,infrared}`, or the original `{visible,infrared}/{train,test}`, XML."""
    original = root / "visible" / ("train" if split == "train" else "test")
    annotations = root / "Annotations"
    if original.is_dir():
        pairs = _pair_folders(original, root / "infrared" / original.name)
    else:
        pairs = _pair(_split_folder(root, split))
    frames = []
    for visible, infrared in pairs:
        boxes = None
        if annotations.is_dir():
            boxes = read_voc(annotations / f"{visible.stem}.xml")
        frames.append(Frame(visible.stem, visible, infrared, boxes=boxes, night=True))
    return _source(root, split, frames)


def _roadscene(root: Path, split: str) -> Source:
    """Read `<split>/{visible,infrared}`, or the original flat `crop_LR_visible`, `cropinfrared`."""
    folder = root if _one_of(root, VISIBLE) else _split_folder(root, split)
    frames = [Frame(v.stem, v, i) for v, i in _pair(folder)]
    return _source(root, split, frames)


def _m3svd(root: Path, split: str) -> Source:
    """Read `{visible,infrared}/*.mp4`: aligned video pairs."""
    frames = []
    for visible in sorted(filter(_is_seen, (root / "visible").glob("*.mp4"))):
        if (visible.stem in M3SVD_VAL_VIDEOS) != (split == "val"):
            continue
        infrared = root / "infrared" / visible.name
        if not infrared.is_file():
            raise DatasetError(f"{infrared} is missing; {visible} needs it as its pair")
        count, other = _frame_count(visible), _frame_count(infrared)
        if count != other:
            raise DatasetError(
                f"{infrared} has {other} frames but {visible} has {count}; "
                "paired videos must be aligned frame by frame"
            )
        frames += [
            Frame(f"{visible.stem}:{k:04d}", visible, infrared, video_frame=k, group=visible.stem,
                  clean=not visible.stem.startswith(M3SVD_SMOKE))
            for k in range(0, count, M3SVD_STRIDE)
        ]  # fmt: skip
    return _source(root, split, frames)


def _m3svd_clips(root: Path, split: str) -> Source:
    """Read `<clip>/{visible,infrared}/`: short clips as images."""
    frames = []
    for clip in sorted(path for path in root.iterdir() if path.is_dir() and _is_seen(path)):
        if (clip.name in M3SVD_VAL_CLIPS) == (split == "val"):
            frames += [
                Frame(f"{clip.name}:{v.stem}", v, i, group=clip.name,
                      clean=not clip.name.startswith(M3SVD_SMOKE))
                for v, i in _pair(clip)
            ]  # fmt: skip
    return _source(root, split, frames)


def _camvid(root: Path, split: str) -> Source:
    """Read `<split>/{visible,labels}`, or the SegNet tutorial's `<split>`, `<split>annot`."""
    annotated = root / f"{split}annot"
    visible, labels = root / split, annotated
    if not annotated.is_dir():
        visible, labels = root / split / "visible", root / split / "labels"
    frames = [Frame(v.stem, v, labels=m) for v, m in _pair_folders(visible, labels)]
    return _source(root, split, frames, label_maps.CAMVID)


def _cityscapes(root: Path, split: str) -> Source:
    """Read `leftImg8bit/<split>/<city>/*_leftImg8bit.png`, `gtFine/.../*_gtFine_labelIds.png`."""
    frames = []
    folder = root / "leftImg8bit" / split
    for visible in sorted(filter(_is_seen, folder.glob("*/*_leftImg8bit.png"))):
        stem = visible.name.removesuffix("_leftImg8bit.png")
        mask = root / "gtFine" / split / visible.parent.name / f"{stem}_gtFine_labelIds.png"
        if not mask.is_file():
            raise DatasetError(f"{mask} is missing; {visible} needs it as its labels")
        frames.append(Frame(stem, visible, labels=mask))
    return _source(root, split, frames, label_maps.CITYSCAPES)


LAYOUTS: dict[str, Callable[[Path, str], Source]] = {
    "msrs": _pairs,
    "mfnet": _mfnet,
    "fmb": partial(_pairs, classes=label_maps.FMB),
    "llvip": _llvip,
    "roadscene": _roadscene,
    "m3svd": _m3svd,
    "m3svd_clips": _m3svd_clips,
    "camvid": _camvid,
    "cityscapes": _cityscapes,
}


def _has_validation(layout: str, folder: Path) -> bool:
    """Tell whether there is one: LLVIP is often kept without its test half, which is no error."""
    halves = (folder / "val", folder / "test", folder / "visible" / "test")
    return layout != "llvip" or any(half.is_dir() for half in halves)


def _split_folder(root: Path, split: str) -> Path:
    # MSRS, FMB and LLVIP call what is not for training "test".
    names = (split, "test") if split == "val" else (split,)
    folder = _one_of(root, names)
    if folder is None:
        raise DatasetError(
            f"{root / split} is missing; {root} should hold the folders train and val"
        )
    return folder


def _one_of(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).is_dir()), None)


def _pair(folder: Path) -> list[tuple[Path, Path]]:
    visible, infrared = _one_of(folder, VISIBLE), _one_of(folder, INFRARED)
    return _pair_folders(visible or folder / VISIBLE[0], infrared or folder / INFRARED[0])


def _pair_folders(visible: Path, partner: Path) -> list[tuple[Path, Path]]:
    seen = list(by_stem(visible).values())
    return list(zip(seen, _partners(seen, partner), strict=True))


def by_stem(folder: Path) -> dict[str, Path]:
    """Return a folder's pictures by name without its ending; `DatasetError` if two have one."""
    if not folder.is_dir():
        raise DatasetError(f"{folder} is missing")
    try:
        files = picture_files(folder)
    except PictureError as error:
        if error.reason != "no_pictures":
            raise DatasetError(str(error)) from error
        files = []
    found: dict[str, Path] = {}
    for path in files:
        if found.setdefault(path.stem, path) != path:
            raise DatasetError(
                f"{found[path.stem]} and {path.name} have one name; pairs are told by name without "
                "its ending: rename or remove one of them"
            )
    return found


def _is_seen(path: Path) -> bool:
    """Tell whether a file is not hidden, as the `._` files are in which macOS keeps attributes."""
    return not path.name.startswith(".")


def _partners(visible: Sequence[Path], folder: Path) -> list[Path]:
    """Find the picture in `folder` that has the name of each visible one."""
    partners = by_stem(folder)
    for path in visible:
        if path.stem not in partners:
            raise DatasetError(f"{folder / path.name} is missing; {path} needs it as its pair")
    return [partners[path.stem] for path in visible]


def _source(
    root: Path, split: str, frames: Sequence[Frame], classes: dict[int, str] | None = None
) -> Source:
    if not frames:
        raise DatasetError(f"{root} holds no images of the split {split}")
    return Source(f"{root.name}/{split}", tuple(frames), classes or {})


def _frame_count(video: Path) -> int:
    count = int(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT))
    if count <= 0:
        raise DatasetError(f"{video} is not a readable video; it may be damaged or cut short")
    return count
