"""Frames as they arrive: a network that decides after each of them, in the same memory however many there are."""

from __future__ import annotations

import torch
from torch import Tensor

from ..network.spiking_network import SpikingNetwork
from ..network.stepping import State, StepNetwork, check_batch_size, check_eval

__all__ = ["Stream", "step", "stream"]


def stream(network: SpikingNetwork, batch_size: int = 1, *, compile: bool = False) -> Stream:
    """Run a network on frames as they arrive.

    Args:
        network: Folded or not, in eval mode.
        batch_size: Number of streams B that run side by side.
        compile: Compile one time step with torch.compile when the first frame arrives.

    Returns:
        What takes a frame of each stream at a time.

    Raises:
        ValueError: The network is in train mode, or ``batch_size`` is no whole number of at least 1.

    Example:
        >>> import lightning_tspike as lt
        >>> stream = lt.inference.stream(lt.zoo.load("tspike-digits"))
        >>> for frame in torch.rand(3, 1, 1, 8, 8):  # three frames, each [B, C, H, W]
        ...     logits = stream(frame)  # the mean of the logits so far, [B, K]
        >>> stream.steps, logits.shape
        (3, torch.Size([1, 10]))
    """
    return Stream(network, batch_size, compile=compile)


def step(network: SpikingNetwork, example: Tensor | None = None) -> StepNetwork:
    """One time step of a network as a pure function, ``(frame, state) -> (logits, state)``.

    Args:
        network: Folded or not, in eval mode.
        example: Frames or images of the size that it is to run on; by default that of the data that it was trained on,
            where its ``pretrained_cfg`` says so, else its ``input_size``.

    Returns:
        A module without a memory of its own, ready for torch.compile and torch.export; the state to start from is its
        ``initial_state(batch_size)``.

    Raises:
        TraceError: The network cannot be traced, or counts on the number of images in a batch.
        ValueError: The network is in train mode, or the example is not for it.
    """
    if example is None:
        example = torch.zeros(1, *network.pretrained_cfg.get("input_size", network.input_size))
    return StepNetwork(network, example)


class Stream:
    """A network on frames as they arrive; made by :func:`stream`.

    After every frame it gives what the network gives for all frames since the last reset at once. No gradients are
    recorded, and nothing grows with the number of frames. A stream is for one thread at a time; several streams may
    share a network.

    Attributes:
        network: The network, whose layers are shared.
        batch_size: Number of streams B that run side by side.
        steps: How many frames have been seen since the last reset.
        state: The memories of all neurons, as :class:`lightning_tspike.network.stepping.StepNetwork` has them; None
            before the first frame.
    """

    def __init__(self, network: SpikingNetwork, batch_size: int = 1, *, compile: bool = False) -> None:
        check_eval(network)
        check_batch_size(batch_size)
        self.network = network
        self.batch_size = batch_size
        self.steps = 0
        self.state: State | None = None
        self._compile = compile
        self._step: StepNetwork | None = None
        self._mean: Tensor | None = None

    def reset(self) -> None:
        """Forget all frames; the next one may have another size."""
        self.steps, self.state, self._mean = 0, None, None

    @torch.no_grad()
    def __call__(self, frame: Tensor) -> Tensor:
        """Run one time step.

        Args:
            frame: The next frame of each stream, shape [B, C, H, W] (or [B, F]), where the network is and in its dtype.

        Returns:
            The mean of the logits of all frames since the last reset, [B, K].

        Raises:
            TraceError: The network cannot be traced.
            ValueError: There is not one frame for each stream, it is of another size than those before it, or not for
                this network, or the network gives no logits.
        """
        step = self._step_for(frame)
        logits, state = step(frame, step.initial_state(self.batch_size) if self.state is None else self.state)
        if not isinstance(logits, Tensor):
            raise ValueError(f"the network gives a {type(logits).__name__} of feature maps, of which there is no mean")
        self.state = state
        self.steps += 1
        # in single precision at least, and not as a sum, in which the newest of many frames would be rounded away
        now = logits.to(torch.promote_types(logits.dtype, torch.float32))
        self._mean = now if self._mean is None else self._mean + (now - self._mean) / self.steps
        return self._mean.to(logits.dtype, copy=True)

    def _step_for(self, frame: Tensor) -> StepNetwork:
        """The step for frames of this size, made for the first one; raises where the frame does not fit the stream."""
        made = self._step if self.steps else None
        shape = self.network.input_size if made is None else made.frame_shape
        if frame.ndim != len(shape) + 1 or len(frame) != self.batch_size:
            known = shape if made is not None or len(shape) == 1 else (shape[0], "H", "W")
            raise ValueError(
                f"expected one frame for each of {self.batch_size} streams, [{self.batch_size}, "
                f"{', '.join(map(str, known))}], got shape {tuple(frame.shape)}"
            )
        if made is not None and frame.shape[1:] != shape:
            raise ValueError(
                f"after {self.steps} frames of size {tuple(shape)} came one of {tuple(frame.shape[1:])}: call reset() "
                "before frames of another size"
            )
        if self._step is None or frame.shape[1:] != self._step.frame_shape:
            self._step = StepNetwork(self.network, frame)
            if self._compile:
                self._step.compile(fullgraph=True, dynamic=False)
        return self._step
