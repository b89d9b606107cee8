"""Projects points from the camera's optical frame to pixels, as a CameraInfo describes it.

This is plain NumPy on whole clouds. The distortion polynomials of `plumb_bob`,
`rational_polynomial` and `equidistant` are only valid for angles that the lens sees. Further out
they turn back, and would put points from beside the camera into the picture. `CameraModel` finds
where that begins, and projects no point beyond it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from magicfuse_ros.ros.cloud.cloud_errors import CloudError
from magicfuse_ros.ros.outputs import plain_camera_info

Floats = NDArray[np.floating[Any]]

_POLYNOMIAL = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12)}
_EQUIDISTANT = "equidistant"
MODELS: tuple[str, ...] = (*_POLYNOMIAL, _EQUIDISTANT)
"""Accepted values of `CameraInfo.distortion_model`; any is accepted if D is empty or all zeros."""

_WIDEST_TANGENT = 50.0
"""Largest tangent up to which a polynomial is followed: 88.9 degrees from the axis."""
_NEAREST_Z = 1e-6
"""Smallest z in metres; nearer to the plane z = 0 a pinhole camera has no picture."""


@dataclass(frozen=True, eq=False)
class CameraModel:
    """A camera's projection.

    Attributes
    ----------
    size
        (width, height) of the picture in pixels.
    projection
        (3, 4) float64, from distorted (or rectified) coordinates to pixels.
    rotation
        (3, 3) float64, applied first: R of a rectified picture, else the identity.
    model
        "" (no distortion), "polynomial" or "equidistant".
    coefficients
        (12,) float64 k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4, or (4,) k1 to k4 of equidistant.
    reach
        How far from the axis points are projected: a tangent for "polynomial", an angle in radians
        for "equidistant".
    """

    size: tuple[int, int]
    projection: NDArray[np.float64]
    rotation: NDArray[np.float64]
    model: str
    coefficients: NDArray[np.float64]
    reach: float

    @classmethod
    def from_camera_info(
        cls, info: Any, size: tuple[int, int], *, rectified: bool = False
    ) -> CameraModel:
        """Read a sensor_msgs/CameraInfo, with its region of interest and binning.

        It raises `CloudError` if the camera has no focal length (`uncalibrated`), or a distortion
        that is not in `MODELS` (`unknown_distortion`).

        Parameters
        ----------
        size
            (width, height) of the picture that points are projected into: the camera's whole
            picture (its region, binned) in this size.
        rectified
            Whether the picture is rectified: R and P then describe it, and no distortion is left.
            Otherwise K and D describe it.
        """
        plain = plain_camera_info(info, size)
        projection, rotation = np.zeros((3, 4)), np.eye(3)
        model, coefficients = "", np.zeros(0)
        if rectified:
            projection = np.array(plain.p, np.float64).reshape(3, 4)
            given = np.array(plain.r, np.float64).reshape(3, 3)
            rotation = given if given.any() else rotation
        else:
            projection[:, :3] = np.array(plain.k, np.float64).reshape(3, 3)
            model, coefficients = _distortion(info.distortion_model, info.d)
        used = "P" if rectified else "K"
        if not np.isfinite(projection).all() or not (projection[[0, 1], [0, 1]] > 0.0).all():
            raise CloudError(
                "uncalibrated",
                f"{used} of the CameraInfo has focal lengths {projection[0, 0]:g} and "
                f"{projection[1, 1]:g}; accepted: positive numbers; calibrate the camera",
            )
        return cls(size, projection, rotation, model, coefficients, _reach(model, coefficients))

    @np.errstate(invalid="ignore", over="ignore", divide="ignore")
    def project(self, points: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Find the pixel that each point falls on.

        `points` are (3, N) x right, y down, z forward, in metres in the camera's optical frame.
        Points that are not finite fall on no pixel. It returns the (M,) rising indices of the
        points inside the picture, and the (M,) indices of their pixels, which are row x width +
        column.
        """
        if not np.array_equal(self.rotation, np.eye(3)):
            points = self.rotation.astype(points.dtype) @ points
        forward = points[2]
        if self.model == _EQUIDISTANT:
            indices = np.flatnonzero(np.isfinite(points).all(axis=0) & (points != 0.0).any(axis=0))
            radial = np.hypot(points[0, indices], points[1, indices])
            angle = np.arctan2(radial, forward[indices])
            inside = angle <= self.reach
            indices, radial, angle = indices[inside], radial[inside], angle[inside]
            factor = _equidistant(angle, self.coefficients) / np.maximum(radial, 1e-12)
            x, y = points[0, indices] * factor, points[1, indices] * factor
            scale: Floats = np.ones_like(x)
        else:
            indices = np.flatnonzero((forward > _NEAREST_Z) & np.isfinite(forward))
            scale = 1.0 / forward[indices]
            x, y = points[0, indices] * scale, points[1, indices] * scale
            if self.model:
                inside = x * x + y * y <= self.reach**2  # False for NaN
                indices, scale, x, y = indices[inside], scale[inside], x[inside], y[inside]
                x, y = _polynomial(x, y, self.coefficients)
        width, height = self.size
        (fx, skew, cx, tx), (_, fy, cy, ty) = self.projection[:2]
        # (0, 0) is the centre of the first pixel.
        column = np.rint(fx * x + skew * y + cx + tx * scale)
        row = np.rint(fy * y + cy + ty * scale)
        inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
        indices = indices[inside]
        return indices, row[inside].astype(np.intp) * width + column[inside].astype(np.intp)


