"""A picture at the camera's size from one at the model's resolution: gain·frame + offset.

The restored picture is soft, the frame is sharp. Where the two follow each other locally, the frame
tells what the restored picture looks like in full: the fast guided filter (He and Sun, 2015). What
in the frame is noise is left out by Wiener's rule, and a frame that Ψ hardly changes is left alone.
Light and exposure are changes of the same coefficients, so that they cost nothing at the camera's
size and keep edges, texture and colour.

`tensor_pictures` does the same on a GPU, and changes with this.

All is at the model's resolution: a plane is (h, w) and an image (h, w, 3), float32 in [0, 1].
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

RADIUS, FLAT, MOST_GAIN = 2, 1e-4, 6.0
# Standard deviations of a frame's noise, in shares of white: quiet up to the first, noisy from the
# second on. Mean changes by Ψ: none worth having up to the first, a real one from the second on.
QUIET = (3.0 / 255.0, 6.0 / 255.0)
CHANGED = (0.03, 0.05)
# Median luminances up to which a picture is dark, and from which it is not; how much is added then.
DARK, EXPOSURE = (40.0 / 255.0, 60.0 / 255.0), 2.4
# Heat lifts a pixel this share of the way to white: nothing up to the first level of heat, all of
# it from the second on.
LIFT, SURE = 0.75, (0.27, 0.6)


class Coefficients(NamedTuple):
    """A picture that is gain·frame + offset.

    Attributes
    ----------
    gain
        A plane.
    offset
        An image, or a plane for a grey picture.
    """

    gain: Floats
    offset: Floats

    def applied(self, image: Floats) -> Floats:
        """Return the picture of an RGB image of the coefficients' size, not clipped."""
        return np.asarray(self.gain[..., None] * image + self.offset, np.float32)


def sharpened(image: Floats, restored: Floats, variance: Floats, noise: float) -> Coefficients:
    """Find how a restored picture follows from the frame.

    Parameters
    ----------
    image, restored
        The frame, and what Ψ made of it.
    variance
        Of the frame's luminance inside each of these pixels, a plane: detail and noise.
    noise
        Standard deviation of the frame's noise, as a share of white.
    """
    light, aim = luminance(image), luminance(restored)
    mean, mean_aim = _around(light), _around(aim)
    slope = (_around(light * aim) - mean * mean_aim) / (_around(light * light) - mean**2 + FLAT)
    seen = _around(variance)
    # A pixel that is a mean of n has lost a share of 1 - 1/n of the noise: 3/4 for 2 × 2.
    detail = np.clip((seen - 0.75 * noise**2) / (seen + 1e-8), 0.0, 1.0)
    change = float(cv2.absdiff(restored, image).mean())
    keep = np.float32((1.0 - _ramp(noise, *QUIET)) * (1.0 - _ramp(change, *CHANGED)))
    gain = np.clip(slope, 0.0, MOST_GAIN) * detail * (1 - keep) + keep
    offset = restored + keep * (image - restored) - gain[..., None] * image
    return Coefficients(np.asarray(gain, np.float32), np.asarray(offset, np.float32))


def exposed(picture: Coefficients, image: Floats) -> Coefficients:
    """Show a picture of a frame that is still dark as a longer exposure would.

    Where the median of its luminance is at most 40 of 255, dark parts become two to three times as
    bright and bright ones, such as lamps, stay as they are; from 60 on nothing changes.
    """
    light = np.clip(luminance(picture.applied(image)), 0.0, 1.0)
    median = float(np.median(light[::4, ::4]))  # as near as can be told, in less time
    longer = 1.0 - _ramp(median, *DARK)
    if longer == 0.0:
        return picture
    # Of what is around or the pixel itself, the brighter: the rim of a lamp does not become one.
    dark = 1.0 - np.maximum(_around(light), light)
    brighter = np.asarray(1.0 + EXPOSURE * longer * dark**4, np.float32)
    return Coefficients(brighter * picture.gain, brighter[..., None] * picture.offset)


def lit(picture: Coefficients, heat: Floats, image: Floats) -> Coefficients:
    """Return MagImg: the picture of a frame with light added where it is warm.

    `heat` is a plane that says how surely, 0 to 1.
    """
    first, last = SURE
    light = LIFT * np.clip((_around(_around(heat)) - first) / (last - first), 0.0, 1.0)
    # Of what is around alone: the details of a person keep their contrast.
    dark = 1.0 - _around(np.clip(luminance(picture.applied(image)), 0.0, 1.0))
    return Coefficients(picture.gain, picture.offset + (light * dark)[..., None])


def luminance(image: Floats) -> Floats:
    """Return Y of BT.601 of an RGB image, a plane."""
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.float32)


def _around(plane: Floats) -> Floats:
    size = 2 * RADIUS + 1
    return np.asarray(cv2.blur(plane, (size, size), borderType=cv2.BORDER_REFLECT), np.float32)


def _ramp(value: float, first: float, last: float) -> float:
    """Return 0 up to `first`, 1 from `last` on, and a line between."""
    return min(1.0, max(0.0, (value - first) / (last - first)))
