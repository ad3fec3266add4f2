"""A network of spiking neurons: what :func:`lightning_tspike.ternarize` makes of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .._batches import logits_of
from .._calls import Call, running
from .._checks import check_timesteps
from .._observe import is_observed
from ..graph.gauges import GaugeClasses, TrainingScales
from ..graph.operations import ALL_NORMS
from ..graph.tracing import trace
from ..memory import MemoryMode, keeping, set_up
from ..neurons import SpikingNeuron
from .config import NetworkConfig
from .early_exit import Decision, classify
from .features import are_maps, over_time
from .report import NetworkReport
from .rewrites import Rewrites

__all__ = ["SpikingNetwork"]


class SpikingNetwork(nn.Module):
    """A network of spiking neurons over T time steps, made by :func:`lightning_tspike.ternarize`.

    Time is folded into the batch, [T*B, ...] with T outermost, so every stateless layer runs as it is and BatchNorm
    sees T*B samples. Layers before the first neuron see the B images of a still batch only once. Threads may share a
    network: what a call is about is kept with its thread.

    Attributes:
        model: The network, its activations replaced by neurons.
        input_size: (C, H, W) of an image or a frame, where H and W only serve as an example to trace the network on; or
            (F,) of a vector.
        encoders: Names of the neurons that end the static prefix; empty where the input must be repeated T times.
        rewrites: Structural changes by folding since then.
        config: What :func:`lightning_tspike.models.create_network` built this from; None for a network of your own.
        pretrained_cfg: Of trained weights, as timm has it: ``architecture``, ``num_classes``, and where they are known
            ``input_size``, ``mean``, ``std``, ``label_names`` ...; empty otherwise.
    """

    def __init__(
        self, model: nn.Module, timesteps: int, *, input_size: tuple[int, ...], encoders: Sequence[str]
    ) -> None:
        super().__init__()
        self.model = model
        check_timesteps(timesteps)
        self._timesteps = timesteps
        self.input_size = input_size
        self.encoders = tuple(encoders)
        self._memory: MemoryMode = "full"
        self.config: NetworkConfig | None = None
        self.rewrites = Rewrites()
        self.pretrained_cfg: dict[str, Any] = {}

    @property
    def timesteps(self) -> int:
        """Number of time steps T for which images are shown; can be set, as weights fit any number of them.

        Raises:
            ValueError: It is set to something else than a whole number of at least 1.
        """
        return self._timesteps

    @timesteps.setter
    def timesteps(self, timesteps: int) -> None:
        check_timesteps(timesteps)
        self._timesteps = timesteps
        for neuron in self.neurons().values():
            neuron.timesteps = timesteps
        if self.config is not None:
            self.config = replace(self.config, timesteps=timesteps)
        if "frames" in self.pretrained_cfg:  # how events are cut
            self.pretrained_cfg = {
                **self.pretrained_cfg, "frames": {**self.pretrained_cfg["frames"], "timesteps": timesteps}
            }  # fmt: skip

    @property
    def memory(self) -> MemoryMode:
        """What a training step keeps for its backward pass: ``"full"``, ``"packed"`` or ``"lean"``; can be set.

        See :mod:`lightning_tspike.memory`; gradients are the same. Layers that are replaced afterwards are computed
        again in ``"lean"`` once it has been set again.

        Raises:
            ValueError: It is set to something else.
        """
        return self._memory

    @memory.setter
    def memory(self, memory: MemoryMode) -> None:
        set_up(self.model, memory)
        self._memory = memory

    @property
    def name(self) -> str:
        """What to call it: its backbone, or the class of a model without a configuration."""
        return self.config.backbone if self.config is not None else type(self.model).__name__

    @property
    def num_classes(self) -> int:
        """Number of classes K.

        Raises:
            AttributeError: The model does not say.
        """
        model: Any = self.model
        return self.config.num_classes if self.config is not None else model.num_classes

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the classifier by a fresh one, to train on other classes; timm's models know how.

        Args:
            num_classes: Their number.

        Raises:
            ValueError: ``num_classes`` is less than 1, or the model has no ``reset_classifier``.
        """
        if num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes!r}")
        reset: Any = getattr(self.model, "reset_classifier", None)
        if reset is None:
            raise ValueError(
                f"{type(self.model).__name__} has no reset_classifier, as timm's models have: replace its head"
            )
        reset(num_classes)
        weight = next(self.model.parameters())
        self.model.to(device=weight.device, dtype=weight.dtype)  # timm makes the new layer on the CPU, in float32
        if self.config is not None:
            self.config = replace(self.config, num_classes=num_classes)
        self.pretrained_cfg = {k: v for k, v in self.pretrained_cfg.items() if k != "label_names"}
        if self.pretrained_cfg:
            self.pretrained_cfg["num_classes"] = num_classes

    def neurons(self) -> dict[str, SpikingNeuron]:
        """The neurons by their names in ``model``, in the order in which they are registered."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, SpikingNeuron)}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay is to leave alone: timm's optimizers ask a model for them.

        Those of neurons and norms, however many dimensions they have, and what the model itself says of its own.
        """
        spared: set[str] = set()
        for prefix, module in self.named_modules():
            if isinstance(module, (SpikingNeuron, *ALL_NORMS)):
                names: Any = (name for name, _ in module.named_parameters())
            elif module is self:
                continue
            else:
                names = getattr(module, "no_weight_decay", set)()
            spared.update(f"{prefix}.{name}" for name in names)
        return spared

    def report(self) -> NetworkReport:
        """What becomes of each amplitude: learned or not, shared with whom, live or cancelled, folded or kept.

        Raises:
            TraceError: The model could not be traced.
        """
        weight = next(self.parameters(), torch.empty(0))
        graph = self.trace(torch.zeros(1, *self.input_size, device=weight.device, dtype=weight.dtype))
        return NetworkReport.of(GaugeClasses(graph, self.model), TrainingScales(graph, self.model))

    def trace(self, x: Tensor) -> fx.Graph:
        """Trace ``model`` as it runs in ``forward(x)``, see :func:`lightning_tspike.graph.trace`.

        Raises:
            TraceError: It could not be traced.
            ValueError: As ``forward``.
        """
        with running(self.call(x)):
            return trace(self.model, self.fold_time(x))

    def forward(self, x: Tensor, *, per_step: bool = False, timesteps: int | None = None) -> Tensor:
        """Classify still images or sequences of frames; vectors or sequences of them, where ``input_size`` is (F,).

        Args:
            x: Images [B, C, H, W], shown at every time step, or frames [B, T, C, H, W], a time step for each of them;
                likewise vectors [B, F] or [B, T, F].
            per_step: Return the logits of every time step.
            timesteps: T of this call, for images; default is that of the network.

        Returns:
            Logits [B, K], the mean over time, or [T, B, K] with ``per_step``. Where the model gives a list or a dict of
            feature maps, as timm's with ``features_only=True`` do: a list or a dict of such tensors.

        Raises:
            ValueError: ``x`` has another number of dimensions or channels than the network, ``timesteps`` is no whole
                number of at least 1 or not the number of frames, the model gives something in which no logits can be
                told, or a tensor that has not one row for each image and time step.
        """
        call = self.call(x, timesteps)
        with running(call), keeping(self.memory, call):
            # nn.Module.compile() leaves forward as it is: hooks are called there
            run = self.model.forward if is_observed() else self.model
            output = run(self.fold_time(x, timesteps))  # [T*B, K]
        if not are_maps(output):
            output = logits_of(output)
        call.keep_while_differentiable(output)
        return over_time(output, call.timesteps, len(x), per_step=per_step)

    def classify(self, x: Tensor, confidence: float = 0.9, *, timesteps: int | None = None) -> Decision:
        """Classify images or frames, each of them for no more time steps than it takes to be sure.

        After every time step the softmax of the logits' mean so far says how probable the best class is. Images for
        which that reaches ``confidence`` are decided and leave the batch.

        Args:
            x: As for ``forward``.
            confidence: A probability in [0, 1]; 1 runs all time steps for all but the clearest images.
            timesteps: The most time steps, for images; default is T of the network. Frames have one each.

        Returns:
            Class, its probability and the number of time steps, by image. No gradients are recorded.

        Raises:
            TraceError: The network cannot be run a time step at a time.
            ValueError: ``confidence`` is no probability, the network is in train mode or gives no logits of several
                classes, or as for ``forward``.
        """
        return classify(self, x, confidence, timesteps)

    def forward_intermediates(self, x: Tensor, indices: Any = None, *, per_step: bool = False, **options: Any) -> Any:
        """Feature maps of several levels; which there are says ``network.model.feature_info``.

        In a folded network a map is that of the unfolded one divided by amplitudes that the next layers have taken up.

        Args:
            x: As for ``forward``.
            indices: Which levels: their numbers; a number for the last so many; None for all.
            per_step: Keep the time steps apart.
            options: What ``forward_intermediates`` of the model, one of timm's, takes besides, e.g. ``stop_early`` or
                ``intermediates_only``.

        Returns:
            What the model's ``forward_features`` gives, and a list of maps [B, C, H', W'], each the mean over time;
            with ``per_step``, [T, B, C, H', W']. With ``intermediates_only=True``, the list alone.

        Raises:
            ValueError: ``x`` is not for this network, or the model has no ``forward_intermediates``.
        """
        model: Any = self.model
        if not hasattr(model, "forward_intermediates"):
            raise ValueError(
                f"{type(model).__name__} has no forward_intermediates, as most of timm's models have; "
                "ternarize what timm.create_model gives with features_only=True instead"
            )
        call = self.call(x)
        with running(call), keeping(self.memory, call):
            maps = model.forward_intermediates(self.fold_time(x), indices, **options)
        call.keep_while_differentiable(maps)
        return over_time(maps, call.timesteps, len(x), per_step=per_step, has_static=call.is_static)

    def call(self, x: Tensor, timesteps: int | None = None) -> Call:
        """What the neurons must know of ``forward(x, timesteps=timesteps)``; raises what it does.

        Who runs a part of ``model`` by hand says ``with lightning_tspike._calls.running(network.call(x))``.
        """
        dims, channels = len(self.input_size), self.input_size[0]
        is_sequence = self._is_sequence(x)
        if x.ndim not in (dims + 1, dims + 2) or x.shape[-dims] != channels or (is_sequence and x.shape[1] == 0):
            if dims == 1:
                raise ValueError(
                    f"input must be vectors [B, {channels}] or [B, T, {channels}], got shape {tuple(x.shape)}; for "
                    "images, say ternarize(..., input_size=(C, H, W))"
                )
            raise ValueError(
                f"input must be images [B, {channels}, H, W] or frames [B, T, {channels}, H, W], "
                f"got shape {tuple(x.shape)}; a network for another number of channels is built with in_chans="
            )
        if timesteps is not None:
            check_timesteps(timesteps)
        if not is_sequence:
            for name in self.encoders:
                encoder: Any = self.model.get_submodule(name)
                if not encoder.is_encoder:  # said once, and true ever after
                    encoder.is_encoder = True
            return Call(timesteps or self.timesteps, is_static=bool(self.encoders))
        if timesteps not in (None, x.shape[1]):
            raise ValueError(
                f"timesteps={timesteps} was asked for, but there are {x.shape[1]} frames (shape {tuple(x.shape)}): "
                "frames run one time step each, leave timesteps out"
            )
        return Call(x.shape[1], is_static=False)

    def fold_time(self, x: Tensor, timesteps: int | None = None) -> Tensor:
        """What ``model`` is fed for ``x`` (see ``forward``): [T*B, C, H, W], or [B, C, H, W] before a static prefix."""
        if self._is_sequence(x):
            return x.transpose(0, 1).flatten(0, 1)  # [B, T, C, H, W] -> [T*B, C, H, W]
        # [B, C, H, W] -> [T*B, C, H, W]
        return x if self.encoders else x.repeat(timesteps or self.timesteps, *[1] * (x.ndim - 1))

    def _is_sequence(self, x: Tensor) -> bool:
        return x.ndim == len(self.input_size) + 2
