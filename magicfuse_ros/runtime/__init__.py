"""A model made fast: camera frames in, fused frames out. Imports `model`, never ROS."""
