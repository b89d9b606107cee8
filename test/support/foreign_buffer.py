"""A message's data in a GPU's memory, as ROS 2 Lyrical hands it over where it is asked for."""


class Buffer:
    """What rosidl_buffer.Buffer offers (package rosidl_buffer_py), which no wheel brings."""

    def __init__(self, content):
        self._content, self.backend_type = content, "cuda"

    def __len__(self):
        return len(self._content)

    def to_bytes(self):
        return bytes(self._content)
