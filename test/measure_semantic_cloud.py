"""What `semantic_cloud` gets right and what it costs: `python test/measure_semantic_cloud.py`.

A scanner above a camera, in the street of `support/scene.py` whose classes are known. Without other
processes: what the node does between taking a cloud and a mask and publishing.

A measurement, not a test: the times belong to the machine and to what else runs on it.
"""

from __future__ import annotations

import argparse
import array
import base64
import os

import cv2
import numpy as np
from sensor_msgs.msg import CameraInfo, PointCloud2, PointField
from support import scene
from support.timing import median_ms

from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.ros.cloud.camera_model import CameraModel
from magicfuse_ros.ros.cloud.cloud_codec import painted_cloud, read_points
from magicfuse_ros.ros.cloud.extrinsics import RigidTransform
from magicfuse_ros.ros.cloud.painting import Occlusion, Pictures, paint

SIZE = (640, 480)
K = [420.0, 0.0, 319.5, 0.0, 420.0, 239.5, 0.0, 0.0, 1.0]
LENSES = {
    "": [],
    "plumb_bob": [-0.28, 0.07, 0.0002, -0.0003, 0.0],
    "rational_polynomial": [0.46, -2.75, 0.0007, -0.0002, 1.61, 0.34, -2.55, 1.52],
    "equidistant": [0.01, -0.005, 0.002, -0.0005],
}
# A scanner (x forward, y left, z up) half a metre above the camera and 0.3 m behind it.
POSITION = (0.1, -0.5, -0.3)
EXTRINSIC = RigidTransform.parse("0.1 -0.5 -0.3 1.5707963267948966 -1.5707963267948966 0.0")
GAP = 12
TOLERANCE = 0.1
UNIT = 100_000


def scanners_cloud(points: np.ndarray) -> PointCloud2:
    """The points of the camera's frame as the scanner sends them."""
    x, y, z = (points - np.array(POSITION)).T
    given = scene.cloud_fields(np.column_stack([z, -x, -y]), 0, "lidar")
    cloud = PointCloud2(height=given["height"], width=given["width"])
    cloud.point_step, cloud.row_step = given["point_step"], given["row_step"]
    cloud.fields = [PointField(**entry) for entry in given["fields"]]
    cloud.is_dense = given["is_dense"]
    cloud.data = array.array("B", base64.b64decode(given["data"]))
    return cloud


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=50, help="clouds a row (default: 50)")
    parser.add_argument("--rings", type=int, default=128, help="of the scanner (default: 128)")
    parser.add_argument("--columns", type=int, default=2048, help="a turn (default: 2048)")
    parser.add_argument("--threads", type=int, default=1, help="OpenCV threads (default: 1)")
    arguments = parser.parse_args()
    cv2.setNumThreads(arguments.threads)
    matrix = np.array(K).reshape(3, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(LabelSet.load("drive"))] = LabelSet.load("drive").palette()
    points, labels = scene.scan(POSITION, arguments.rings, arguments.columns)
    cloud = scanners_cloud(points)

    print(
        f"{len(points)} points, picture of {SIZE[0]} x {SIZE[1]}, median of {arguments.repeats} "
        f"clouds, {arguments.threads} OpenCV thread(s), OpenCV {cv2.__version__}, NumPy "
        f"{np.__version__}, {os.cpu_count()} cores, load average {os.getloadavg()[0]:.2f}\n"
    )
    print(
        "| lens | hidden points | inside | all right | inside right | read | paint | write | "
        f"together, ms per {UNIT} points |\n|---|---|--:|--:|--:|--:|--:|--:|--:|"
    )
    for lens, d in LENSES.items():
        _, classes = scene.cast((0.0, 0.0, 0.0), scene.rays(SIZE, matrix, lens, d))
        mask = classes.reshape(SIZE[::-1])
        pictures = Pictures(mask, np.full_like(mask, 200), palette[mask])
        info = CameraInfo(width=SIZE[0], height=SIZE[1], k=np.array(K), d=d, distortion_model=lens)
        camera = CameraModel.from_camera_info(info, SIZE)
        inside, visible = scene.seen(points, SIZE, matrix, lens, d)
        for occlusion in (Occlusion(GAP, TOLERANCE), None):
            truth = np.where(visible if occlusion else inside, labels, scene.NOTHING)
            given = read_points(cloud)
            painted = paint(EXTRINSIC.apply(given), camera, pictures, occlusion)
            right = painted.class_id == truth
            steps = (
                lambda: read_points(cloud),
                lambda g=given, c=camera, p=pictures, o=occlusion: paint(
                    EXTRINSIC.apply(g), c, p, o
                ),
                lambda p=painted: painted_cloud(cloud, p, keep_unseen=True),
            )
            scale = UNIT / len(points)
            times = [median_ms(step, arguments.repeats) * scale for step in steps]
            figures = " | ".join(f"{figure:.2f}" for figure in [*times, sum(times)])
            print(
                f"| {lens or 'none'} | {'found' if occlusion else 'painted too'} | {inside.sum()} "
                f"| {right.mean():.3%} | {right[inside].mean():.3%} | {figures} |"
            )


if __name__ == "__main__":
    main()
