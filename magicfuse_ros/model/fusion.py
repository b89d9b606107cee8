"""F and S, the multi-domain knowledge fusion (MKF) branch, and Eq. 8 and 11."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from magicfuse_ros.model.config import FusionConfig


def time_embedding(t: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding of the timesteps `t` (B,), shape (B, width)."""
    half = width // 2
    frequencies = torch.exp(
        -math.log(10000.0) / max(half - 1, 1) * torch.arange(half, device=t.device)
    )
    angles = t.float()[:, None] * frequencies[None, :]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class TimeResidualBlock(nn.Module):
    """A residual block conditioned on the time embedding."""

    def __init__(self, inputs: int, outputs: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-6)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(time_channels, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-6)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut: nn.Module = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map x (B, inputs, h, w) and time (B, time_channels) to (B, outputs, h, w)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time(functional.silu(time))[:, :, None, None]
        residual: Tensor = self.shortcut(x) + self.conv2(functional.silu(self.norm2(h)))
        return residual


class SelfAttention(nn.Module):
    """Single-head self-attention over every position, with a residual connection."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to the same shape."""
        normed = self.norm(x)
        q, k, v = (
            project(normed).flatten(2).transpose(1, 2)[:, None].contiguous()
            for project in (self.q, self.k, self.v)
        )
        # This never materialises the h·w × h·w attention map, which at 640×480 has 19,200 squared
        # entries. q, k and v must be contiguous: for others PyTorch falls back to the map.
        attended = functional.scaled_dot_product_attention(q, k, v)
        projected: Tensor = self.out(attended[:, 0].transpose(1, 2).reshape(x.shape))
        return x + projected


