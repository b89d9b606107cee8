"""The U-Net of latent diffusion (Rombach et al., CVPR 2022), without a context to attend to.

Ψ and Φ are such networks (paper, section 2.2). Tensors carry the names that diffusers gives them in
its `UNet2DConditionModel`, so weights files of either fit both; tests prove the two equal.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Return the sinusoidal embedding of the timesteps t (B,), cosines first, (B, width) float32.

    Ho et al., 2020: frequencies fall geometrically from 1 towards 1/10000. `width` is even.
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
    angles = t[:, None].float() * torch.exp(-math.log(10000.0) * exponents)[None, :]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbedding(nn.Module):
    """The perceptron behind the sinusoidal embedding, (B, width) to (B, 4·width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.linear_1 = nn.Linear(width, 4 * width)
        self.linear_2 = nn.Linear(4 * width, 4 * width)

    def forward(self, t: Tensor) -> Tensor:
        """Embed the timesteps t (B,), of any number type, as (B, 4·width)."""
        sinusoids = timestep_embedding(t, self.width).to(self.linear_1.weight.dtype)
        embedding: Tensor = self.linear_2(functional.silu(self.linear_1(sinusoids)))
        return embedding


class ResidualBlock(nn.Module):
    """Two convolutions with GroupNorm and SiLU, the time embedding added between them."""

    def __init__(self, inputs: int, outputs: int, time_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, inputs, eps=1e-5)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_channels, outputs)
        self.norm2 = nn.GroupNorm(groups, outputs, eps=1e-5)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut: nn.Module = (
            nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map x (B, inputs, h, w) and time (B, time_channels) to (B, outputs, h, w)."""
        h = self.conv1(functional.silu(self.norm1(x)))
        h = h + self.time_emb_proj(functional.silu(time))[:, :, None, None]
        h = self.conv2(functional.silu(self.norm2(h)))
        residual: Tensor = self.conv_shortcut(x) + h
        return residual


class SelfAttention(nn.Module):
    """Multi-head self-attention over a sequence; queries, keys and values have no bias."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(channels, channels, bias=False)
        self.to_k = nn.Linear(channels, channels, bias=False)
        self.to_v = nn.Linear(channels, channels, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, positions, channels) to the same shape."""
        batch, positions, channels = x.shape
        by_head = (batch, positions, self.heads, channels // self.heads)
        q, k, v = (
            project(x).view(by_head).transpose(1, 2)
            for project in (self.to_q, self.to_k, self.to_v)
        )
        # This never materialises a map of positions by positions.
        attended = functional.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.to_out[0](attended.transpose(1, 2).reshape(x.shape))
        return out


class GatedGelu(nn.Module):
    """A linear layer gated by a second one through GELU (GEGLU; Shazeer, 2020)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.proj = nn.Linear(inputs, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, positions, inputs) to (B, positions, outputs)."""
        hidden, gate = self.proj(x).chunk(2, dim=-1)
        gated: Tensor = hidden * functional.gelu(gate)
        return gated


class FeedForward(nn.Module):
    """The position-wise network of a transformer block, four times as wide inside."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # The middle is where diffusers keeps its dropout; it gives the last layer its name.
        self.net = nn.Sequential(
            GatedGelu(channels, 4 * channels), nn.Identity(), nn.Linear(4 * channels, channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, positions, channels) to the same shape."""
        out: Tensor = self.net(x)
        return out


class TransformerBlock(nn.Module):
    """Self-attention twice (the second would attend to a context) and a feed-forward network."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn1 = SelfAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels)
        self.attn2 = SelfAttention(channels, heads)
        self.norm3 = nn.LayerNorm(channels)
        self.ff = FeedForward(channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, positions, channels) to the same shape."""
        x = self.attn1(self.norm1(x)) + x
        x = self.attn2(self.norm2(x)) + x
        out: Tensor = self.ff(self.norm3(x)) + x
        return out


class SpatialTransformer(nn.Module):
    """A transformer block over every position of a feature map, as a residual."""

    def __init__(self, channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = nn.Conv2d(channels, channels, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(channels, heads)])
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, h, w) to the same shape."""
        batch, channels, height, width = x.shape
        h = self.proj_in(self.norm(x)).permute(0, 2, 3, 1)
        h = self.transformer_blocks[0](h.reshape(batch, height * width, channels))
        h = h.reshape(batch, height, width, channels).permute(0, 3, 1, 2).contiguous()
        residual: Tensor = self.proj_out(h) + x
        return residual


class Resample(nn.Module):
    """The convolution that halves a feature map, or that follows its enlargement."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=stride, padding=1)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Convolve (B, channels, h, w), enlarged to the size (height, width) first if given."""
        if size is not None:
            x = functional.interpolate(x, size=tuple(size), mode="nearest")
        out: Tensor = self.conv(x)
        return out


class Level(nn.Module):
    """The layers of one resolution.

    Parameters
    ----------
    inputs
        The channels that each residual block is given; all of them give `width`.
    heads
        Of the spatial transformer after each residual block; 0 leaves these out.
    halves, enlarges
        Whether a coarser level follows on the way down, or a finer one on the way up.
    """

    def __init__(
        self,
        inputs: Sequence[int],
        width: int,
        time_channels: int,
        heads: int,
        groups: int,
        *,
        halves: bool = False,
        enlarges: bool = False,
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(
            ResidualBlock(each, width, time_channels, groups) for each in inputs
        )
        self.attentions = nn.ModuleList(
            SpatialTransformer(width, heads, groups) for _ in inputs if heads
        )
        self.downsamplers = nn.ModuleList(Resample(width, stride=2) for _ in range(halves))
        self.upsamplers = nn.ModuleList(Resample(width, stride=1) for _ in range(enlarges))

    def layer(self, index: int, x: Tensor, time: Tensor) -> Tensor:
        """Run one residual block and its transformer: (B, inputs, h, w) to (B, width, h, w)."""
        x = self.resnets[index](x, time)
        return self.attentions[index](x) if self.attentions else x


class DownLevel(Level):
    """A level on the way down."""

    def forward(self, x: Tensor, time: Tensor) -> list[Tensor]:
        """Map (B, inputs, h, w) to the result of each layer; the last goes to the next level."""
        features = []
        for index in range(len(self.resnets)):
            x = self.layer(index, x, time)
            features.append(x)
        return features + [downsample(x) for downsample in self.downsamplers]


class UpLevel(Level):
    """A level on the way up."""

    def forward(self, x: Tensor, skips: list[Tensor], time: Tensor) -> Tensor:
        """Map (B, C, h, w), joined with the last of `skips` in each layer, to (B, width, …).

        Each layer takes its entry off `skips`. Where a finer level follows, the result is enlarged
        to the size of the next entry.
        """
        for index in range(len(self.resnets)):
            x = self.layer(index, torch.cat([x, skips.pop()], dim=1), time)
        for upsample in self.upsamplers:
            x = upsample(x, skips[-1].shape[-2:])
        return x


class MiddleBlock(nn.Module):
    """Residual block, spatial transformer, residual block, at the coarsest resolution."""

    def __init__(self, width: int, time_channels: int, heads: int, groups: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([SpatialTransformer(width, heads, groups)])
        self.resnets = nn.ModuleList(
            ResidualBlock(width, width, time_channels, groups) for _ in range(2)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (B, width, h, w) to the same shape."""
        x = self.attentions[0](self.resnets[0](x, time))
        out: Tensor = self.resnets[1](x, time)
        return out


class UNet(nn.Module):
    """The U-Net: down through the levels, the middle block, and up again with skip connections.

    Parameters
    ----------
    inputs, outputs
        Channels of the input and of the output.
    widths
        Channels of each level, the finest first; each level has half the resolution of the one
        before it.
    blocks
        Residual blocks of a level on the way down; on the way up there is one more.
    attention_levels
        Levels (0 = finest) with spatial transformers; the middle block always has one.
    heads, groups
        Attention heads, and GroupNorm groups.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        heads: int,
        groups: int,
    ) -> None:
        super().__init__()
        time_channels, last = 4 * widths[0], len(widths) - 1
        self.conv_in = nn.Conv2d(inputs, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0])
        self.down_blocks = nn.ModuleList()
        skips, x = [widths[0]], widths[0]  # channels of each skip connection, and of x
        for level, width in enumerate(widths):
            shape = width, time_channels, heads if level in attention_levels else 0, groups
            inner = [x, *[width] * (blocks - 1)]
            self.down_blocks.append(DownLevel(inner, *shape, halves=level != last))
            skips += [width] * (blocks + (level != last))
            x = width
        self.mid_block = MiddleBlock(x, time_channels, heads, groups)
        self.up_blocks = nn.ModuleList()
        for level in reversed(range(len(widths))):
            width = widths[level]
            shape = width, time_channels, heads if level in attention_levels else 0, groups
            joined = [before + skips.pop() for before in [x, *[width] * blocks]]
            self.up_blocks.append(UpLevel(joined, *shape, enlarges=level != 0))
            x = width
        self.conv_norm_out = nn.GroupNorm(groups, x, eps=1e-5)
        self.conv_out = nn.Conv2d(x, outputs, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Map x (B, inputs, h, w) and timesteps t, (B,) or (1,), to (B, outputs, h, w).

        The timesteps are integers or floating point. x may have any size: halving an odd side
        rounds up, and on the way up the features are enlarged to the size of the skip connection
        they join.
        """
        time = self.time_embedding(t.expand(x.shape[0]))
        skips = [self.conv_in(x)]
        for down in self.down_blocks:
            skips.extend(down(skips[-1], time))
        x = self.mid_block(skips[-1], time)
        for up in self.up_blocks:
            x = up(x, skips, time)
        out: Tensor = self.conv_out(functional.silu(self.conv_norm_out(x)))
        return out
