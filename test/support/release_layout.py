"""Our tensors under the names of the authors' four files, from which tests make checkpoints.

The U-Nets have the published key layout of latent-diffusion models. No network of the authors is
written here: whether the numbers come out right with their code is not what these tests can say.
"""

from __future__ import annotations

import re

_AUTOENCODER = (
    (r"^merge_noise\.0\.", "noiseconv.0."),
    (r"^downs\.(\d)\.0\.", lambda m: f"downsample{int(m[1]) + 1}.0."),
    (r"^ups\.(\d)\.0\.", lambda m: f"upsample{int(m[1]) + 1}.1."),
    (r"^levels\.(\d)\.(\d)\.first\.0\.", lambda m: f"resnet{int(m[1]) + 1}.{m[2]}.blocks.0.0."),
    (r"^levels\.(\d)\.(\d)\.second\.0\.", lambda m: f"resnet{int(m[1]) + 1}.{m[2]}.blocks.1.0."),
)
_FUSION = (
    (r"^inconv\.", "inconv.0."),
    (r"^estimate\.2\.", "estimate.1."),
    (r"\.time\.", ".temb_proj."),
    (r"\.att\.out\.", ".att.proj_out."),
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
}


def release_states(config, model):
    """Return each part's tensors under the release's names, in another order than ours."""
    states = {
        "encoder": _renamed(
            model.encoder,
            ((r"^inputs\.0\.", "imgconv.0."), (r"^outputs\.", "out.0."), *_AUTOENCODER),
        ),
        "decoder": _renamed(
            model.decoder,
            ((r"^inputs\.0\.", "input.0."), (r"^outputs\.", "deconv.0."), *_AUTOENCODER),
        ),
        "fusion": _renamed(model.fusion, _FUSION),
    }
    for part in ("psi", "phi"):
        settings = getattr(config, part)
        states[part] = {
            _latent_diffusion(name.removeprefix("unet."), settings): tensor
            for name, tensor in getattr(model, part).state_dict().items()
        }
    return {part: dict(sorted(state.items())) for part, state in states.items()}


def _renamed(module, rules):
    result = {}
    for name, tensor in module.state_dict().items():
        new = name
        for pattern, replacement in rules:
            new = re.sub(pattern, replacement, new)
        result[new] = tensor
    return result


def _latent_diffusion(name, settings):
    """Give the latent-diffusion name of a tensor of a diffusers U-Net with `settings`."""
    module, kind = name.rsplit(".", 1)
    if module in _ENDS:
        return f"{_ENDS[module]}.{kind}"
    side, *words = module.split(".")
    if side == "mid_block":
        place = {"resnets.0": 0, "attentions.0": 1, "resnets.1": 2}[".".join(words[:2])]
        return f"middle_block.{place}.{_inside(words[0], words[2:])}.{kind}"
    level, what, index, *rest = words
    level, index, attends = int(level), int(index), what == "attentions"
    each = settings.blocks + 1
    if side == "down_blocks":
        if what == "downsamplers":
            return f"input_blocks.{(level + 1) * each}.0.op.{kind}"
        place = f"input_blocks.{1 + level * each + index}"
    else:
        if what == "upsamplers":
            mirrored = len(settings.multipliers) - 1 - level
            after = 2 if mirrored in settings.attention_levels else 1
            return f"output_blocks.{level * each + settings.blocks}.{after}.conv.{kind}"
        place = f"output_blocks.{level * each + index}"
    return f"{place}.{int(attends)}.{_inside(what, rest)}.{kind}"


def _inside(what, words):
    return _RESNET[words[0]] if what == "resnets" else ".".join(words)
