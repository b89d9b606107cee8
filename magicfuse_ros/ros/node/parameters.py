"""Every parameter of `fuse_node`, in one table: the one place where their defaults are written.

`ParameterSpec.descriptor` makes rclpy's descriptor of a row; `Settings` checks the values of all
rows. A test compares the parameter file, the launch file and the table in docs with this table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from magicfuse_ros.ros.node.id_map import IdMap
from magicfuse_ros.ros.parameter_table import AUTOSTART, ParameterError, ParameterSpec
from magicfuse_ros.runtime.contract import (
    MOST_TEMPORAL,
    PARALLEL,
    SAMPLING,
    EngineError,
    EngineSettings,
)

PARAMETERS: tuple[ParameterSpec, ...] = (
    ParameterSpec(
        name="model",
        default="tiny",
        description="Name of a folder in models/, or the path of a weights folder.",
    ),
    ParameterSpec(
        name="device",
        default="auto",
        description="Where the model runs: auto (CUDA where it works), cpu, cuda or cuda:N.",
    ),
    ParameterSpec(
        name="backend",
        default="auto",
        description="What executes the networks; auto takes the fastest that works on the device.",
    ),
    ParameterSpec(
        name="steps",
        default=0,
        low=0,
        high=1000,
        live=True,
        description="DDIM steps a frame; 0 takes the model's own number.",
    ),
    ParameterSpec(
        name="tau",
        default=-1.0,
        low=-1.0,
        high=1.0,
        live=True,
        description="Most that the visible branch may weigh inside thermal classes (tau of "
        "Eq. 11); a negative value takes the model's own.",
    ),
    ParameterSpec(
        name="seed",
        default=-1,
        low=-1,
        high=2**31 - 1,
        live=True,
        description="Seed of the starting noise; -1 takes the model's own.",
    ),
    ParameterSpec(
        name="temporal",
        default=0.0,
        low=0.0,
        high=MOST_TEMPORAL,
        live=True,
        description="Weight of the MagImg before in the new one where nothing moves: less flicker, "
        "some ghosting (docs/video.md). 0 keeps nothing of it but a steady light.",
    ),
    ParameterSpec(
        name="model_width",
        default=0,
        low=0,
        high=4096,
        description="Width in pixels that frames are fitted into; 0 takes the model's own.",
    ),
    ParameterSpec(
        name="model_height",
        default=0,
        low=0,
        high=4096,
        description="Height in pixels that frames are fitted into; 0 takes the model's own.",
    ),
    ParameterSpec(
        name="labels",
        default="",
        description="Label set: a built-in name (`mfnet` with `tiny`) or a YAML file; empty takes "
        "the model's own.",
    ),
    ParameterSpec(
        name="threads",
        default=0,
        low=0,
        high=256,
        description="CPU threads for the networks; 0 takes all cores.",
    ),
    ParameterSpec(
        name="parallel",
        default="auto",
        choices=PARALLEL,
        description="Ψ and Φ side by side, each on half of the cores or a CUDA stream of its own "
        "(on), or in turn (off); auto: side by side where the backend can.",
    ),
    ParameterSpec(
        name="paper_fusion",
        default=False,
        description="Show the paper's MagImg, decoded at the model's resolution, even where the "
        "model refines it to the camera's size.",
    ),
    ParameterSpec(
        name="watchdog_s",
        default=10.0,
        low=0.0,
        high=3600.0,
        live=True,
        description="Seconds after which an engine that does not come back from a frame is given "
        "up for the next backend, and never less than three times what a frame of so many steps "
        "should take; 0 waits for ever.",
    ),
    AUTOSTART,
    ParameterSpec(
        name="input_transport",
        default="raw",
        choices=("raw", "compressed"),
        description="Subscribe to `image` (raw) or to `image/compressed` (JPEG or PNG).",
    ),
    ParameterSpec(
        name="input_reliability",
        default="auto",
        choices=("auto", "reliable", "best_effort"),
        live=True,
        description="Reliability of the image subscription; auto matches the camera's publisher.",
    ),
    ParameterSpec(
        name="input_bits",
        default=0,
        low=0,
        high=16,
        live=True,
        description="Bits that a camera fills of its 16-bit pixels (mono16, 16UC1, bayer 16 bit, "
        "16-bit PNG), 8 to 16; 0 takes all 16, and warns where the upper ones stay empty.",
    ),
    ParameterSpec(
        name="jpeg_quality",
        default=85,
        low=1,
        high=100,
        live=True,
        description="JPEG quality of ~/magimg/compressed.",
    ),
    ParameterSpec(
        name="semantic.id_map",
        default="",
        live=True,
        description="Ids to publish in the mask, such as 'person:6, car:7, *:0': 'unknown' is "
        "pixels without a class, '*' is everything not named; what no entry covers becomes 255. "
        "Empty keeps the label set's ids.",
    ),
    ParameterSpec(
        name="semantic.min_confidence",
        default=0.0,
        low=0.0,
        high=1.0,
        live=True,
        description="Pixels with a confidence below this become unknown in the mask.",
    ),
)

_ENGINE = fields(EngineSettings)

SPECS: Mapping[str, ParameterSpec] = {spec.name: spec for spec in PARAMETERS}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One consistent set of parameter values; the worker takes a snapshot of it for each frame.

    `engine` says how to run the model; the other fields are parameters of the node.
    """

    engine: EngineSettings
    watchdog_s: float
    input_transport: str
    input_reliability: str
    input_bits: int
    jpeg_quality: int
    id_map: IdMap
    min_confidence: float

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Settings:
        """Check every value, and the rules between them.

        It raises a `ParameterError` that names the first value of a wrong type or range, one side
        of the resolution that is given alone, or an id map that cannot be read.
        """
        for spec in PARAMETERS:
            spec.check(values[spec.name])

        checked: dict[str, Any] = dict(values)
        width, height = checked["model_width"], checked["model_height"]
        if (width == 0) != (height == 0):
            raise ParameterError(
                f"model_width is {width} and model_height is {height}; "
                "accepted: both 0 (the model's own), or both set"
            )
        try:
            # The other parameters have the names and meanings of the engine's settings.
            engine = EngineSettings(
                **{each.name: checked[each.name] for each in _ENGINE if each.name in checked}
                | {
                    "tau": None if checked["tau"] < 0.0 else float(checked["tau"]),
                    "seed": None if checked["seed"] < 0 else checked["seed"],
                    "resolution": None if width == 0 else (width, height),
                    "labels": checked["labels"] or None,
                }
            )
        except EngineError as error:
            raise ParameterError(str(error)) from error
        if 0 < checked["input_bits"] < 8:
            raise ParameterError(f"input_bits is {checked['input_bits']}; accepted: 0, or 8 to 16")
        return cls(
            engine=engine,
            watchdog_s=float(checked["watchdog_s"]),
            input_transport=checked["input_transport"],
            input_reliability=checked["input_reliability"],
            input_bits=checked["input_bits"],
            jpeg_quality=checked["jpeg_quality"],
            id_map=IdMap.parse(checked["semantic.id_map"]),
            min_confidence=float(checked["semantic.min_confidence"]),
        )

    @property
    def sampling(self) -> dict[str, Any]:
        """The arguments of `Engine.update`: the engine's settings that may change while it runs."""
        return {name: getattr(self.engine, name) for name in SAMPLING}

    def needing_reconfigure(self, loaded: Settings) -> list[str]:
        """Name the settings that differ from those that an engine was loaded with."""
        return [
            each.name
            for each in _ENGINE
            if each.name not in SAMPLING
            and getattr(self.engine, each.name) != getattr(loaded.engine, each.name)
        ]
