"""The MagicFuse model in PyTorch: knows no ROS, no compiler and no dataset."""
