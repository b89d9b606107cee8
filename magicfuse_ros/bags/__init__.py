"""rosbag2 bags without a ROS installation: read, write, play, record and fuse."""
