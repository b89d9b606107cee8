"""Messages as anybody would make them, without the package."""

import array

from sensor_msgs.msg import Image


def encode_image(picture, encoding, header):
    """Put (H, W, 3) uint8 RGB ("rgb8") or (H, W) uint8 ("mono8") into a sensor_msgs/Image."""
    height, width = picture.shape[:2]
    step = width * (3 if encoding == "rgb8" else 1)
    message = Image(header=header, height=height, width=width, encoding=encoding, step=step)
    message.data = array.array("B", picture.tobytes())
    return message
