"""`fuse_node`: a managed node that turns a camera's images into MagImgs and semantics."""
