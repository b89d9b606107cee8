"""Time and peak memory of a `paper`-size forward of every part on the CPU, as a Markdown table.

Run as `python test/measure_paper.py [HEIGHT WIDTH]` (256 320 by default). The weights are random;
each part runs once in a process of its own, so that its peak memory is its own. Φ takes 2 GB.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time

import torch

from magicfuse_ros.model.autoencoder import Decoder, Encoder
from magicfuse_ros.model.checkpoint import PARTS
from magicfuse_ros.model.denoiser import Denoiser
from magicfuse_ros.model.fusion import Fusion
from magicfuse_ros.model.labels import LabelSet
from magicfuse_ros.model.sizes import PAPER

MIB = 1024  # ru_maxrss is in KiB on Linux


def make(part):
    channels = PAPER.autoencoder.latent_channels
    return {
        "encoder": lambda: Encoder(PAPER.autoencoder),
        "decoder": lambda: Decoder(PAPER.autoencoder),
        "psi": lambda: Denoiser(PAPER.psi, channels),
        "phi": lambda: Denoiser(PAPER.phi, channels),
        "fusion": lambda: Fusion(PAPER.fusion, channels, len(LabelSet.load(PAPER.labels))),
    }[part]().eval()


def arguments(part, height, width):
    config = PAPER.autoencoder
    size = (height // config.stride, width // config.stride)

    def latent(channels=config.latent_channels):
        return torch.randn(1, channels, *size)

    step = torch.tensor([960])
    return {
        "encoder": lambda: (torch.rand(1, 3, height, width), latent(config.noise_channels)),
        "decoder": lambda: (latent(),),
        "psi": lambda: (latent(), latent(), step),
        "phi": lambda: (latent(), latent(), step),
        "fusion": lambda: (
            *(latent() for _ in range(5)),
            latent(len(LabelSet.load(PAPER.labels))),
            step,
        ),
    }[part]()


def measure(part, height, width):
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    network, given = make(part), arguments(part, height, width)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    with torch.inference_mode():
        start, cpu_start = time.perf_counter(), time.process_time()
        outcome = network(*given)
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    first = outcome[0] if isinstance(outcome, tuple) else outcome
    if not first.isfinite().all():
        raise SystemExit(f"{part} gave numbers that are not finite")
    print(
        f"| {part} | {parameters:,} | {seconds:.2f} | {cpu_seconds:.2f} | {peak:,.0f} "
        f"| {peak - before:,.0f} |"
    )


def main():
    if len(sys.argv) == 4:
        measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
        return
    height, width = sys.argv[1:3] if len(sys.argv) == 3 else ("256", "320")
    print(f"`paper` size, {height}×{width}, CPU, {torch.get_num_threads()} threads, random weights")
    print()
    print(
        "| part | parameters | first forward, s | of the CPUs, s | peak, MiB | by the part, MiB |"
    )
    print("|---|---|---|---|---|---|", flush=True)
    for part in PARTS:
        subprocess.run([sys.executable, __file__, part, height, width], check=True)


if __name__ == "__main__":
    main()