def _distortion(name: str, given: Any) -> tuple[str, NDArray[np.float64]]:
    values = np.array(given, np.float64)
    if not values.any():
        return "", np.zeros(0)
    if name == _EQUIDISTANT and values.size == 4 and np.isfinite(values).all():
        return _EQUIDISTANT, values
    if values.size in _POLYNOMIAL.get(name, ()) and np.isfinite(values).all():
        return "polynomial", np.pad(values, (0, 12 - values.size))
    raise CloudError(
        "unknown_distortion",
        f"distortion model {name!r} with D = {values.tolist()}; accepted: plumb_bob (4 or 5 "
        "numbers), rational_polynomial (8 or 12), equidistant (4), or all zeros; or feed rectified "
        "pictures and set `rectified`",
    )


def _polynomial(x: Floats, y: Floats, d: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Distort by `plumb_bob` or `rational_polynomial`, with thin prism, as in OpenCV's calib3d."""
    k1, k2, p1, p2, k3, k4, k5, k6, s1, s2, s3, s4 = (float(value) for value in d)
    squared = x * x + y * y
    radial = 1.0 + squared * (k1 + squared * (k2 + squared * k3))
    if k4 or k5 or k6:
        radial /= 1.0 + squared * (k4 + squared * (k5 + squared * k6))
    across = 2.0 * x * y
    bent_x = x * radial + p1 * across + p2 * (squared + 2.0 * x * x)
    bent_y = y * radial + p1 * (squared + 2.0 * y * y) + p2 * across
    if s1 or s2 or s3 or s4:
        bent_x += squared * (s1 + squared * s2)
        bent_y += squared * (s3 + squared * s4)
    return bent_x, bent_y


def _equidistant(angle: Floats, d: NDArray[np.float64]) -> Floats:
    """Return the distance from the principal point in focal lengths (Kannala and Brandt)."""
    k1, k2, k3, k4 = (float(value) for value in d)
    squared = angle * angle
    series = 1.0 + squared * (k1 + squared * (k2 + squared * (k3 + squared * k4)))
    result: Floats = angle * series
    return result


def _reach(model: str, coefficients: NDArray[np.float64]) -> float:
    """Return up to where the radial part rises; beyond it two directions would share a pixel."""
    if model == _EQUIDISTANT:
        steps = np.linspace(0.0, np.pi, 20_001)
        bent = _equidistant(steps, coefficients)
    elif model:
        # Equal steps in angle, so that the tangents are dense near the axis, where lenses bend.
        steps = np.tan(np.linspace(0.0, np.arctan(_WIDEST_TANGENT), 20_001))
        radial_only = coefficients.copy()
        radial_only[[2, 3, 8, 9, 10, 11]] = 0.0
        bent, _ = _polynomial(steps, np.zeros_like(steps), radial_only)
    else:
        return float("inf")
    falls = np.flatnonzero(~(np.diff(bent) > 0.0))
    return float(steps[falls[0] if falls.size else -1])
