"""What a training step keeps in memory for its backward pass.

A ternary spike says one of three things, so two bits hold it exactly, where a float takes 32. ``memory`` on the module
and on :class:`lightning_tspike.SpikingNetwork` says what becomes of that:

============ ==========================================================================================================
``"full"``   Every layer keeps its input as it is.
``"packed"`` Whatever keeps spikes for its backward pass (a convolution or linear layer for its weights' gradient, a
             pool for its own) keeps them at 2 bits each, unpacked when they are needed: the same numbers.
``"lean"``   In addition a block of layers keeps its input alone, packed where that is spikes, and is computed again in
             the backward pass. Batch norms move their running statistics once, random numbers are drawn again as they
             were. What would make that another computation is refused: weights that were changed in between, layers
             that were switched between training and evaluation, ``torch.func.functional_call``.
============ ==========================================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from threading import RLock
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from .._calls import Call, current, running
from ..kernels import is_dense, per_channel
from ..neurons import SpikingNeuron

__all__ = ["MEMORY_MODES", "MemoryMode", "PackedSpikes", "keeping"]

MemoryMode: TypeAlias = Literal["full", "packed", "lean"]
MEMORY_MODES = ("full", "packed", "lean")

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
def keeping(model: nn.Module, memory: MemoryMode, call: Call) -> Iterator[None]:
    """Run ``model`` within, as ``call``, keeping for its backward pass what ``memory`` says."""
    if memory == "full" or not torch.is_grad_enabled() or torch.compiler.is_compiling():
        yield
        return
    call.on_spikes = _mark
    with ExitStack() as stack:
        if memory == "lean":
            stack.enter_context(_recomputing(model))
        stack.enter_context(_KeepPacked())
        yield


class _Mark:
    """Says of a tensor that it holds ternary spikes, as long as nothing has written to it."""

    def __init__(self, spikes: Tensor, amplitude: Tensor) -> None:
        self.amplitude = amplitude
        self.version = spikes._version
        self.packed: PackedSpikes | None = None  # made once, however many layers keep it


def _mark(neuron: SpikingNeuron, spikes: Tensor) -> None:
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
        with _packing(x, mark):
            out = func(*args, **kwargs)
        if func in _MAX_POOLS and isinstance(out, Tensor) and is_dense(out):
            out._spikes = _Mark(out, mark.amplitude)  # type: ignore[attr-defined]
        return out


@contextmanager
def _packing(spikes: Tensor, mark: _Mark) -> Iterator[None]:
    """Whatever is saved of marked ``spikes`` within is saved packed; but activation checkpointing saves as it likes."""
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        yield
        return
    looked_at = [spikes]

    def pack(saved: Tensor) -> PackedSpikes | tuple[Tensor, int]:
        # what is saved is another Tensor object, but the same memory in the same order
        same = looked_at[0]
        is_same = (saved.data_ptr(), saved.shape, saved.stride()) == (same.data_ptr(), same.shape, same.stride())
        # and nothing has been written to it, as a function that works in place does
        return _packed(same, mark) if is_same and same._version == mark.version else (saved, saved._version)

    with saved_tensors_hooks(pack, _unpack):
        yield
    looked_at.clear()  # autograd keeps the hook, which must not keep the spikes


def _unpack(kept: PackedSpikes | tuple[Tensor, int]) -> Tensor:
    if isinstance(kept, PackedSpikes):
        return kept.unpack()
    saved, version = kept
    if saved._version != version:  # autograd looks at that itself only where there are no hooks
        raise RuntimeError(_CHANGED)
    return saved


_CHANGED = (
    "one of the variables needed for gradient computation has been modified by an inplace operation: weights or inputs "
    "were changed between the forward pass and backward()"
)

_replacing = RLock()  # of the whole process


@contextmanager
def _recomputing(model: nn.Module) -> Iterator[None]:
    """Let the blocks of ``model`` keep their inputs alone while the block lasts.

    Their ``forward`` is replaced meanwhile, so such calls take turns. Threads that run without gradients, or run layers
    again in a backward pass, need not wait: what stands there calls the blocks' own ``forward`` for them.
    """
    with _replacing, ExitStack() as stack:
        for module, parts in dict(_blocks(model)).items():
            stack.callback(_restore_forward, module, vars(module).get("forward"))
            module.forward = _one_by_one([_recomputed(part, part.forward) for part in parts], module.forward)
        yield


def _restore_forward(module: nn.Module, own: Callable[..., Any] | None) -> None:
    if own is None:
        del module.forward
    else:
        module.forward = own


def _one_by_one(parts: list[Callable[..., Any]], forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` by its parts, where gradients are recorded, and not within another block or checkpoint."""

    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled() or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
            return forward(*args, **kwargs)
        first, *others = parts
        x = first(*args, **kwargs)
        for part in others:
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


def _recomputed(block: nn.Module, forward: Callable[..., Any]) -> Callable[..., Any]:
    writes = any(getattr(module, "inplace", False) for module in block.modules())

    def on_copies(*args: Any, **kwargs: Any) -> Any:
        return forward(*(arg.clone() if isinstance(arg, Tensor) else arg for arg in args), **kwargs)

    def run(*args: Any, **kwargs: Any) -> Any:
        now, call = _State(block), current()

        def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
            return nullcontext(), _again(block, now, call)

        mark = _mark_of(args[0]) if args else None
        with nullcontext() if mark is None else _packing(args[0], mark):
            return checkpoint(
                on_copies if writes else forward, *args, use_reentrant=False, context_fn=contexts, **kwargs
            )

    return run


class _State:
    """What a block must still have when it runs again: the same weights and the same modes."""

    def __init__(self, block: nn.Module) -> None:
        self.weights = [(p, p._version) for p in block.parameters()]
        self.modes = [module.training for module in block.modules()]

    def check(self, block: nn.Module) -> None:
        weights = list(block.parameters())
        if [id(p) for p in weights] != [id(p) for p, _ in self.weights]:
            raise RuntimeError(
                "memory='lean' runs blocks again in the backward pass, but their parameters are other ones now "
                "(torch.func.functional_call?): set network.memory to 'packed'"
            )
        if [p._version for p in weights] != [version for _, version in self.weights]:
            raise RuntimeError(_CHANGED)
        if [module.training for module in block.modules()] != self.modes:
            raise RuntimeError(
                "memory='lean' runs blocks again in the backward pass, but train() or eval() was called in between: "
                "call backward() first, or set network.memory to 'packed'"
            )


@contextmanager
def _again(block: nn.Module, before: _State, call: Call | None) -> Iterator[None]:
    """Run a block again within, as part of ``call``; its buffers stay as they are."""
    before.check(block)
    with running(call), _CopiesOf(block):
        yield


class _CopiesOf(TorchFunctionMode):
    """Torch functions get copies of a block's buffers: running statistics have moved in the forward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.copies = {id(buffer): buffer.clone() for module in block.modules() if module.training
                       for buffer in module.buffers(recurse=False)}  # fmt: skip

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        copies = self.copies
        args = tuple(copies.get(id(arg), arg) for arg in args)
        return func(*args, **{name: copies.get(id(value), value) for name, value in (kwargs or {}).items()})


def _table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """What a byte of four codes stands for, [256, 4]."""
    byte = torch.arange(256, device=device)
    codes = torch.stack([byte >> shift & 3 for shift in (0, 2, 4, 6)], dim=1)
    return torch.where(codes == 2, -1, codes).to(dtype)
