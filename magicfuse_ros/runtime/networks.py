"""The compiled parts of a model for one input size, as the sampler's `Networks`."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from magicfuse_ros.model.diffusion import Estimate
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.sampler import Noise
from magicfuse_ros.runtime.backends import Backend, Network, Part
from magicfuse_ros.runtime.concurrency import StartedNetwork, run_both
from magicfuse_ros.runtime.contract import Progress, UInt8
from magicfuse_ros.runtime.parts import parts_of
from magicfuse_ros.runtime.stopwatch import Stopwatch

_TRIALS, _TRIALS_S = 4, 2.0
"""Runs that decide between in turn and side by side, fewer where they take longer than this."""


class CompiledNetworks:
    """E, Ψ, Φ, F & S and D, compiled for images of one size, with the buffers that go with it.

    Parameters
    ----------
    model
        The model whose parts are compiled.
    backend, device
        What compiles them, and where they run.
    size
        (height, width) of the images in pixels, multiples of the model's `multiple_of`.
    progress
        Told which part is being prepared.
    parallel
        `on`: Ψ and Φ side by side, each on half of the cores; `off`: Ψ, then Φ, each on all of
        them; `auto`: as is faster here. A backend that cannot is left to do it in turn.

    Attributes
    ----------
    watch
        Charged with the stages encode, denoise, fuse and decode; the caller puts a fresh one in
        place for each frame.
    """

    def __init__(
        self,
        model: MagicFuse,
        backend: Backend,
        device: torch.device,
        size: tuple[int, int],
        progress: Progress,
        parallel: str = "auto",
    ) -> None:
        self.watch = Stopwatch(device)
        self._model, self._device, self._size = model, device, size
        self._memory_format = backend.memory_format
        self._timesteps: dict[int, Tensor] = {}
        self._image = self._place(torch.zeros((1, 3, *size)))
        self._seed = model.config.diffusion.seed
        self._noise, self._encoder_noise = self._draw(self._seed)
        parts = parts_of(model, size, self._place)

        def compiled(name: str) -> Network:
            progress(f"preparing {name} for {size[1]}x{size[0]}")
            return backend.compile(parts[name], progress)

        self._encoder = compiled("encoder")
        self._psi, self._phi = compiled("psi"), compiled("phi")
        self._fusion = compiled("fusion")
        self._decoder = compiled("decoder")
        self._pair = None
        if parallel != "off":
            self._pair = self._side_by_side(backend, parts, progress, parallel)
        if self._pair is not None:
            del self._phi  # alone it is never run

    def noise(self, seed: int) -> Noise:
        """Return the sampler's starting noise, drawn anew when the seed changes."""
        if seed != self._seed:
            self._noise, self._encoder_noise = self._draw(seed)
            self._seed = seed
        return self._noise

    def encode(self, image: UInt8) -> Tensor:
        """Return E of a (H, W, 3) uint8 image, with the encoder noise of the last seed."""
        with self.watch.stage("preprocess"):
            pixels = torch.from_numpy(image).to(self._device).permute(2, 0, 1)[None]
            self._image.copy_(pixels).div_(255.0)
        with self.watch.stage("encode"):
            condition: Tensor = self._encoder(self._image, *self._encoder_noise)
        return condition

    def denoise(
        self, condition: Tensor, z_psi: Tensor, z_phi: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Predictions of Ψ and Φ at timestep t."""
        step = self._timestep(t)
        with self.watch.stage("denoise"):
            if self._pair is not None:
                return run_both(self._pair, (condition, z_psi, step), (condition, z_phi, step))
            return self._psi(condition, z_psi, step), self._phi(condition, z_phi, step)

    def restore(self, condition: Tensor, z_psi: Tensor, t: int) -> Tensor:
        """Prediction of Ψ alone."""
        with self.watch.stage("denoise"):
            prediction: Tensor = self._psi(condition, z_psi, self._timestep(t))
        return prediction

    def fuse(
        self, psi: Estimate, phi: Estimate, z_f: Tensor, state: Tensor, t: int
    ) -> tuple[Tensor, Tensor]:
        """Return w and the next z^s."""
        with self.watch.stage("fuse"):
            w, state = self._fusion(psi.z0, phi.z0, z_f, psi.eps, phi.eps, state, self._timestep(t))
        return w, state

    def decode(self, latent: Tensor) -> Tensor:
        """Return D of a latent, (1, 3, H, W) in [0, 1]."""
        with self.watch.stage("decode"):
            image: Tensor = self._decoder(latent)
        return image

    @property
    def side_by_side(self) -> bool:
        """Whether Ψ and Φ run at the same time."""
        return self._pair is not None

    def _side_by_side(
        self, backend: Backend, parts: dict[str, Part], progress: Progress, parallel: str
    ) -> tuple[StartedNetwork, StartedNetwork] | None:
        psi = backend.share(parts["psi"], progress)
        phi = None if psi is None else backend.share(parts["phi"], progress)
        if psi is None or phi is None:
            if parallel == "on":
                progress("Ψ and Φ run in turn: this backend cannot run them side by side here")
            return None
        if parallel == "on":
            return psi, phi
        given = parts["psi"].inputs, parts["phi"].inputs

        def in_turn() -> None:
            self._psi(*given[0])
            self._phi(*given[1])

        with torch.inference_mode():
            alone = self._fastest_ms(in_turn)
            beside = self._fastest_ms(lambda: run_both((psi, phi), *given))
        progress(f"Ψ and Φ take {alone:.1f} ms in turn, {beside:.1f} ms side by side")
        return (psi, phi) if beside < alone else None

    def _draw(self, seed: int) -> tuple[Noise, tuple[Tensor, ...]]:
        generator = torch.Generator().manual_seed(seed)
        drawn = self._model.draw_noise(*self._size, generator)
        noise = Noise(self._place(drawn.latent), self._place(drawn.state))
        encoder_noise = self._model.draw_encoder_noise(*self._size, generator)
        return noise, () if encoder_noise is None else (self._place(encoder_noise),)

    def _place(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 4:
            tensor = tensor.contiguous(memory_format=self._memory_format)
        return tensor.to(self._device)

    def _timestep(self, t: int) -> Tensor:
        if t not in self._timesteps:
            self._timesteps[t] = torch.tensor([t], device=self._device)
        return self._timesteps[t]

    def _fastest_ms(self, run: Callable[[], object]) -> float:
        """Return the least time of a few runs: what else the machine does only adds to it."""
        times: list[float] = []
        while not times or (len(times) < _TRIALS and sum(times) < _TRIALS_S):
            started = time.perf_counter()
            run()
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            times.append(time.perf_counter() - started)
        return min(times) * 1e3
