"""The engine: a camera's frame in, picture and semantics out, on the best backend there is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from magicfuse_ros.messages import one_line
from magicfuse_ros.model.checkpoint import CheckpointError
from magicfuse_ros.model.config_values import ConfigError
from magicfuse_ros.model.labels import LabelSet, LabelSetError
from magicfuse_ros.model.magicfuse import MagicFuse
from magicfuse_ros.model.temporal import Memory
from magicfuse_ros.resources import model_path
from magicfuse_ros.runtime.backends import Backend, Candidate, candidates, missing
from magicfuse_ros.runtime.contract import (
    EXTRAS,
    EngineError,
    EngineSettings,
    FuseResult,
    Progress,
    UInt8,
    check_frame,
)
from magicfuse_ros.runtime.device_frames import DeviceFrames, Way
from magicfuse_ros.runtime.heartbeat import NotesStop, heartbeat
from magicfuse_ros.runtime.letterbox import Letterbox, to_input
from magicfuse_ros.runtime.memory import keep_freed_memory
from magicfuse_ros.runtime.networks import CompiledNetworks
from magicfuse_ros.runtime.networks_by_size import NetworksBySize
from magicfuse_ros.runtime.results import NotFinite, decoded, refined
from magicfuse_ros.runtime.sampling import FewerSteps, LiveSampling, Sampling
from magicfuse_ros.runtime.stopwatch import Stopwatch
from magicfuse_ros.runtime.threads import pytorch_threads

__all__ = [
    "EXTRAS",
    "EngineError",
    "EngineSettings",
    "FuseEngine",
    "FuseResult",
    "Progress",
    "load_engine",
    "load_model",
]


class FuseEngine:
    """A model on a backend. One thread at a time fuses; `update` may come from any thread.

    Parameters
    ----------
    model
        In evaluation mode, on the CPU. It is kept: a camera of another size, or a backend to fall
        back to, needs its networks again.
    settings
        How to run it.
    progress
        Called with a line of text while a frame waits for networks of another size.

    Attributes
    ----------
    settings
        The settings in force.
    labels
        The classes of the mask.
    trained
        False where the weights are random and the pictures mean nothing.
    preparing
        True while a call waits for networks to be made, which takes longer than any frame.
    first_frame_s
        Seconds that the frame at the end of the last warm-up took; 0 before that.

    Raises
    ------
    EngineError
        The settings ask for what the model or the machine does not have.
    """

    def __init__(self, model: MagicFuse, settings: EngineSettings, progress: Progress) -> None:
        self.trained = model.config.trained
        self.preparing, self.first_frame_s = False, 0.0
        model, self.labels = _shown(model, settings)
        # With classes of R's own, S still segments in the model's.
        own = model.config.refiner is None or not model.config.refiner.labels
        thermal = self.labels if own else model.labels
        self._model: MagicFuse | None = model
        self._config = model.config
        self._resolution = settings.resolution or self._config.resolution
        if min(self._resolution) < self._config.multiple_of:
            raise EngineError(
                f"resolution is {self._resolution[0]}x{self._resolution[1]}; accepted: sides of at "
                f"least {self._config.multiple_of} for model {self._config.name!r}"
            )
        self.settings = settings
        self._refined = model.refiner is not None and not settings.paper_fusion
        self._threads, self._progress = settings.threads, progress
        self._sampling, self._warm_up_steps = LiveSampling(self._config, thermal, settings), 1
        self._candidates = candidates(settings.backend, settings.device)
        self._candidate: Candidate = self._candidates.pop(0)
        self._backend: Backend | None = None
        self._networks = NetworksBySize(progress)
        self._memory, self._fresh = Memory(), True
        self._stream_before: tuple[Letterbox, float | None] | None = None

    @property
    def backend_name(self) -> str:
        """The backend and its device in words, such as `eager on cpu`."""
        return str(self._candidate)

    @property
    def steps_warning(self) -> str:
        """A sentence saying that the model was not trained for the steps in force, else empty.

        It changes with `update`. Show it wherever people look: log, diagnostics, command line.
        """
        return self._config.steps_warning(self.settings.steps or self._config.diffusion.steps)

    @property
    def expected_frame_s(self) -> float:
        """Seconds that a frame should take with the steps in force; 0 before the warm-up."""
        return self.first_frame_s * max(1.0, self._sampling.in_force.steps / self._warm_up_steps)

    @property
    def built(self) -> tuple[str, ...]:
        """Names of the parts that the backend in use compiled from scratch, in this order."""
        return () if self._backend is None else tuple(self._backend.built)

    @property
    def parts_warning(self) -> str:
        """A sentence saying which parts the backend leaves to PyTorch, and why, else empty."""
        parts = {} if self._backend is None else dict(self._backend.in_pytorch)
        if not parts:
            return ""
        reasons = "; ".join(f"{name}: {why}" for name, why in parts.items())
        return (
            f"{self.backend_name} runs {', '.join(parts)} in PyTorch, which is slower ({reasons})"
        )

    @property
    def under_way(self) -> str:
        """The input size whose networks are made in the background, as `320x136`, or empty."""
        return self._networks.under_way

    @property
    def side_by_side(self) -> bool:
        """Whether Ψ and Φ run at the same time in the networks that were used last."""
        last = self._networks.last
        return last is not None and last.side_by_side

    def warm_up(self, progress: Progress, camera: tuple[int, int] | None = None) -> None:
        """Make everything ready for a camera, and run one frame through it.

        A backend that fails is replaced by the next one, and `progress` is told. A camera of
        another aspect needs networks of another size, which are made when its first frame comes.

        Parameters
        ----------
        camera
            (width, height) of its frames in pixels; None stands for the model's resolution.

        Raises
        ------
        EngineError
            No backend works, or the weights cannot be used.
        """
        noting = NotesStop(progress)
        while True:
            try:
                self._warm_up(camera or self._resolution, noting)
            except Exception as error:
                if noting.stopped:
                    raise
                failed, reason = self.backend_name, one_line(error)
                if not self._next_candidate():
                    raise EngineError(
                        f"backend {failed} fails and there is no other: {reason}"
                    ) from error
                progress(f"backend {failed} fails ({reason}); trying {self.backend_name}")
            else:
                keep_freed_memory()
                return

    def fuse(
        self, frame: UInt8, extras: frozenset[str] = frozenset(), *, wait: bool = True
    ) -> FuseResult:
        """Fuse one frame; by itself, the same frame and settings give the same result.

        A frame may need networks of a size that is not ready. With `wait`, they are made first.
        Without it, the frame is fused at once in networks that are ready, with more padding and, if
        need be, less detail. Another thread makes the right networks meanwhile, and frames use them
        as soon as they are ready.

        With `temporal`, MagImg and the restored picture also depend on the frames since the last
        `forget`: the same frames give the same results. A frame of another size or of another scene
        begins a new stream.

        Parameters
        ----------
        frame
            (H, W, 3) uint8 RGB of any size from 1 × 1, contiguous or not; it is not changed.
        extras
            Which of `EXTRAS` to make too.
        wait
            See above; False is for live cameras.

        Raises
        ------
        ValueError
            `frame` is not such an array, or `extras` names something else.
        EngineError
            The engine is closed, or the backend gave values that are not finite.

        Examples
        --------
        >>> engine = load_engine(EngineSettings(backend="eager"), lambda text: None)
        >>> result = engine.fuse(np.zeros((48, 64, 3), np.uint8), frozenset({"infrared"}))
        >>> result.infrared.shape, engine.labels.names()[int(result.mask[0, 0])] != ""
        ((48, 64), True)
        >>> engine.close()
        """
        check_frame(frame, extras)
        size = (frame.shape[0], frame.shape[1])
        letterbox = Letterbox.fitting(size, self._resolution, self._config.multiple_of)
        networks, letterbox = self._networks_for(letterbox, self._progress, wait=wait)
        with torch.inference_mode(), pytorch_threads(networks.backend.pytorch_threads):
            while True:
                try:
                    return self._fuse(frame, extras, networks, letterbox, self._sampling.in_force)
                except FewerSteps:
                    continue  # again, with the steps that are in force now

    def _fuse(
        self,
        frame: UInt8,
        extras: frozenset[str],
        networks: CompiledNetworks,
        letterbox: Letterbox,
        sampling: Sampling,
    ) -> FuseResult:
        networks.before_step = self._sampling.guard(sampling)
        stream = letterbox, sampling.temporal
        if stream != self._stream_before:  # another camera, other networks or another weight
            self.forget()
            self._stream_before = stream
        try:
            if networks.frames is not None:
                way = Way(letterbox, extras, sampling.settings, sampling.temporal)
                self.preparing, fresh = not networks.frames.ready(way), self._fresh
                result: FuseResult = networks.frames.fuse(frame, way, sampling.seed, fresh=fresh)
                self._fresh = sampling.temporal is None
                return result
            watch = networks.watch = Stopwatch(self._candidate.device)
            networks.noise(sampling.seed)
            with watch.stage("preprocess"):
                image = torch.from_numpy(to_input(frame, letterbox)).permute(2, 0, 1)[None]
            condition = networks.encode(image)
            with watch.stage("fuse"):
                step = networks.sample(condition, sampling.settings)
            make = refined if networks.refined else decoded
            shown = self._memory, sampling.temporal
            return make(frame, extras, networks, letterbox, step, *shown)
        except NotFinite as error:
            self._fresh = True  # that frame is in the memory of `frames`
            raise EngineError(
                f"{self.backend_name} gave values that are not finite; choose another backend, or "
                "check the model's weights"
            ) from error
        finally:
            self.preparing = False

    def update(
        self, *, steps: int, tau: float | None, seed: int | None, temporal: float | None
    ) -> None:
        """Change how to sample from the next frame on; values as in `EngineSettings`.

        A frame that is being sampled in more steps than are now asked for is started again, because
        a thousand steps take minutes on a CPU.

        Raises
        ------
        EngineError
            A value is out of range; the settings stay as they were.
        """
        settings = replace(self.settings, steps=steps, tau=tau, seed=seed, temporal=temporal)
        self._sampling.update(settings)
        self.settings = settings

    def forget(self) -> None:
        """Begin a new stream, as if the next frame were the first; call it between two frames."""
        self._memory.forget()
        self._fresh = True

    def fall_back(self, progress: Progress) -> str | None:
        """Replace a backend that raises on frames by the next one, and warm that one up.

        Returns
        -------
        str or None
            The new `backend_name`; None if there is no other backend, and then nothing changes.

        Raises
        ------
        EngineError
            The other backends fail too.
        """
        if not self._next_candidate():
            return None
        self.warm_up(progress)
        return self.backend_name

    def successor(self) -> EngineSettings | None:
        """Return settings for an engine without the backend in use; None if there is no other.

        This is for a backend that hangs: this engine can then do nothing more, and another one has
        to take over. Any thread may call it.
        """
        if not self._candidates:
            return None
        following = self._candidates[0]
        return replace(self.settings, backend=following.name, device=str(following.device))

    def close(self) -> None:
        """Release the networks and the backend; the engine cannot be used any more."""
        self._release()
        self._networks.close()
        self._model = None

    def _warm_up(self, camera: tuple[int, int], progress: Progress) -> None:
        width, height = camera
        progress(f"preparing model {self._config.name!r} at {width}x{height}, {self.backend_name}")
        letterbox = Letterbox.fitting((height, width), self._resolution, self._config.multiple_of)
        self._networks_for(letterbox, progress, wait=True)
        with self._sampling.warm_up() as self._warm_up_steps:
            result = self.fuse(np.full((height, width, 3), 127, np.uint8), frozenset(EXTRAS))
        self.forget()  # that frame
        self.first_frame_s = sum(result.stage_ms.values()) / 1e3
        progress(
            f"{self.backend_name} is ready; its first frame took {self.first_frame_s * 1e3:.0f} ms"
        )

    def _networks_for(
        self, letterbox: Letterbox, progress: Progress, *, wait: bool
    ) -> tuple[CompiledNetworks, Letterbox]:
        """Return networks for a frame, and where the frame lies in their input."""
        if self._model is None:
            raise EngineError("the engine is closed; load another one")
        if self._backend is None:
            self._backend = self._candidate.make(self._threads)
        # Networks made in the background keep using these, whatever becomes of the engine.
        model, backend, device = self._model, self._backend, self._candidate.device

        def make(size: tuple[int, int], progress: Progress) -> CompiledNetworks:
            with heartbeat(progress) as tell, pytorch_threads(backend.pytorch_threads):
                parallel, refined = self.settings.parallel, self._refined
                networks = CompiledNetworks(
                    model, backend, device, size, tell, parallel, refined=refined
                )
            if device.type == "cuda":
                networks.frames = DeviceFrames(networks, device, self._progress)
            return networks

        if not wait and backend.compiles and self._networks.last is not None:
            return self._networks.get_meanwhile(letterbox, make)
        self.preparing = True
        try:
            return self._networks.get(letterbox.padded, make, progress), letterbox
        finally:
            self.preparing = False

    def _next_candidate(self) -> bool:
        if not self._candidates:
            return False
        self._release()
        self._candidate = self._candidates.pop(0)
        return True

    def _release(self) -> None:
        self.forget()
        self._networks.clear()
        if self._backend is not None:
            self._backend.close()
            self._backend = None


def load_engine(settings: EngineSettings, progress: Progress) -> FuseEngine:
    """Load a model and choose its backend; call `warm_up` before the first frame that counts.

    Raises
    ------
    EngineError
        The model folder is missing or corrupt, or the settings ask for what the model or the
        machine does not have. The message is one sentence that says what to do.

    Examples
    --------
    >>> import numpy as np
    >>> engine = load_engine(EngineSettings(model="tiny", backend="eager"), lambda text: None)
    >>> result = engine.fuse(np.zeros((48, 64, 3), np.uint8))
    >>> result.magimg.shape, result.mask.shape
    ((48, 64, 3), (48, 64))
    >>> engine.close()
    """
    progress(f"loading model {settings.model!r}")
    for text in missing(settings.backend, settings.device):  # it also refuses a wrong device
        progress(text)
    return FuseEngine(load_model(settings.model), settings, progress)


def load_model(name: str) -> MagicFuse:
    """Open a model; `name` as in `EngineSettings`.

    Raises
    ------
    EngineError
        The folder is missing or corrupt.
    """
    try:
        return MagicFuse.from_pretrained(model_path(name))
    except (CheckpointError, ConfigError, LabelSetError, OSError) as error:
        raise EngineError(f"model {name!r} cannot be loaded: {one_line(error)}") from error


def _shown(model: MagicFuse, settings: EngineSettings) -> tuple[MagicFuse, LabelSet]:
    """Return the model that gives the masks asked for, and what is in them."""
    if settings.labels is None:
        return model, model.labels
    try:
        labels = LabelSet.load(settings.labels)
    except LabelSetError as error:
        raise EngineError(f"labels: {one_line(error)}") from error
    refiner = model.config.refiner
    more = refiner.more_labels if refiner and not settings.paper_fusion else ()
    if settings.labels in more:
        return model.with_classes_of(settings.labels), labels
    if len(labels) != len(model.labels):
        others = f" {', '.join(map(repr, more))}, or" if more else ""
        raise EngineError(
            f"labels: set {labels.name!r} has {len(labels)} classes, but model "
            f"{model.config.name!r} tells {len(model.labels)} apart; give{others} a set with a "
            f"label for each of these, in this order: {', '.join(model.labels.names())}"
        )
    return model, labels
