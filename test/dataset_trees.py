"""Small folder trees in the layouts of the public datasets, with real image and video files."""

from pathlib import Path

import cv2
import numpy as np

WIDTH, HEIGHT = 64, 48


def visible(seed=0, width=WIDTH, height=HEIGHT, level=150):
    rng = np.random.default_rng(seed)
    small = rng.integers(level // 2, min(255, level * 3 // 2), (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


def infrared(seed=0, width=WIDTH, height=HEIGHT):
    rng = np.random.default_rng(seed + 1000)
    image = cv2.resize(rng.integers(20, 60, (6, 8), dtype=np.uint8), (width, height))
    image[height // 4 : 3 * height // 4, width // 4 : width // 2] = 200
    return image


def write(path: Path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image)


def write_video(path: Path, frames):
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 30, (WIDTH, HEIGHT))
    for frame in frames:
        writer.write(frame if frame.ndim == 3 else cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR))
    writer.release()


def labels(ids):
    """Vertical stripes of the given ids."""
    stripe = np.linspace(0, len(ids), WIDTH, endpoint=False).astype(int)
    return np.tile(np.array(ids, np.uint8)[stripe], (HEIGHT, 1))


def msrs(root: Path):
    for split, names in (("train", ("00001D", "00002N", "00003D")), ("val", ("00004D",))):
        for k, name in enumerate(names):
            dark = 40 if name.endswith("N") else 150
            write(root / split / "visible" / f"{name}.png", visible(k, level=dark))
            write(root / split / "infrared" / f"{name}.png", infrared(k))
            boxes = root / split / "boxes" / f"{name}.txt"
            boxes.parent.mkdir(exist_ok=True)
            boxes.write_text("0 0.375 0.5 0.25 0.5\n2 0.75 0.6 0.3 0.3\n" if k != 2 else "")


def mfnet(root: Path):
    for split, names in (("train", ("00001D", "00002N")), ("val", ("00003D",))):
        (root).mkdir(parents=True, exist_ok=True)
        (root / f"{split}.txt").write_text("\n".join(names))
        for k, name in enumerate(names):
            write(root / "images" / f"{name}.png", np.dstack((visible(k), infrared(k))))
            write(root / "labels" / f"{name}.png", labels([0, 1, 2, 6]))


def fmb(root: Path):
    for split in ("train", "test"):
        write(root / split / "Visible" / "00001.png", visible(1))
        write(root / split / "Infrared" / "00001.png", infrared(1))
        write(root / split / "Label" / "00001.png", labels([0, 1, 8, 13]))


def llvip(root: Path):
    for split in ("train", "test"):
        write(root / "visible" / split / "010001.jpg", visible(1, level=40))
        write(root / "infrared" / split / "010001.jpg", infrared(1))
    (root / "Annotations").mkdir()
    (root / "Annotations" / "010001.xml").write_text(
        "<annotation><size><width>1280</width><height>1024</height></size><object><name>person"
        "</name><bndbox><xmin>320</xmin><ymin>256</ymin><xmax>640</xmax><ymax>768</ymax></bndbox>"
        "</object></annotation>"
    )


def roadscene(root: Path):
    for k, split in enumerate(("train", "val")):
        for n, (width, height) in enumerate(((90, 40), (50, 40))):
            write(root / split / "visible" / f"FLIR_{k}{n}.jpg", visible(n, width, height))
            write(root / split / "infrared" / f"FLIR_{k}{n}.jpg", infrared(n, width, height))


def m3svd(root: Path):
    for name in ("0113_1714", "0117_1605", "0117_1620"):
        write_video(root / "visible" / f"{name}.mp4", [visible(k) for k in range(12)])
        write_video(root / "infrared" / f"{name}.mp4", [infrared(k) for k in range(12)])


def m3svd_clips(root: Path):
    for clip in ("0111_1716", "0111_1803"):
        for k in range(3):
            write(root / clip / "visible" / f"{k:04d}.jpg", visible(k))
            write(root / clip / "visible_blurred" / f"{k:04d}.jpg", visible(k))
            write(root / clip / "infrared" / f"{k:04d}.jpg", infrared(k))


def camvid(root: Path):
    for split in ("train", "val"):
        write(root / split / "visible" / "0001.jpg", visible(3))
        write(root / split / "labels" / "0001.png", labels([0, 3, 9, 11]))


def cityscapes(root: Path):
    for split in ("train", "val"):
        stem = "aachen_000000_000019"
        write(root / "leftImg8bit" / split / "aachen" / f"{stem}_leftImg8bit.png", visible(4))
        mask = root / "gtFine" / split / "aachen" / f"{stem}_gtFine_labelIds.png"
        write(mask, labels([0, 7, 24, 26]))


TREES = {
    "msrs": msrs,
    "mfnet": mfnet,
    "fmb": fmb,
    "llvip": llvip,
    "roadscene": roadscene,
    "m3svd": m3svd,
    "m3svd_clips": m3svd_clips,
    "camvid": camvid,
    "cityscapes": cityscapes,
}


def everything(root: Path):
    for name, make in TREES.items():
        make(root / name)
    return root
