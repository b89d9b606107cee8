"""What labels and boxes ask of a segmentation (Eq. 16), and what boxes rule out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import UNKNOWN, LabelSet
from magicfuse_ros.training.stage import Batch, outside_boxes

TAUGHT, TAUGHT_CLASSES, TAUGHT_HEAT = "taught", "taught_classes", "taught_heat"
"""What a teacher adds to a batch (see `distill`): which samples it teaches, (B,) boolean, and its
class probabilities (B, classes, H, W) and heat (B, H, W)."""


@dataclass(frozen=True, kw_only=True)
class SemanticLoss:
    """Weights of a segmentation's terms.

    Attributes
    ----------
    segmentation
        Weight of Eq. 16.
    absence
        Weight of -log(1 - p), with p the probability of the classes that boxes annotate, on
        pixels of images with boxes that are outside every box and without a label: of those it is
        known what they are not.
    doubt
        Weight of the same where it is only likely, against 1 where it is known: images that nobody
        annotated, where they have no label and no hot spot. Networks labelled them, and left out
        what they were not sure of, so that of a night only cars and the road may be labelled.
    class_weights
        Cross-entropy weight of each class in the order of the label set's ids; empty weighs all
        alike.
    """

    segmentation: float = 1.0
    absence: float = 0.0
    doubt: float = 0.0
    class_weights: tuple[float, ...] = ()


class SemanticTerms(nn.Module):
    """The terms `segmentation` and `absence`, not yet weighted.

    Raises
    ------
    ConfigError
        The class weights are not as many as the label set's classes.
    """

    def __init__(self, labels: LabelSet, loss: SemanticLoss, section: str) -> None:
        super().__init__()
        self._boxed = list(labels.object_ids())
        self._others = [label.id for label in labels.labels if label.id not in self._boxed]
        weights = loss.class_weights or (1.0,) * len(labels)
        if len(weights) != len(labels):
            raise ConfigError(
                f"{section}.class_weights has {len(weights)} entries; accepted: {len(labels)}, one "
                f"for each class of the label set {labels.name!r}"
            )
        self._doubt = loss.doubt
        self.register_buffer("_weights", torch.tensor(weights), persistent=False)

    _weights: Tensor

    def forward(self, logits: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Compare logits (B, classes, H, W) with the labels and boxes of a batch of that size."""
        labels = batch["labels"]
        losses = functional.cross_entropy(
            logits, labels, self._weights, ignore_index=UNKNOWN, reduction="none"
        )
        known = labels != UNKNOWN
        weight = self._weights[labels.clamp(max=len(self._weights) - 1)] * known
        if TAUGHT_CLASSES in batch:
            weighted = batch[TAUGHT_CLASSES] * self._weights[:, None, None]
            taught, soft = batch[TAUGHT][:, None, None], logits.log_softmax(dim=1)
            losses = torch.where(taught, -(weighted * soft).sum(dim=1), losses)
            weight = torch.where(taught, weighted.sum(dim=1), weight)
        return {
            "segmentation": losses.sum() / weight.sum().clamp(min=1.0),
            "absence": self._absence(logits, self._empty(batch)),
        }

    def _empty(self, batch: Batch) -> Tensor:
        """Return how surely nothing that boxes annotate is there, (B, H, W) in [0, 1]."""
        bare = (batch["labels"] == UNKNOWN) & (batch["thermal_weight"] == 0.0)
        return torch.where(outside_boxes(batch), 1.0, self._doubt * bare)

    def _absence(self, logits: Tensor, outside: Tensor) -> Tensor:
        """Return the mean of -log(1 - p) over `outside` (B, H, W); p is that of boxed classes."""
        if not self._others:  # a set of boxed classes alone has nothing else to say
            return logits.new_zeros(())
        boxed = logits[:, self._boxed].logsumexp(dim=1)
        others = logits[:, self._others].logsumexp(dim=1)
        # -log(1 - p) with p = exp(boxed) / (exp(boxed) + exp(others)).
        penalty = functional.softplus(boxed - others) * outside
        return penalty.sum() / outside.sum().clamp(min=1.0)
