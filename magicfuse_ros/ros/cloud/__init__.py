"""`semantic_cloud`: point clouds painted with what `fuse_node` saw."""
