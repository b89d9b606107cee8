"""The compiled parts of a model for one input size, as the sampler's `Networks`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import Noise, SamplerSettings, Step, sample
from magicfuse_ros.runtime.backends import Backend, Part
from magicfuse_ros.runtime.concurrency import run_both
from magicfuse_ros.runtime.contract import Progress
from magicfuse_ros.runtime.parts import parts_of
from magicfuse_ros.runtime.stopwatch import Stopwatch

_Outcome = TypeVar("_Outcome")


class CompiledNetworks:
    """E, Ψ, Φ, F & S and D, compiled for images of one size, with the buffers that go with it.

    Parameters
    ----------
    size
        (height, width) of the images in pixels, multiples of the model's `multiple_of`.
    progress
        Called with a line of text for each part that is being prepared.
    parallel
        As in `EngineSettings`.
    refined
        Whether R is made too, for `refine`.

    Attributes
    ----------
    side_by_side
        Whether Ψ and Φ run at the same time, and what is made of a picture while D runs.
    watch
        The stopwatch that times the stages of a frame; the caller sets a new one for each frame.
    image
        The image that `encode` got last, (1, 3, H, W) in [0, 1].
    before_step
        Called before each sampling step, except in a CUDA graph; it may raise to end the sampling.
    frames
        What makes whole frames with these networks on a GPU; None on a CPU.
    """

    def __init__(
        self,
        model: MagicFuse,
        backend: Backend,
        device: torch.device,
        size: tuple[int, int],
        progress: Progress,
        parallel: str = "auto",
        *,
        refined: bool = False,
    ) -> None:
        self.watch, self.backend = Stopwatch(device), backend
        self._model, self._device, self._size = model, device, size
        self._memory_format = backend.memory_format
        self._timesteps: dict[int, Tensor] = {}
        self.before_step: Callable[[], None] = lambda: None
        self.frames: Any = None  # of `DeviceFrames`, which is made of this class
        self.image = self._to_device(torch.zeros((1, 3, *size)))
        self._seed = model.config.diffusion.seed
        self._noise = self._draw(self._seed)
        parts = parts_of(model, size, self._to_device)

        def part(name: str) -> Part:
            progress(f"preparing {name} for {size[1]}x{size[0]}")
            return parts[name]

        if parallel == "on" and not backend.side_by_side:
            progress("Ψ and Φ run in turn: this backend cannot run them side by side here")
        self.side_by_side = backend.side_by_side and parallel != "off"
        share: Callable[[Part, Progress], Any] = (
            backend.share if self.side_by_side else backend.compile
        )
        self._encoder = backend.compile(part("encoder"), progress)
        self._psi, self._phi = share(part("psi"), progress), share(part("phi"), progress)
        self._fusion = backend.compile(part("fusion"), progress)
        self.refined = refined
        if refined:
            self._refiner = backend.compile(part("refiner"), progress)
        # D gets half of the cores and leaves the other half for making the masks meanwhile.
        self._decoder = share(part("decoder"), progress)

    def noise(self, seed: int) -> None:
        """Start the sampler and E from the noise of this seed, drawn anew when it changes."""
        if seed != self._seed:
            # In place: a CUDA graph keeps reading the memory that it was captured with.
            for kept, drawn in zip(self._noise, self._draw(seed), strict=True):
                kept.copy_(drawn)
            self._seed = seed

    def encode(self, image: Tensor) -> Tensor:
        """Return E of an image (1, 3, H, W), 0 to 255, with the noise that `noise` drew last."""
        with self.watch.stage("preprocess"):
            self.image.copy_(image).div_(255.0)
        with self.watch.stage("encode"):
            condition: Tensor = self._encoder(self.image, *self._noise[2:])
        return condition

    def sample(self, condition: Tensor, settings: SamplerSettings) -> Step:
        """Run the sampler from a condition latent and that noise, and return its last step."""
        return sample(self, condition, Noise(*self._noise[:2]), self._model.config, settings)

    def close(self) -> None:
        """Let go of the graphs that hold these networks."""
        if self.frames is not None:
            self.frames.close()
            self.frames = None

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return the predictions of Ψ and Φ at timestep t."""
        self.before_step()
        step = self._timestep(t)
        with self.watch.stage("denoise"):
            if self.side_by_side:
                pair = self._psi, self._phi
                return run_both(pair, (condition, z_psi, step), (condition, z_phi, step))
            return self._psi(condition, z_psi, step), self._phi(condition, z_phi, step)

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return w and the next z^s."""
        with self.watch.stage("fuse"):
            w, state = self._fusion(psi.z0, phi.z0, z_f, psi.eps, phi.eps, state, self._timestep(t))
        return w, state

    def decode(self, latent: Tensor, meanwhile: Callable[[], _Outcome]) -> tuple[Tensor, _Outcome]:
        """Return D of a latent, (1, 3, H, W) in [0, 1], and what `meanwhile` returns.

        If networks run side by side, `meanwhile` is called while D runs, else after D. Time that it
        spends in stages of its own does not count for the stage decode.
        """
        image: Tensor
        with self.watch.stage("decode"):
            if not self.side_by_side:
                image = self._decoder(latent)
                return image, meanwhile()
            self._decoder.start(latent)
            try:
                outcome = meanwhile()
            finally:  # D reads the latent until it has finished
                image = self._decoder.finish()
        return image, outcome

    def refine(self, step: Step) -> tuple[Tensor, Tensor]:
        """Return R's maps and logits of a sample of the image that `encode` got."""
        with self.watch.stage("decode"):
            latents = (step.z0_psi, step.z0_phi, step.z0_fused)
            maps, logits = self._refiner(self.image, *latents, step.state)
        return maps, logits

    def _draw(self, seed: int) -> list[Tensor]:
        """Draw z_T, z^s_T and, where this E takes any, its noise."""
        generator = torch.Generator().manual_seed(seed)
        noise = self._model.draw_noise(*self._size, generator)
        drawn = (*noise, self._model.draw_encoder_noise(*self._size, generator))
        return [self._to_device(each) for each in drawn if each is not None]

    def _to_device(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=self._memory_format)
        return tensor.to(self._device)

    def _timestep(self, t: int) -> Tensor:
        if t not in self._timesteps:
            self._timesteps[t] = torch.tensor([t], device=self._device)
        return self._timesteps[t]
