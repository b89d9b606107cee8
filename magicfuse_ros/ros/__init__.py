"""ROS 2 adapters: messages in, messages out; no tensor mathematics."""
