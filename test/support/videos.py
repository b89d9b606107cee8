"""Videos for tests, made with PyAV."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np


def picture(index, width=64, height=48):
    """Frame `index` of every test video: (H, W, 3) RGB, its red brighter from frame to frame."""
    rows, columns = np.mgrid[:height, :width]
    grain = np.random.default_rng(index).integers(0, 50, (height, width))
    return np.stack(
        [
            np.full((height, width), index * 5 % 256),
            columns * 200 // width,
            rows * 200 // height + grain,
        ],
        -1,
    ).astype(np.uint8)


def write_video(path, times_s, *, codec="libx264", size=(64, 48), rotation=0, options=None):
    """Write a video that shows `picture(i)` from `times_s[i]` on; returns `path`.

    `codec` is libx264 (any times) or a lossless ffv1, or mjpeg for .avi, whose times are even.
    """
    rate = Fraction(len(times_s) - 1, 1) / Fraction(times_s[-1] - times_s[0]).limit_denominator(
        1000
    )
    even = path.suffix == ".avi"
    time_base = 1 / rate.limit_denominator(1001) if even else Fraction(1, 90_000)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate.limit_denominator(1001))
        stream.width, stream.height = size
        stream.pix_fmt = {"libx264": "yuv444p", "mjpeg": "yuvj444p", "ffv1": "bgr0"}[codec]
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for index, time_s in enumerate(times_s):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = round(time_s / time_base), time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def evenly(count, rate=12):
    """Times of `count` frames at a constant rate, in seconds."""
    return [index / rate for index in range(count)]


UNEVEN = [*(index / 30 for index in range(20)), *(20 / 30 + index * 0.5 for index in range(20))]
"""20 frames at 30 a second, then 20 at 2 a second, as phones and dashcams write in the dark."""
