"""Recipes of degradation: which effects meet in an image, how strong they are, and how often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

from magicfuse_ros.model.config_values import require, require_share
from magicfuse_ros.training.degradation import EFFECTS, Rgb


@dataclass(frozen=True)
class Degradation:
    """One effect at one strength in [0, 1]."""

    effect: str
    strength: float

    def __post_init__(self) -> None:
        require(self.effect in EFFECTS, "degradation", self.effect, ", ".join(EFFECTS))
        require_share(self, self.effect, "strength")


@dataclass(frozen=True)
class Recipe:
    """Degradations that meet in one image; applied in the order light meets them."""

    name: str
    steps: tuple[Degradation, ...] = ()


@dataclass(frozen=True)
class Mix:
    """How often training sees what: relative weight of each leading condition."""

    none: float = 0.06
    low_light: float = 0.38
    haze: float = 0.22
    noise: float = 0.14
    blur: float = 0.07
    low_contrast: float = 0.06
    rain: float = 0.04
    jpeg: float = 0.03

    def __post_init__(self) -> None:
        weights = asdict(self)
        fits = min(weights.values()) >= 0.0 and any(weights.values())
        require(fits, "mix", weights, "weights of 0 or more that are not all 0")


# (effect, chance, lowest and highest share of the leading strength): what comes along with the
# leading condition. Darkness brings noise and, by long exposure, motion blur.
_COUPLED: dict[str, tuple[tuple[str, float, float, float], ...]] = {
    "low_light": (
        ("noise", 0.35, 0.1, 0.5),
        ("haze", 0.15, 0.3, 0.9),
        ("motion_blur", 0.12, 0.2, 0.7),
        ("jpeg", 0.2, 0.1, 0.5),
    ),
    "haze": (
        ("noise", 0.3, 0.1, 0.5),
        ("low_light", 0.25, 0.2, 0.8),
        ("low_contrast", 0.1, 0.1, 0.5),
        ("jpeg", 0.15, 0.1, 0.5),
    ),
    "noise": (
        ("low_light", 0.3, 0.2, 0.6),
        ("low_contrast", 0.15, 0.2, 0.6),
        ("jpeg", 0.2, 0.1, 0.5),
    ),
    "blur": (("noise", 0.35, 0.1, 0.5), ("low_light", 0.25, 0.2, 0.7), ("jpeg", 0.2, 0.1, 0.4)),
    "low_contrast": (
        ("noise", 0.4, 0.1, 0.5),
        ("low_light", 0.2, 0.2, 0.6),
        ("jpeg", 0.2, 0.1, 0.4),
    ),
    "rain": (("haze", 0.4, 0.2, 0.6), ("low_light", 0.3, 0.2, 0.6), ("noise", 0.3, 0.1, 0.4)),
    "jpeg": (("noise", 0.4, 0.1, 0.5), ("low_light", 0.3, 0.2, 0.6)),
}
_MOST_AT_ONCE = 3
NIGHT = 0.45
"""Scales every strength on frames that are dark already: those lack light by nature, and a second
full darkening leaves nothing to restore."""
RECIPES = (
    "none", "low_light", "haze", "noise", "blur", "low_contrast", "rain", "jpeg", "night", "mixed",
)  # fmt: skip


def degrade(image: Rgb, rng: np.random.Generator, recipe: Recipe) -> Rgb:
    """Apply a recipe to an image, (H, W, 3) uint8 RGB, which is not changed; returns a new one.

    Everything random comes from `rng`: the same state gives the same result.

    Examples
    --------
    >>> import numpy as np
    >>> from magicfuse_ros.training.degradation_mixes import degrade, named_recipe
    >>> street = np.full((48, 64, 3), 180, np.uint8)
    >>> recipe = named_recipe("night", np.random.default_rng(0))
    >>> [step.effect for step in recipe.steps]
    ['low_light', 'noise']
    >>> dark = degrade(street, np.random.default_rng(0), recipe)
    >>> dark.shape, bool(dark.mean() < street.mean() / 2)
    ((48, 64, 3), True)
    """
    result = degrade_batch(torch.from_numpy(np.array(image)[None]).float(), rng, [recipe])
    return np.asarray(result[0].byte().numpy(), np.uint8)


def degrade_batch(images: Tensor, rng: np.random.Generator, recipes: Sequence[Recipe]) -> Tensor:
    """Apply a recipe to each of (B, H, W, 3) float32 images in whole levels, on their device."""
    result = images.clone()
    for name, effect in EFFECTS.items():
        strengths = {
            index: step.strength
            for index, recipe in enumerate(recipes)
            for step in recipe.steps
            if step.effect == name
        }
        some = torch.tensor(list(strengths), device=images.device, dtype=torch.int64)
        if len(some):
            changed = effect(result[some], np.array(list(strengths.values())), rng)
            result.index_copy_(0, some, changed)
    return result


def named_recipe(name: str, rng: np.random.Generator, *, night: bool = False) -> Recipe:
    """Build one of `RECIPES`: a single condition, `night` (dark and noisy) or `mixed`.

    The strength is drawn from the range that training draws from, [0.25, 1]. The argument `night`
    makes the recipe milder, for a frame that is dark already.
    """
    require(name in RECIPES, "recipe", name, ", ".join(RECIPES))
    if name == "mixed":
        return sample_recipe(rng, night=night)
    level = float(rng.uniform(0.25, 1.0)) * (NIGHT if night else 1.0)
    blur = "motion_blur" if rng.random() < 0.5 else "defocus_blur"
    steps = {
        "none": (),
        "blur": (Degradation(blur, level),),
        "night": (Degradation("low_light", min(1.0, 0.4 + 0.6 * level) if not night else level),
                  Degradation("noise", 0.35 * level)),
    }  # fmt: skip
    return Recipe(name, steps[name] if name in steps else (Degradation(name, level),))


def sample_recipe(
    rng: np.random.Generator, mix: Mix | None = None, *, night: bool = False
) -> Recipe:
    """Draw a recipe of up to three coupled degradations as `mix` weighs them."""
    weights = asdict(mix or Mix())
    chances = np.array(list(weights.values()))
    leading = list(weights)[int(rng.choice(len(weights), p=chances / chances.sum()))]
    if leading == "none":
        return Recipe("none")
    scale = NIGHT if night else 1.0
    strength = float(rng.uniform(0.25, 1.0))
    effect = leading
    if leading == "blur":
        effect = "motion_blur" if rng.random() < 0.6 else "defocus_blur"
    steps = [Degradation(effect, strength * scale)]
    for other, chance, low, high in _COUPLED[leading]:
        hit, share = rng.random() < chance, float(rng.uniform(low, high))
        if hit and len(steps) < _MOST_AT_ONCE:
            steps.append(Degradation(other, share * scale))
    return Recipe("+".join(step.effect for step in steps), tuple(steps))
