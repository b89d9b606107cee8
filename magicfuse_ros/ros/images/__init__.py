"""Camera messages: every encoding that the node takes, decoded to RGB and back."""