class FusionLayer(nn.Module):
    """One layer of F: two residual blocks, a 1×1 MLP that sees both noises, self-attention."""

    def __init__(
        self, inputs: int, width: int, noise: int, config: FusionConfig, *, attention: bool
    ) -> None:
        super().__init__()
        time_channels = 4 * config.time_width
        self.res1 = TimeResidualBlock(inputs, width, time_channels, config.norm_groups)
        self.res2 = TimeResidualBlock(width, width, time_channels, config.norm_groups)
        self.mlp = nn.Sequential(
            nn.Conv2d(width + noise, config.mlp_width, 1),
            nn.SiLU(),
            nn.Conv2d(config.mlp_width, width, 1),
        )
        self.att: nn.Module = (
            SelfAttention(width, config.norm_groups) if attention else nn.Identity()
        )

    def forward(self, x: Tensor, noises: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features after the residual blocks and after the attention.

        They are (B, width, h, w) each, from `x` (B, inputs, h, w), `noises`, which are ε_ψ and ε_φ,
        concatenated and patched, (B, noise, h, w), and `time` (B, 4 · time_width).
        """
        before = self.res2(self.res1(x, time), time)
        return before, self.att(self.mlp(torch.cat([before, noises], dim=1)))


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    if (x.shape[-2], x.shape[-1]) == size:
        return x
    if size[0] >= x.shape[-2] and size[1] >= x.shape[-1]:
        return functional.interpolate(x, size=size, mode="bilinear")
    ratio = x.shape[-2] // size[0]
    if (x.shape[-2], x.shape[-1]) == (ratio * size[0], ratio * size[1]):
        return functional.avg_pool2d(x, ratio)  # the same result, which compilers make fast
    return area_averaged(x, size)


def area_averaged(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Shrink (B, C, H, W) to `size` (height, width) by the mean of each pixel's window.

    It is adaptive average pooling, written as two matrix products: where a side is no multiple of
    the new one, Torch-TensorRT 2.11 lowers that operator with windows of one size, far too large
    (15 rows become 8 by means of 8 rows each, and not of 2 or 3).
    """
    rows = _windows(int(x.shape[-2]), size[0], x)
    columns = _windows(int(x.shape[-1]), size[1], x)
    return rows @ x @ columns.transpose(0, 1)


def _windows(length: int, new: int, like: Tensor) -> Tensor:
    """Return the weights of `length` pixels in each of `new` means, (new, length)."""
    # Made on the device: a table from the CPU could not be copied during a CUDA graph's capture.
    pixel = torch.arange(length, device=like.device)
    index = torch.arange(new, device=like.device)[:, None]
    # Pixel i begins in window ⌊i·new/length⌋ and ends in ⌈(i + 1)·new/length⌉ - 1.
    inside = ((pixel + 1) * new > index * length) & (pixel * new < (index + 1) * length)
    share = inside.to(like.dtype)
    return share / share.sum(dim=1, keepdim=True)


class Fusion(nn.Module):
    """F and S: the weight w (Eq. 9) and the segmentation state z^s (Eq. 10) of one step."""

    def __init__(self, config: FusionConfig, latent_channels: int, classes: int) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        patched = latent_channels * config.patch**2
        state = classes * config.patch**2
        time_channels = 4 * config.time_width
        self.time_embed = nn.Sequential(
            nn.Linear(config.time_width, time_channels),
            nn.SiLU(),
            nn.Linear(time_channels, time_channels),
        )
        self.inconv = nn.Conv2d(3 * patched, config.widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        self.segproj = nn.ModuleList()
        width = config.widths[0]
        for index, attention in enumerate(config.attention):
            inputs = width + self._skip_width(index)
            width = config.widths[index]
            self.blocks.append(FusionLayer(inputs, width, 2 * patched, config, attention=attention))
            self.segproj.extend(
                nn.Conv2d(width + state, state, 3, padding=1) for _ in range(config.taps)
            )
        self.normout = nn.Conv2d(width, patched, 1)
        self.estimate = nn.Sequential(
            nn.Conv2d(3 * latent_channels, config.head_width, 3, padding=1),
            nn.SiLU() if config.head_activation else nn.Identity(),
            nn.Conv2d(config.head_width, latent_channels, 3, padding=1),
        )

    def _skip_source(self, index: int) -> int | None:
        """Find the earlier layer whose features layer `index` also receives.

        If `index` returns from a coarser scale, that is the last layer before it at its own scale;
        otherwise, or if there is none, None.
        """
        scales = self.config.scales
        if index == 0 or scales[index] >= scales[index - 1]:
            return None
        earlier = [i for i in range(index) if scales[i] == scales[index]]
        return earlier[-1] if earlier else None

    def _skip_width(self, index: int) -> int:
        source = self._skip_source(index)
        return 0 if source is None else self.config.widths[source]

    def forward(
        self,
        z0_psi: Tensor,
        z0_phi: Tensor,
        z_f: Tensor,
        eps_psi: Tensor,
        eps_phi: Tensor,
        state: Tensor,
        t: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Run one step of F and S.

        Parameters
        ----------
        z0_psi, z0_phi
            One-step estimates of the two clean latents, (B, 8, h, w).
        z_f
            The fused latent at this step, (B, 8, h, w).
        eps_psi, eps_phi
            The two estimated noises, (B, 8, h, w).
        state
            z^s, the segmentation state of the previous step, (B, classes, h, w).
        t
            Timesteps, (B,) or (1,).

        Returns
        -------
        w, state
            The weight of Ψ's noise (B, 8, h, w), which no activation bounds, and the new z^s
            (B, classes, h, w), the logits at latent size.
        """
        patch = self.config.patch
        time = self.time_embed(time_embedding(t, self.config.time_width).to(z_f.dtype))
        x = functional.pixel_unshuffle(torch.cat([z0_psi, z0_phi, z_f], dim=1), patch)
        noises = functional.pixel_unshuffle(torch.cat([eps_psi, eps_phi], dim=1), patch)
        state = functional.pixel_unshuffle(state, patch)
        height, width = x.shape[-2:]
        x = functional.silu(self.inconv(x))
        features: list[Tensor] = []
        projections = iter(self.segproj)
        for index, (layer, scale) in enumerate(zip(self.blocks, self.config.scales, strict=True)):
            size = (math.ceil(height / scale), math.ceil(width / scale))
            x = _resized(x, size)
            source = self._skip_source(index)
            if source is not None:
                x = torch.cat([x, features[source]], dim=1)
            before, x = layer(x, _resized(noises, size), time)
            features.append(x)
            state = _resized(state, size)
            for feature in (before, x)[-self.config.taps :]:
                state = next(projections)(torch.cat([feature, state], dim=1))
        estimate = functional.pixel_shuffle(self.normout(x), patch)
        w = self.estimate(torch.cat([estimate, eps_psi, eps_phi], dim=1))
        return w, functional.pixel_shuffle(state, patch)


def radiation_category_map(state: Tensor, thermal_ids: tuple[int, ...]) -> Tensor:
    """M of Eq. 11: 1 where argmax(z^s) is a thermal class, else 0.

    `state` is (B, classes, h, w); the result is (B, 1, h, w) in the same dtype.
    """
    # These are the indices that `argmax` gives, but that takes 15 times as long on a CPU.
    largest = state.max(dim=1, keepdim=True).indices
    return is_one_of(largest, thermal_ids).to(state.dtype)


def is_one_of(classes: Tensor, ids: tuple[int, ...]) -> Tensor:
    """Return a boolean tensor of the same shape: True where a class id is among `ids`."""
    # Compared one by one and not looked up: a table would have to be copied to the GPU, and a CUDA
    # graph cannot hold such a copy.
    found = torch.zeros_like(classes, dtype=torch.bool)
    for index in ids:
        found = found | (classes == index)
    return found


def modulated_weight(w: Tensor, radiation: Tensor, tau: float) -> Tensor:
    """w_r of Eq. 11: M·min(w, τ) + (1 − M)·w."""
    return radiation * w.clamp(max=tau) + (1.0 - radiation) * w


def fused_noise(w_r: Tensor, eps_psi: Tensor, eps_phi: Tensor) -> Tensor:
    """ε_f of Eq. 8: w_r·ε_ψ + (1 − w_r)·ε_φ."""
    return w_r * eps_psi + (1.0 - w_r) * eps_phi
