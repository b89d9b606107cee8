"""A frame's way into the model and its pictures' way back, as tensor operations on a GPU.

It is what `letterbox`, `guided_picture` and `camera_size` do with OpenCV, step by step and with the
same rounding; a test compares them. It exists twice because on a CPU OpenCV takes a twentieth of
PyTorch's time, and because on a GPU nothing may leave it before the end of a frame. Nothing here
branches on a value or copies from the CPU, so that a CUDA graph can hold all of it.

Planes are (1, C, h, w) float32; those of a frame or of a picture hold whole numbers of 0 to 255.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from magicfuse_ros.model.refiner import luminance, split_maps
from magicfuse_ros.runtime import camera_size, guided_picture
from magicfuse_ros.runtime.letterbox import Letterbox

Size = tuple[int, int]
"""(height, width) in pixels."""

_GREY = (9798, 19235, 3735)  # OpenCV's Y of BT.601 for bytes: shares of 2^15


class Coefficients(NamedTuple):
    """A picture that is gain·frame + offset: (1, 1, h, w) and (1, 1 or 3, h, w)."""

    gain: Tensor
    offset: Tensor


class TensorPictures:
    """Makes the pictures of frames that lie in the model's input in one way.

    Parameters
    ----------
    letterbox
        How they lie there.
    device
        Where all tensors are.
    """

    def __init__(self, letterbox: Letterbox, device: torch.device) -> None:
        camera, content, padded = letterbox.camera, letterbox.content, letterbox.padded
        self._letterbox, self._device = letterbox, device
        self._into = _resizer(camera, content, device)
        self._variance = _resizer(camera, content, device, smooth=True)
        self._back = _resizer(content, camera, device)
        self._back_smooth = _resizer(content, camera, device, smooth=True)
        self._back_bytes = _bytes_resizer(content, camera, device)
        self._into_padded: dict[Size, Callable[[Tensor], Tensor]] = {}
        # In cv2.resize a mean of 2 x 2 bytes is rounded up at a half, all others to the even one.
        self._halves = camera == (2 * content[0], 2 * content[1])
        self._padding = tuple(
            self._border(0, inner, outer - inner, cv2.BORDER_REFLECT_101)
            for inner, outer in zip(content, padded, strict=True)
        )
        radius = guided_picture.RADIUS
        self._around_it = tuple(
            self._border(radius, side, radius, cv2.BORDER_REFLECT) for side in content
        )
        patch = camera_size.PATCH
        self._patches = tuple(
            self._border(patch // 2, side, patch - patch // 2 - 1, cv2.BORDER_REFLECT_101)
            for side in content
        )
        second = torch.tensor([1.0, -2.0, 1.0], device=device)
        self._noise_kernel = (second[:, None] * second)[None, None]
        self._grey_weights = torch.tensor(_GREY, dtype=torch.int32, device=device)

    def to_input(self, frame: Tensor) -> Tensor:
        """Scale and pad a (H, W, 3) uint8 frame to the model's input, 0 to 255."""
        content = self._into(frame.permute(2, 0, 1)[None].float())
        content = (content + 0.5).floor() if self._halves else content.round()
        return _bordered(content.clamp(0.0, 255.0), self._padding)

    def classes(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Return mask and confidence, (H, W) uint8, of logits of any size; see `classify`."""
        # Whole numbers, as `classify` gets them: ties decide which class a border belongs to.
        shares = (logits.float().softmax(dim=1) * 255.0 + 0.5).floor()
        wins = (shares == shares.amax(dim=1, keepdim=True)).flatten(2).any(dim=2)
        shares = torch.where(wins[..., None, None], shares, -1.0)
        old, padded = (shares.shape[-2], shares.shape[-1]), self._letterbox.padded
        if old not in self._into_padded:  # at the first frame
            self._into_padded[old] = _bytes_resizer(old, padded, self._device)
        height, width = self._letterbox.content
        shares = self._into_padded[old](shares)[..., :height, :width]
        confidence, mask = self._back_bytes(shares).max(dim=1)
        return mask[0].to(torch.uint8), confidence[0].to(torch.uint8)

    def sharpened(self, frame: Tensor, image: Tensor, restored: Tensor) -> Coefficients:
        """Find how D's restored picture follows from the frame; see `guided_picture.sharpened`.

        Parameters
        ----------
        frame
            (H, W, 3) uint8.
        image, restored
            The model's input and D(z0_ψ), (1, 3, h, w) in [0, 1].
        """
        grey = self._grey(frame)
        noise = self._noise(grey)
        grey = grey / 255.0
        mean, square = self._variance(grey), self._variance(grey * grey)
        variance = (square - mean * mean).clamp(min=0.0)
        image, restored = self.content(image), self.content(restored)
        light, aim = luminance(image), luminance(restored)
        mean, mean_aim = self._around(light), self._around(aim)
        slope = (self._around(light * aim) - mean * mean_aim) / (
            self._around(light * light) - mean * mean + guided_picture.FLAT
        )
        seen = self._around(variance)
        detail = ((seen - 0.75 * noise * noise) / (seen + 1e-8)).clamp(0.0, 1.0)
        change = (restored - image).abs().mean()
        keep = 1.0 - _ramp(noise, *guided_picture.QUIET)
        keep = keep * (1.0 - _ramp(change, *guided_picture.CHANGED))
        gain = slope.clamp(0.0, guided_picture.MOST_GAIN) * detail * (1.0 - keep) + keep
        return Coefficients(gain, restored + keep * (image - restored) - gain * image)

    def magimg(self, picture: Coefficients, image: Tensor, maps: Tensor) -> Coefficients:
        """Expose a dark picture for longer, and add light where it is warm, as `exposed`, `lit`."""
        image = self.content(image)
        light = self._light(picture, image)
        longer = 1.0 - _ramp(_median(light[..., ::4, ::4]), *guided_picture.DARK)
        dark = 1.0 - torch.maximum(self._around(light), light)
        brighter = 1.0 + guided_picture.EXPOSURE * longer * dark**4
        picture = Coefficients(brighter * picture.gain, brighter * picture.offset)
        heat = self._around(self._around(self.content(split_maps(maps.float()).heat)))
        light = guided_picture.LIFT * _ramp(heat, *guided_picture.SURE)
        dark = 1.0 - self._around(self._light(picture, image))
        return Coefficients(picture.gain, picture.offset + light * dark)

    def infrared(self, maps: Tensor, decoded: Tensor) -> Coefficients:
        """Return the mean of R's and D's infrared; see `CameraPictures.infrared`."""
        found = split_maps(maps.float())
        own = self.content(decoded).mean(dim=1, keepdim=True)
        own = functional.avg_pool2d(_bordered(own, self._patches), camera_size.PATCH, 1)
        return Coefficients(
            self.content(found.infrared_gain) / 2.0,
            (self.content(found.infrared_offset) + own) / 2.0,
        )

    def at_camera(self, frame: Tensor, picture: Coefficients) -> Tensor:
        """Return gain·frame + offset at the camera's size, uint8: (H, W, 3), or (H, W) if grey."""
        gain, offset = (self._back_smooth(each) for each in picture)
        grey = offset.shape[1] == 1
        planes = self._grey(frame) if grey else frame.permute(2, 0, 1)[None].float()
        return _bytes(planes * gain + offset * 255.0)

    def enlarged(self, decoded: Tensor) -> Tensor:
        """Return what D decodes, (1, C, h, w) in [0, 1], at the camera's size; see `to_camera`."""
        levels = self.content(decoded).mul(255.0).add(0.5).clamp(0.0, 255.0).floor()
        return _bytes(self._back(levels))

    def content(self, planes: Tensor) -> Tensor:
        """Return what the frame fills of planes, enlarged to the model's size."""
        height, width = self._letterbox.content
        old, padded = (planes.shape[-2], planes.shape[-1]), self._letterbox.padded
        whole = _resizer(old, padded, self._device, smooth=True)(planes.float())
        return whole[..., :height, :width]

    def _grey(self, frame: Tensor) -> Tensor:
        grey = (frame.int() * self._grey_weights).sum(dim=2, dtype=torch.int32)
        return ((grey + (1 << 14)) >> 15).float()[None, None]

    def _noise(self, grey: Tensor) -> Tensor:
        """Return `camera_size.noise_level`, as a tensor without dimensions."""
        if min(self._letterbox.camera) < 3:
            return torch.zeros((), device=self._device)
        edges = functional.conv2d(grey, self._noise_kernel, stride=3).abs()
        return _median(edges) / (camera_size.NOISE_SCALE * 255.0)

    def _light(self, picture: Coefficients, image: Tensor) -> Tensor:
        return luminance(picture.gain * image + picture.offset).clamp(0.0, 1.0)

    def _around(self, plane: Tensor) -> Tensor:
        side = 2 * guided_picture.RADIUS + 1
        return functional.avg_pool2d(_bordered(plane, self._around_it), side, 1)

    def _border(self, before: int, length: int, after: int, kind: int) -> Tensor:
        """Return which of `length` pixels stand in a row with a border."""
        taken = [cv2.borderInterpolate(i, length, kind) for i in range(-before, length + after)]
        return torch.tensor(taken, device=self._device)


def _bordered(planes: Tensor, rows_and_columns: tuple[Tensor, ...]) -> Tensor:
    rows, columns = rows_and_columns
    return planes.index_select(2, rows).index_select(3, columns)


def _bytes(planes: Tensor) -> Tensor:
    levels = planes.round().clamp(0.0, 255.0).to(torch.uint8)[0]
    return levels[0] if levels.shape[0] == 1 else levels.permute(1, 2, 0)


def _median(values: Tensor) -> Tensor:
    """Return numpy's median: of an even number, the mean of the two in the middle."""
    ordered, count = values.flatten().sort().values, values.numel()
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2.0


def _ramp(value: Tensor, first: float, last: float) -> Tensor:
    return ((value - first) / (last - first)).clamp(0.0, 1.0)


def _resizer(
    old: Size, new: Size, device: torch.device, *, smooth: bool = False
) -> Callable[[Tensor], Tensor]:
    """Return what resizes planes as `letterbox.resize` does, before rounding."""
    if old == new:
        return lambda planes: planes
    if new[0] >= old[0] and new[1] >= old[1]:
        return partial(functional.interpolate, size=new, mode="bilinear" if smooth else "bicubic")
    if old[0] % new[0] == 0 and old[1] % new[1] == 0:
        return lambda planes: functional.avg_pool2d(planes, (old[0] // new[0], old[1] // new[1]))
    mixed = new[0] > old[0] or new[1] > old[1]
    rows, columns = (_area(*each, device, mixed=mixed) for each in zip(old, new, strict=True))
    return lambda planes: rows @ planes @ columns.transpose(0, 1)


def _bytes_resizer(old: Size, new: Size, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Return what `letterbox.resize` does smoothly to planes of bytes.

    Enlarging, OpenCV computes in whole numbers and rounds three times. A class is ahead of another
    by one level in many places, and one time more or less would move its border.
    """
    smooth = _resizer(old, new, device, smooth=True)
    if old == new:
        return smooth
    if new[0] < old[0] or new[1] < old[1]:
        twice = old == (2 * new[0], 2 * new[1])
        return lambda planes: (smooth(planes) + 0.5).floor() if twice else smooth(planes).round()
    rows, columns = (_taps(*each, device) for each in zip(old, new, strict=True))
    above, below = (each[:, None] for each in rows.weights)

    def enlarge(planes: Tensor) -> Tensor:
        left, right = (planes.index_select(3, each) for each in columns.places)
        lines = ((left * columns.weights[0] + right * columns.weights[1]) / 16.0).floor()
        upper, lower = (lines.index_select(2, each) for each in rows.places)
        upper, lower = ((upper * above) / 65536.0).floor(), ((lower * below) / 65536.0).floor()
        return ((upper + lower + 2.0) / 4.0).floor()

    return enlarge


class _Taps(NamedTuple):
    """The two pixels that each new pixel lies between, and their weights, which add up to 2048."""

    places: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]


def _taps(old: int, new: int, device: torch.device) -> _Taps:
    place = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.clip(np.floor(place), 0, old - 1).astype(np.int64)
    share = np.where((place < 0) | (first == old - 1), 0.0, place - first).astype(np.float32)
    second = np.minimum(first + 1, old - 1)
    near, far = np.rint((1 - share) * 2048), np.rint(share * 2048)
    taken = [torch.from_numpy(each).to(device) for each in (first, second, near, far)]
    return _Taps((taken[0], taken[1]), (taken[2], taken[3]))


def _area(old: int, new: int, device: torch.device, *, mixed: bool) -> Tensor:
    """Return what cv2.INTER_AREA does along one axis as a matrix, (new, old).

    It is what becomes of the unit matrix. Where one axis shrinks and the other grows, OpenCV treats
    both differently; growing twofold, the other axis then repeats each column.
    """
    times = 2 if mixed else 1
    unit = np.eye(old, dtype=np.float32)
    resized = cv2.resize(unit, (times * old, new), interpolation=cv2.INTER_AREA)
    return torch.from_numpy(np.ascontiguousarray(resized[:, ::times])).to(device)
