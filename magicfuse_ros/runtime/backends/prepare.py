"""What compiled backends share: find a part in the artifact cache or compile it, and check it."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch

from magicfuse_ros.messages import one_line
from magicfuse_ros.runtime.artifacts import ArtifactCache, Key
from magicfuse_ros.runtime.backends import parity
from magicfuse_ros.runtime.contract import Progress
from magicfuse_ros.runtime.parts import Part

Compiled = TypeVar("Compiled", bound=Callable[..., Any])

Write = Callable[[Path], None]
"""Puts an artifact's files into a folder."""


def prepare(
    part: Part,
    key: Key,
    progress: Progress,
    *,
    load: Callable[[Path], Compiled],
    build: Callable[[], tuple[Compiled, Write]],
    built: list[str],
    doing: str = "compiling",
) -> Compiled:
    """Load a part from the artifact cache, or build it; parity is checked in both cases.

    What the module gave for its inputs is kept with the artifact, so that the module need not be
    run when the network is loaded.

    Parameters
    ----------
    key
        Everything the artifact depends on; see `part_key`.
    load, build
        Make the network from an artifact's folder, or from the part.
    built
        List to which the part's name is added if it was built.
    doing
        The word for building in the progress text.

    Raises
    ------
    EngineError
        What was built does not give what the module gives.
    """
    cache = ArtifactCache.of_user(progress)
    with cache.locked(key):
        folder = cache.load(key)
        if folder is not None:
            try:
                network = load(folder)
                _check(part, key, network, parity.read_example(folder))
            except Exception as error:  # noqa: BLE001 - a library may raise anything on a bad file
                progress(f"artifact {folder.name} is made anew: {one_line(error)}")
            else:
                return network
        progress(f"{doing} {part.name}")
        network, write = build()
        example = parity.Example.of(part)
        _check(part, key, network, example)
        built.append(part.name)

        def write_all(into: Path) -> None:
            write(into)
            parity.write_example(into, example)

        cache.store(key, write_all)
    return network


def part_key(backend: str, part: Part, **more: str) -> Key:
    """Name everything that a compiled part depends on.

    `more` is what matters to this backend: versions of its libraries, the device, its settings.
    """
    return {
        "backend": backend,
        "part": part.name,
        "inputs": ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in part.inputs),
        "weights": part.weights,
        "config": part.config,
        "code": _code_hash(),
        "torch": importlib.metadata.version("torch"),
        **more,
    }


def _check(part: Part, key: Key, network: Callable[..., Any], example: parity.Example) -> None:
    with torch.inference_mode():
        result = network(*(each.to(part.inputs[0].device) for each in example.inputs))
    parity.check(f"{part.name} in {key['backend']}", result, example.reference)


@lru_cache(maxsize=1)
def _code_hash() -> str:
    """Return a hash of the networks' source, since a change of it changes what weights mean."""
    import magicfuse_ros.model

    digest = hashlib.sha256()
    for path in sorted(Path(magicfuse_ros.model.__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
