"""Our tensors under the names of the authors' four files, from which tests make checkpoints.

The U-Nets have the published key layout of latent-diffusion models. No network of the authors is
written here: whether the numbers come out right with their code is not what these tests can say.
The names are counted up from a configuration, where the importer derives them from ours.
"""

from __future__ import annotations

_RESIDUAL_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_TRANSFORMER_BLOCK = (
    *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in _ATTENTION),
)
_SPATIAL_TRANSFORMER = {name: name for name in ("norm", "proj_in", "proj_out")} | {
    f"transformer_blocks.0.{name}": f"transformer_blocks.0.{name}" for name in _TRANSFORMER_BLOCK
}


def release_states(config, model):
    """Return each part's tensors under the release's names, in another order than ours."""
    names = {
        "encoder": _encoder_names(config.autoencoder),
        "decoder": _decoder_names(config.autoencoder),
        "fusion": _fusion_names(config.fusion),
        "psi": _denoiser_names(config.psi),
        "phi": _denoiser_names(config.phi),
    }
    states = {}
    for part, theirs in names.items():
        ours = getattr(model, part).state_dict()
        # What the published sizes do not have keeps its own name, such as a linear path.
        theirs |= {own: own for own in ours if own not in theirs.values()}
        # The names cover more than there is: where a block keeps its channels it has no shortcut.
        states[part] = {name: ours[own] for name, own in sorted(theirs.items()) if own in ours}
    return states


def _tensors(layers):
    """Names of the weights and biases of `layers` (layer in the release → our layer)."""
    return {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in layers.items()
        for kind in ("weight", "bias")
    }


def _residual_blocks(levels, blocks):
    return {
        f"resnet{level + 1}.{block}.blocks.{index}.0": f"levels.{level}.{block}.{name}.0"
        for level in range(levels)
        for block in range(blocks)
        for index, name in enumerate(("first", "second"))
    }


def _encoder_names(config):
    """Names in `ae.pth`'s `encoder` → names in `Encoder`."""
    layers = {"imgconv.0": "inputs.0", "noiseconv.0": "merge_noise.0", "out.0": "outputs"}
    layers |= _residual_blocks(config.downsamples + 1, config.encoder_blocks)
    layers |= {f"downsample{n + 1}.0": f"downs.{n}.0" for n in range(config.downsamples)}
    return _tensors(layers)


def _decoder_names(config):
    """Names in `ae.pth`'s `decoder` → names in `Decoder`."""
    layers = {"input.0": "inputs.0", "deconv.0": "outputs"}
    layers |= _residual_blocks(config.downsamples + 1, config.decoder_blocks)
    layers |= {f"upsample{n + 1}.1": f"ups.{n}.0" for n in range(config.downsamples)}
    return _tensors(layers)


def _fusion_names(config):
    """Names in MKF's `model.pth` → names in `Fusion`."""
    layers = {
        "time_embed.0": "time_embed.0",
        "time_embed.2": "time_embed.2",
        "inconv.0": "inconv",
        "normout": "normout",
        "estimate.0": "estimate.0",
        "estimate.1": "estimate.2",
    }
    residual = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"temb_proj": "time"}
    attention = {name: name for name in ("norm", "q", "k", "v")} | {"proj_out": "out"}
    for block in range(len(config.widths)):
        inner = {f"res{n}.{a}": f"res{n}.{b}" for n in (1, 2) for a, b in residual.items()}
        inner |= {"mlp.0": "mlp.0", "mlp.2": "mlp.2"}
        inner |= {f"att.{a}": f"att.{b}" for a, b in attention.items()}
        layers |= {f"blocks.{block}.{a}": f"blocks.{block}.{b}" for a, b in inner.items()}
    layers |= {f"segproj.{n}": f"segproj.{n}" for n in range(config.taps * len(config.widths))}
    return _tensors(layers)


def _denoiser_names(config):
    """Names in `ikr.pth` or `ckg.pth`, which are latent diffusion's → names in `Denoiser`.

    They cover every tensor that such a U-Net may have: a `skip_connection` exists only where a
    residual block changes the number of channels, and some layers have no bias.
    """
    blocks, levels, attention_levels = (
        config.blocks,
        len(config.multipliers),
        config.attention_levels,
    )
    layers = {
        "time_embed.0": "time_embedding.linear_1",
        "time_embed.2": "time_embedding.linear_2",
        "input_blocks.0.0": "conv_in",
        "out.0": "conv_norm_out",
        "out.2": "conv_out",
    }

    def add(theirs, ours, parts):
        layers.update({f"{theirs}.{a}": f"{ours}.{b}" for a, b in parts.items()})

    add("middle_block.0", "mid_block.resnets.0", _RESIDUAL_BLOCK)
    add("middle_block.1", "mid_block.attentions.0", _SPATIAL_TRANSFORMER)
    add("middle_block.2", "mid_block.resnets.1", _RESIDUAL_BLOCK)
    each = blocks + 1  # entries of a level in their flat lists, on either side
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{levels - 1 - level}"
        for index in range(blocks):
            theirs = f"input_blocks.{1 + level * each + index}"
            add(f"{theirs}.0", f"{down}.resnets.{index}", _RESIDUAL_BLOCK)
            if level in attention_levels:
                add(f"{theirs}.1", f"{down}.attentions.{index}", _SPATIAL_TRANSFORMER)
        if level != levels - 1:
            layers[f"input_blocks.{(level + 1) * each}.0.op"] = f"{down}.downsamplers.0.conv"
        first = (levels - 1 - level) * each
        for index in range(each):
            theirs = f"output_blocks.{first + index}"
            add(f"{theirs}.0", f"{up}.resnets.{index}", _RESIDUAL_BLOCK)
            if level in attention_levels:
                add(f"{theirs}.1", f"{up}.attentions.{index}", _SPATIAL_TRANSFORMER)
        if level != 0:
            position = 2 if level in attention_levels else 1
            layers[f"output_blocks.{first + blocks}.{position}.conv"] = f"{up}.upsamplers.0.conv"
    return _tensors({theirs: f"unet.{ours}" for theirs, ours in layers.items()})
