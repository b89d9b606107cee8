"""How an engine samples, which may change at any time, even while a frame is being sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from magicfuse_ros.model.config import MagicFuseConfig
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.sampler import SamplerSettings
from magicfuse_ros.runtime.contract import EngineError, EngineSettings

_MOST_WARM_UP_STEPS = 25
"""If more steps than this are asked for, the warm-up takes the model's own number of steps."""


class FewerSteps(Exception):  # noqa: N818 - nothing failed
    """Ends the sampling of a frame, because fewer steps have been asked for meanwhile."""


@dataclass(frozen=True)
class Sampling:
    """One consistent way of sampling; `temporal` as in `EngineSettings`."""

    settings: SamplerSettings
    seed: int
    temporal: float | None

    @property
    def steps(self) -> int:
        """DDIM steps a frame."""
        return len(self.settings.timesteps)


class LiveSampling:
    """The way of sampling in force; `update` may be called from any thread.

    Raises
    ------
    EngineError
        The settings ask for what the model cannot do.
    """

    def __init__(self, config: MagicFuseConfig, labels: LabelSet, settings: EngineSettings) -> None:
        self._config, self._labels = config, labels
        self._warming = False
        self.update(settings)

    @property
    def in_force(self) -> Sampling:
        """How to sample the next frame."""
        return self._for_warm_up if self._warming else self._wanted

    def update(self, settings: EngineSettings) -> None:
        """Sample as `settings` say from now on; raises `EngineError` and then changes nothing."""
        wanted, own = self._of(settings), self._of(replace(settings, steps=0))
        # One assignment each, so that a frame under way in another thread sees the old or the new.
        self._wanted = wanted
        self._for_warm_up = own if wanted.steps > _MOST_WARM_UP_STEPS else wanted

    def guard(self, sampling: Sampling) -> Callable[[], None]:
        """Return a function that raises `FewerSteps` once fewer are in force than in `sampling`."""

        def check() -> None:
            if self.in_force.steps < sampling.steps:
                raise FewerSteps

        return check

    @contextmanager
    def warm_up(self) -> Iterator[int]:
        """Sample in few steps inside the `with`, to warm the networks up; gives their number."""
        self._warming = True
        try:
            yield self.in_force.steps
        finally:
            self._warming = False

    def _of(self, settings: EngineSettings) -> Sampling:
        diffusion = self._config.diffusion
        try:
            sampling = SamplerSettings.of(
                self._config,
                self._labels.thermal_ids(),
                steps=settings.steps or None,
                tau=settings.tau,
            )
        except ConfigError as error:
            raise EngineError(f"{error}, for model {self._config.name!r}") from error
        seed = diffusion.seed if settings.seed is None else settings.seed
        return Sampling(sampling, seed, settings.temporal)
