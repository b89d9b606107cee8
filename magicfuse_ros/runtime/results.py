"""From a sample to what a frame gives: pictures, mask and confidence at the camera's size."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from magicfuse_ros.model.refiner import enlarged
from magicfuse_ros.model.sampler import Step
from magicfuse_ros.model.temporal import Memory
from magicfuse_ros.runtime.camera_size import CameraPictures
from magicfuse_ros.runtime.contract import EXTRAS, FuseResult, UInt8
from magicfuse_ros.runtime.letterbox import Letterbox, classify, quantise, to_camera, to_picture
from magicfuse_ros.runtime.networks import CompiledNetworks


class NotFinite(Exception):  # noqa: N818 - the engine makes a sentence of it
    """A network gave values that are not finite."""


def refined(
    frame: UInt8,
    extras: frozenset[str],
    networks: CompiledNetworks,
    letterbox: Letterbox,
    step: Step,
    memory: Memory,
    temporal: float | None,
) -> FuseResult:
    """Make a frame's results with R.

    Parameters
    ----------
    frame
        (H, W, 3) uint8 RGB as it came.
    extras
        Which of `EXTRAS` to make too.
    networks
        Those that `step` was sampled with.
    memory, temporal
        What was shown before, and its weight in what is shown now; None leaves it out.

    Raises
    ------
    NotFinite
        The networks gave values that are not finite.
    """
    watch = networks.watch

    maps, logits = networks.refine(step)
    restored, (mask, confidence) = networks.decode(
        step.z0_psi, partial(_classes, logits, networks, letterbox)
    )
    imagined = None
    if "infrared" in extras:
        imagined, _ = networks.decode(step.z0_phi, lambda: None)
    with watch.stage("postprocess"):
        _finite(maps), _finite(restored)
        if temporal is not None:
            restored = memory.steady(step.z0_fused, networks.image, restored)
        found = None
        if temporal:  # kept for the next frame
            size = (restored.shape[-2], restored.shape[-1])
            found = torch.cat([enlarged(maps, size), restored], dim=1)
        _, carried = memory.carry(step.z0_fused, temporal or 0.0, found)
        alone = shown = CameraPictures(frame, networks.image, restored, letterbox)
        heat = maps
        if carried is not None and carried is not found:
            heat, before = carried[:, : maps.shape[1]], carried[:, maps.shape[1] :]
            shown = CameraPictures(frame, networks.image, before, letterbox)
        magimg = shown.magimg(heat)
        infrared = None if imagined is None else alone.infrared(maps, _finite(imagined))
        enhanced = alone.enhanced() if "enhanced" in extras else None
    return FuseResult(magimg, mask, confidence, infrared, enhanced, watch.stage_ms())


def decoded(
    frame: UInt8,
    extras: frozenset[str],
    networks: CompiledNetworks,
    letterbox: Letterbox,
    step: Step,
    memory: Memory,
    temporal: float | None,
) -> FuseResult:
    """Make a frame's results as the paper does, with D; as `refined`."""
    del frame  # D makes all of every picture
    watch = networks.watch
    with watch.stage("fuse"):
        fused, _ = memory.carry(step.z0_fused, temporal or 0.0)

    def picture(image: Tensor, *, grey: bool = False) -> UInt8:
        with watch.stage("postprocess"):
            _finite(image)
            if grey:
                image = image.mean(dim=1, keepdim=True)
            return to_camera(to_picture(image), letterbox)

    latents = {"magimg": fused, "infrared": step.z0_phi, "enhanced": step.z0_psi}
    # While D decodes one latent, the result before it is brought to the camera's size.
    made: dict[str, Any] = {}
    classes = partial(_classes, step.state, networks, letterbox)
    last, work = "classes", cast("Callable[[], Any]", classes)
    for name in ("magimg", *(each for each in EXTRAS if each in extras)):
        image, made[last] = networks.decode(latents[name], work)
        last, work = name, partial(picture, image, grey=name == "infrared")
    made[last] = work()
    mask, confidence = made["classes"]
    infrared, enhanced = made.get("infrared"), made.get("enhanced")
    return FuseResult(made["magimg"], mask, confidence, infrared, enhanced, watch.stage_ms())


def _classes(
    logits: Tensor, networks: CompiledNetworks, letterbox: Letterbox
) -> tuple[UInt8, UInt8]:
    """Return the mask and confidence of logits (1, classes, h, w), at the camera's size."""
    with networks.watch.stage("postprocess"):
        probabilities = quantise(_finite(logits)[0].softmax(dim=0))
        return classify(probabilities.cpu().numpy(), letterbox)


def _finite(values: Tensor) -> Tensor:
    # A value that is not finite makes the sum so too; testing each takes 20 times as long.
    if not bool(torch.isfinite(values.sum(dtype=torch.float32))):
        raise NotFinite
    return values
