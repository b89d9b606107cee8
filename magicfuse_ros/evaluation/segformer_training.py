"""SegFormer trained on one kind of picture: how well that kind can be segmented (section 3.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from magicfuse_ros.evaluation.metrics import U8
from magicfuse_ros.evaluation.protocol import SegFormerRecipe
from magicfuse_ros.evaluation.segformer import SegFormerB0
from magicfuse_ros.model.labels import UNKNOWN

# Of ImageNet, on which checkpoints of SegFormer were trained.
_MEAN = (0.485, 0.456, 0.406)
_DEVIATION = (0.229, 0.224, 0.225)
_WEIGHT_DECAY = 0.01
# SegFormer's authors train what begins with random weights ten times as fast.
_FROM_SCRATCH = 10.0
_TOLD_EVERY = 100


def train_segformer(
    samples: Iterable[tuple[U8, U8]],
    classes: int,
    recipe: SegFormerRecipe,
    *,
    device: torch.device,
    checkpoint: Path | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> Callable[[U8], U8]:
    """Train a SegFormer, and return what it segments with.

    Samples are (H, W, 3) RGB pictures with (H, W) class ids, 255 unknown; what is returned takes
    such a picture and gives such ids. The same samples give the same network on a CPU. They are
    augmented by mirroring alone. Without a checkpoint it begins with a random B0.

    Raises ValueError if there is no sample, or none of their pixels has a class.
    """
    pictures, labels = [], []
    for picture, truth in samples:
        pictures.append(cv2.resize(picture, recipe.size, interpolation=cv2.INTER_AREA))
        labels.append(cv2.resize(truth, recipe.size, interpolation=cv2.INTER_NEAREST))
    if not pictures or all((truth == UNKNOWN).all() for truth in labels):
        raise ValueError("no training image has labels for SegFormer; accepted: one or more")
    inputs, targets = torch.from_numpy(np.stack(pictures)), torch.from_numpy(np.stack(labels))
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        network = SegFormerB0(classes, checkpoint).to(device).train()
        _optimise(network, inputs, targets, recipe, checkpoint is None, progress)
    network.eval()

    @torch.inference_mode()
    def segment(picture: U8) -> U8:
        small = cv2.resize(picture, recipe.size, interpolation=cv2.INTER_AREA)
        logits = network(_planes(torch.from_numpy(small)[None], device))
        size = picture.shape[:2]
        full = functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return np.asarray(full[0].argmax(dim=0).to(torch.uint8).cpu().numpy(), np.uint8)

    return segment


def _optimise(
    network: SegFormerB0,
    inputs: Tensor,
    targets: Tensor,
    recipe: SegFormerRecipe,
    from_scratch: bool,  # noqa: FBT001
    progress: Callable[[str], None],
) -> None:
    device = next(network.parameters()).device
    head = [p for name, p in network.named_parameters() if "decode_head" in name]
    body = [p for name, p in network.named_parameters() if "decode_head" not in name]
    fast = recipe.learning_rate * _FROM_SCRATCH
    groups = [
        {"params": head, "lr": fast},
        {"params": body, "lr": fast if from_scratch else recipe.learning_rate},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, recipe.steps)
    for step in range(1, recipe.steps + 1):
        chosen = torch.randint(len(inputs), (recipe.batch,))
        batch, truth = _planes(inputs[chosen], device), targets[chosen].to(device).long()
        mirrored = (torch.rand(recipe.batch) < 0.5).to(device)
        batch = torch.where(mirrored[:, None, None, None], batch.flip(-1), batch)
        truth = torch.where(mirrored[:, None, None], truth.flip(-1), truth)
        logits = functional.interpolate(
            network(batch), size=truth.shape[-2:], mode="bilinear", align_corners=False
        )
        # Summed and divided by hand: a batch without any known pixel teaches nothing.
        known = (truth != UNKNOWN).sum().clamp(min=1)
        loss = functional.cross_entropy(logits, truth, ignore_index=UNKNOWN, reduction="sum")
        loss = loss / known
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if step % _TOLD_EVERY == 0 or step == recipe.steps:
            progress(f"SegFormer: step {step} of {recipe.steps}, loss {loss.item():.3f}")


def _planes(pictures: Tensor, device: torch.device) -> Tensor:
    """Turn (B, H, W, 3) uint8 into (B, 3, H, W) float32, as ImageNet's are normalised."""
    planes = pictures.to(device).permute(0, 3, 1, 2).float() / 255.0
    mean, deviation = (
        torch.tensor(values, device=device)[:, None, None] for values in (_MEAN, _DEVIATION)
    )
    return (planes - mean) / deviation
