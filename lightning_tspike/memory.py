"""What a training step keeps in memory for its backward pass.

A ternary spike says one of three things, so two bits hold it exactly, where a float takes 32. ``memory`` on the module
and on :class:`lightning_tspike.ternarize.SpikingNetwork` says what becomes of that:

============ ==========================================================================================================
``"full"``   Every layer keeps its input as it is.
``"packed"`` Whatever keeps spikes for its backward pass (a convolution or linear layer for its weights' gradient, a
             pool for its own) keeps them at 2 bits each, unpacked when they are needed: the same numbers.
``"lean"``   In addition a block of layers keeps its input alone, packed where that is spikes, and is computed again in
             the backward pass. Batch norms move their running statistics once, random numbers are drawn again as they
             were.
============ ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import get_device_states, set_device_states

from .hooks import unwatched, watching
from .kernels import is_dense, per_channel
from .neurons import SpikingNeuron

if TYPE_CHECKING:
    from .ternarize import SpikingNetwork

__all__ = ["MEMORY", "Memory", "PackedSpikes", "keeping"]

Memory: TypeAlias = Literal["full", "packed", "lean"]
MEMORY = ("full", "packed", "lean")

_MAX_POOLS = {F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d}


class PackedSpikes:
    """Ternary spikes a * s at 2 bits each: 0, 1 and 2 for s = 0, +1 and -1, four to a byte, in the order of memory.

    Args:
        spikes: a * s, its elements filling memory without gaps.
        amplitude: a > 0, shape [] or [C].
    """

    def __init__(self, spikes: Tensor, amplitude: Tensor) -> None:
        self.amplitude = amplitude
        self.dtype, self.shape, self.strides = spikes.dtype, spikes.shape, spikes.stride()
        flat = spikes.as_strided((spikes.numel(),), (1,))
        codes = (flat > 0).to(torch.uint8).add_(flat < 0, alpha=2)
        codes = F.pad(codes, (0, -len(codes) % 4)).view(-1, 4)
        self.codes = codes[:, 0] | codes[:, 1] << 2 | codes[:, 2] << 4 | codes[:, 3] << 6

    def unpack(self) -> Tensor:
        """The spikes, bit for bit, in their dtype and memory format."""
        table = _table(self.codes.device, self.dtype)  # [256, 4]
        flat = table.index_select(0, self.codes.int()).view(-1)
        spikes = flat[: self.shape.numel()].as_strided(self.shape, self.strides)
        return spikes.mul_(per_channel(self.amplitude.to(self.dtype), spikes))


@contextmanager
def keeping(network: SpikingNetwork) -> Iterator[None]:
    """Run ``network`` within, keeping for its backward pass what ``network.memory`` says."""
    if network.memory == "full" or not torch.is_grad_enabled():
        yield
        return
    with ExitStack() as stack:
        stack.enter_context(watching(network.neurons(), _mark))
        if network.memory == "lean":
            stack.enter_context(_recomputing(network.model))
        stack.enter_context(_KeepPacked())
        yield


class _Mark:
    """Says of a tensor that it holds ternary spikes, as long as nothing has written to it."""

    def __init__(self, spikes: Tensor, amplitude: Tensor) -> None:
        self.amplitude = amplitude
        self.version = spikes._version
        self.packed: PackedSpikes | None = None  # made once, however many layers keep it


def _mark(_name: str, neuron: Any, _x: Any, spikes: Tensor) -> None:
    """Mark what a neuron sends: the numbers of ``amplitude`` are those of now, whatever the optimizer does later."""
    amplitude = neuron.amplitude
    amplitude = amplitude.detach().clone() if isinstance(amplitude, Tensor) else spikes.new_full((), amplitude)
    if is_dense(spikes):
        spikes._spikes = _Mark(spikes, amplitude)  # type: ignore[attr-defined]


def _mark_of(x: Any) -> _Mark | None:
    mark: _Mark | None = getattr(x, "_spikes", None) if isinstance(x, Tensor) else None
    return mark if mark is not None and mark.version == x._version else None


def _packed(x: Tensor, mark: _Mark) -> PackedSpikes:
    mark.packed = mark.packed or PackedSpikes(x.detach(), mark.amplitude)
    return mark.packed


class _KeepPacked(TorchFunctionMode):
    """Whatever a torch function saves of its marked argument, it saves packed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("input")
        mark = _mark_of(x)
        if mark is None or not torch.is_grad_enabled():
            return func(*args, **kwargs)

        spikes = [x]

        def pack(saved: Tensor) -> Tensor | PackedSpikes:
            # what is saved is another Tensor object, but the same memory in the same order
            same = spikes[0]
            is_same = (saved.data_ptr(), saved.shape, saved.stride()) == (same.data_ptr(), same.shape, same.stride())
            # and nothing has been written to it, as a function that works in place does
            return _packed(same, mark) if is_same and same._version == mark.version else saved

        with saved_tensors_hooks(pack, lambda kept: kept.unpack() if isinstance(kept, PackedSpikes) else kept):
            out = func(*args, **kwargs)
        spikes.clear()  # autograd keeps the hook, which must not keep the spikes
        if func in _MAX_POOLS and isinstance(out, Tensor) and is_dense(out):
            out._spikes = _Mark(out, mark.amplitude)  # type: ignore[attr-defined]
        return out


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Let the blocks of ``model`` keep their inputs alone while the block lasts."""
    with ExitStack() as stack:
        for module, parts in list(_blocks(model)):
            stack.callback(_restore_forward, module, vars(module).get("forward"))
            module.forward = _one_by_one([_recomputed(part, part.forward) for part in parts], module.forward)
        yield


def _restore_forward(module: nn.Module, own: Callable[..., Any] | None) -> None:
    del module.forward
    if own is not None:
        module.forward = own


def _one_by_one(parts: list[Callable[[Tensor], Tensor]], forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` by its parts, where it is called with one tensor alone."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor) or not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        x = args[0]
        for part in parts:
            x = part(x)
        return x

    return run


def _blocks(module: nn.Module) -> Iterator[tuple[nn.Module, list[nn.Module]]]:
    """The blocks inside a module, each with the parts that follow one another in it.

    A block is the largest module whose neurons are in no list of layers; a list of layers with neurons among them (as
    VGG is) has a part for each of its neurons.
    """
    for child in module.children():
        if isinstance(child, SpikingNeuron) or not _has_neurons(child):
            continue
        is_plain = isinstance(child, nn.Sequential) and type(child).forward is nn.Sequential.forward
        if is_plain and any(isinstance(m, SpikingNeuron) for m in child.children()):
            yield child, list(_runs(child))
        elif any(_is_chain(m) for m in child.modules()):
            yield from _blocks(child)
        else:
            yield child, [child]


def _runs(layers: nn.Module) -> Iterator[nn.Module]:
    run: list[nn.Module] = []
    for layer in layers.children():
        run.append(layer)
        if _has_neurons(layer):
            yield nn.Sequential(*run)
            run = []
    if run:
        yield nn.Sequential(*run)


def _is_chain(module: nn.Module) -> bool:
    is_list = isinstance(module, (nn.Sequential, nn.ModuleList))
    return is_list and sum(_has_neurons(child) for child in module.children()) > 1


def _has_neurons(module: nn.Module) -> bool:
    return any(isinstance(m, SpikingNeuron) for m in module.modules())


def _recomputed(block: nn.Module, forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    parameters = [p for p in block.parameters() if p.requires_grad]
    return lambda x: _Recomputed.apply(x, _mark_of(x), block, forward, *parameters)


class _Recomputed(torch.autograd.Function):
    """x, its mark, a block, its forward and its parameters -> what the block gives."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mark: _Mark | None, block: nn.Module, forward: Callable[[Tensor], Tensor], *params: Tensor
    ) -> Tensor:
        kind = x.device.type
        ctx.block, ctx.run, ctx.params = block, forward, params
        ctx.autocast = {
            "device_type": kind, "enabled": torch.is_autocast_enabled(kind), "dtype": torch.get_autocast_dtype(kind)
        }  # fmt: skip
        ctx.random = torch.get_rng_state(), *get_device_states(x)
        ctx.packed = None if mark is None else _packed(x, mark)
        # parameters, too, so that autograd refuses to go on where they have been changed in between
        ctx.save_for_backward(*params, *([] if ctx.packed else [x]))
        return forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        x = ctx.packed.unpack() if ctx.packed else saved[-1].detach()
        x.requires_grad_(ctx.needs_input_grad[0])
        cpu_state, devices, states = ctx.random
        buffers = [(buffer, buffer.clone()) for buffer in ctx.block.buffers()]
        with torch.random.fork_rng(devices), torch.autocast(**ctx.autocast), torch.enable_grad(), unwatched():
            torch.set_rng_state(cpu_state)
            set_device_states(devices, states)
            out = ctx.run(x)
        wanted = [t for t in (x, *ctx.params) if t.requires_grad]
        grads = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
        for buffer, before in buffers:  # running statistics have moved in the forward pass
            buffer.copy_(before)
        first = next(grads) if x.requires_grad else None
        return first, None, None, None, *grads


def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a byte of four codes stands for, [256, 4]."""
    byte = torch.arange(256, device=device)
    codes = torch.stack([byte >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    return torch.where(codes == 2, -1, codes).to(dtype)
