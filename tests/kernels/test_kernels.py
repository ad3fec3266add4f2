"""The contract of the fused neurons: every implementation gives what the equations give."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from lightning_tspike import kernels
from lightning_tspike.functional import binary_lif, ternary_lif
from lightning_tspike.neurons import TernaryLIF

IMPLEMENTATIONS = ["native", "loops", "triton"]  # triton on a GPU or, where there is none, in its interpreter

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-13, torch.bfloat16: 1e-2, torch.float16: 1e-3}


def _on(name: str) -> torch.device:
    """Where an implementation runs."""
    return torch.device("cuda" if name == "triton" and torch.cuda.is_available() else "cpu")


def _run(
    name: str, x: torch.Tensor, timesteps: int, *, channels: int | None = None, learn: bool = False,
    is_ternary: bool = True, per_channel: str = "amplitude", **options: Any,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Spikes and all gradients, by one implementation."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    generator, device = torch.Generator().manual_seed(7), _on(name)
    values = {}
    for key in ("amplitude", "threshold"):
        shape = (channels,) if channels and per_channel in (key, "both") else ()
        values[key] = (torch.rand(shape, generator=generator) * 0.4 + 0.4).to(device, dtype)
        values[key].requires_grad_(learn or key == "amplitude")
    decay = torch.tensor(0.3, dtype=dtype, device=device, requires_grad=True) if learn else 0.3
    x = x.detach().to(device).requires_grad_()
    neuron = ternary_lif if is_ternary else binary_lif
    with kernels.use(name):
        out = neuron(x, timesteps, values["amplitude"], threshold=values["threshold"], decay=decay, **options)
    grad = torch.randn(out.shape, generator=generator).to(out)
    out.backward(grad)
    results = {"spikes": out.detach(), "x": x.grad, "amplitude": values["amplitude"].grad}
    if learn:
        results |= {"threshold": values["threshold"].grad, "decay": decay.grad}
    return {key: result.cpu() for key, result in results.items()}


def _must_agree(name: str, x: torch.Tensor, timesteps: int, **options: Any) -> None:
    want, got = (_run(way, x, timesteps, **options) for way in ("reference", name))
    assert got["spikes"].dtype == x.dtype
    assert torch.equal(got["spikes"], want["spikes"])
    for key in want:
        # a GPU divides singles to two units in the last place
        tolerance = TOLERANCE[x.dtype] * (4 if _on(name).type == "cuda" and x.dtype == torch.float32 else 1)
        # what is summed over all neurons has their rounding, however small the sum
        scale = max(1.0, want["x"].abs().max().item()) * (1 if key in ("x", "spikes") else x.numel() ** 0.5)
        torch.testing.assert_close(
            got[key], want[key], rtol=tolerance, atol=tolerance * scale, msg=lambda m, key=key: f"{key}: {m}"
        )


OPTIONS = [
    {"reset": reset, "detach_reset": detach, "surrogate": surrogate, "learn": learn}
    for (reset, detach, surrogate), learn in zip(
        itertools.product(("hard", "soft"), (False, True), ("rectangular", "triangular", "arctan")),
        itertools.cycle((True, False, True, True, False)),
        strict=False,
    )
]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("is_ternary", [True, False], ids=["ternary", "binary"])
def test_all_resets_and_surrogates(name: str, options: dict[str, Any], is_ternary: bool) -> None:
    x = torch.randn(4 * 3, 5, 7, 3, generator=torch.Generator().manual_seed(1))
    _must_agree(name, x, 4, is_ternary=is_ternary, **options)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("detach", "surrogate", "options"),
    [
        (False, "rectangular", {"learn": True, "channels": 5, "per_channel": "both"}),
        (False, "rectangular", {"static_input": True}),
        (False, "triangular", {"learn": True, "channels": 5, "per_channel": "threshold"}),
        (True, "arctan", {"learn": True}),
    ],
)
def test_several_levels(name: str, detach: bool, surrogate: str, options: dict[str, Any]) -> None:
    x = 2 * torch.randn(4 * 3, 5, 7, 3, generator=torch.Generator().manual_seed(1))
    options = {"levels": 3, "reset": "soft", "detach_reset": detach, "surrogate": surrogate, **options}
    _must_agree(name, x.to(memory_format=torch.channels_last), 4, **options)
    x[0, 0, 0], x[4, 0, 1], x[5, 1, 2] = float("inf"), float("nan"), -float("inf")
    want, got = (_run(way, x, 4, **options)["spikes"] for way in ("reference", name))
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_level_is_reached_at_equality(name: str) -> None:
    """Where rounding a quotient could fall on the other side: the edges are odd multiples of the threshold."""
    theta = torch.rand(200, generator=torch.Generator().manual_seed(3)) + 0.1
    for level in (1, 2, 3):
        edge = (2 * level - 1) * theta
        x = torch.stack([edge, edge.nextafter(torch.zeros(())), -edge]).to(_on(name))
        with kernels.use(name):
            spikes = ternary_lif(x, 1, threshold=theta.to(x), levels=3, reset="soft").cpu()
        assert torch.equal(spikes, torch.tensor([level, level - 1.0, -level])[:, None].expand(3, 200))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("timesteps", [*range(1, 17), 40])
def test_any_number_of_time_steps(name: str, timesteps: int) -> None:
    _must_agree(name, torch.randn(timesteps * 2, 3, 5, generator=torch.Generator().manual_seed(timesteps)), timesteps)


SHAPES = {
    "one number": (2, 1),
    "vector": (2 * 67,),
    "linear": (2 * 3, 130),
    "tokens": (2 * 2, 5, 9),
    "maps": (2 * 2, 6, 9, 9),
    "odd maps": (2 * 3, 5, 1, 13),
    "more than a block": (2 * 2, 3, 47, 53),
    "volumes": (2 * 2, 3, 4, 5, 3),
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("per_channel", [None, "amplitude", "threshold", "both"])
@pytest.mark.parametrize("memory", ["contiguous", "channels_last", "strided"])
def test_shapes_channels_and_memory(name: str, shape: tuple[int, ...], per_channel: str | None, memory: str) -> None:
    if len(shape) == 1 and (per_channel or memory != "contiguous"):
        pytest.skip("a vector has no channels")
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    if memory == "channels_last":
        if x.ndim not in (4, 5):
            pytest.skip("channels_last is for images and volumes")
        x = x.to(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
    elif memory == "strided":
        x = torch.randn(*reversed(shape), generator=torch.Generator().manual_seed(2)).permute(
            *reversed(range(len(shape)))
        )
    channels = shape[1] if per_channel else None
    _must_agree(name, x, 2, channels=channels, per_channel=per_channel or "", learn=per_channel is not None)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
def test_other_precisions(name: str, dtype: torch.dtype, learn: bool) -> None:
    x = torch.randn(6, 40, generator=torch.Generator().manual_seed(8)).to(dtype)
    amplitudes = torch.linspace(0.1, 3, 40)  # most of them between two numbers that half precision has
    if name == "triton" and dtype == torch.bfloat16 and not torch.cuda.is_available():
        amplitudes = amplitudes.bfloat16().float()  # Triton's interpreter cuts bits off where a GPU rounds
    with kernels.use("reference"):
        want = ternary_lif(x, 3, amplitudes)
    with kernels.use(name):
        assert torch.equal(ternary_lif(x.to(_on(name)), 3, amplitudes).cpu(), want)
    _must_agree(name, torch.randn(4 * 3, 5, 6, generator=torch.Generator().manual_seed(3)).to(dtype), 4, learn=learn)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("channels", [None, 5])
def test_static_input(name: str, learn: bool, channels: int | None) -> None:
    x = torch.randn(3, 5, 6, generator=torch.Generator().manual_seed(4))
    _must_agree(name, x, 4, learn=learn, channels=channels, static_input=True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_one_static_image_with_any_stride(name: str) -> None:
    """Of a dimension of size 1 the stride says nothing."""
    x = torch.randn(1, 5, 4, 3, generator=torch.Generator().manual_seed(4)).as_strided((1, 5, 4, 3), (7, 12, 3, 1))
    _must_agree(name, x, 4, channels=5, static_input=True)
    _must_agree(name, x.contiguous(memory_format=torch.channels_last), 4, channels=5, static_input=True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("reset", ["hard", "soft"])
@pytest.mark.parametrize("surrogate", ["rectangular", "triangular", "arctan"])
def test_nan_and_infinity(name: str, reset: str, surrogate: str) -> None:
    x = torch.randn(4 * 2, 3, 4, generator=torch.Generator().manual_seed(5))
    x[0, 0, 0], x[2, 0, 1], x[3, 1, 2] = float("inf"), float("nan"), -float("inf")
    x[6, 2, 0], x[7, 2, 1] = float("inf"), float("nan")
    want, got = (_run(way, x, 4, reset=reset, surrogate=surrogate) for way in ("reference", name))
    assert torch.equal(got["spikes"], want["spikes"])
    torch.testing.assert_close(got["x"], want["x"], rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_threshold_is_reached_at_equality(name: str) -> None:
    below = float(torch.nextafter(torch.tensor(0.5), torch.tensor(0.0)))
    x = torch.tensor([0.5, -0.5, below, -below], device=_on(name))
    with kernels.use(name):
        assert ternary_lif(x, 1).tolist() == [1, -1, 0, 0]
        assert binary_lif(x, 1).tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4, 4), (4, 0, 2)])
def test_nothing_in_nothing_out(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    out = ternary_lif(x, 2, torch.tensor(1.0, requires_grad=True))
    out.sum().backward()
    assert out.shape == x.grad.shape == shape


def test_threads_do_not_matter() -> None:
    x = torch.randn(4 * 2, 5, 60, 70, generator=torch.Generator().manual_seed(6))
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(_run("native", x, 4, channels=5, learn=True))
    finally:
        torch.set_num_threads(threads)
    for key, one in results[0].items():
        assert torch.equal(one, results[1][key]), key


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("shape", [(4, 3, 0), (4, 0), (0, 3), (0, 3, 4, 4)])
def test_nothing_in_nothing_out_whatever_is_asked_for(name: str, shape: tuple[int, ...]) -> None:
    """The C++ kernel divided by the number of columns and took the process down."""
    x = torch.empty(shape, device=_on(name), requires_grad=True)
    amplitude = torch.ones(shape[1], device=x.device, requires_grad=True)
    with kernels.use(name):
        out = ternary_lif(x, 2, amplitude)
        out.sum().backward()
    assert out.shape == x.grad.shape == shape
    assert torch.equal(amplitude.grad, torch.zeros_like(amplitude))


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_no_kernel_reads_what_has_no_memory(name: str) -> None:
    with kernels.use(name):
        assert ternary_lif(torch.empty(4, 3, device="meta"), 2, torch.ones(3, device="meta")).shape == (4, 3)


@pytest.mark.parametrize("name", [*IMPLEMENTATIONS, None])
@pytest.mark.parametrize("is_ternary", [True, False])
def test_transforms_of_torch_func(name: str | None, is_ternary: bool) -> None:
    """Maps, and gradients backwards and forwards, of a whole batch of inputs, as by a loop over them."""
    x = torch.randn(3, 4, 2, dtype=torch.float64, device=_on(name or "native"))
    neuron = partial(ternary_lif if is_ternary else binary_lif, timesteps=2, surrogate="arctan")

    def energy(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
        return neuron(x, threshold=theta).square().sum()

    def gradients(x: torch.Tensor, theta: torch.Tensor) -> list[torch.Tensor]:
        x, theta = x.clone().requires_grad_(), theta.clone().requires_grad_()
        return list(torch.autograd.grad(energy(x, theta), (x, theta)))

    theta = torch.tensor(0.6, dtype=torch.float64, device=x.device)
    want = [torch.stack(parts) for parts in zip(*(gradients(one, theta) for one in x), strict=True)]
    with kernels.use(name) if name else nullcontext():
        assert torch.equal(torch.func.vmap(neuron)(x), torch.stack([neuron(one) for one in x]))
        for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
            got = torch.func.vmap(transform(energy, (0, 1)), (0, None))(x, theta)
            torch.testing.assert_close(list(got), want)


def test_gradients_forwards() -> None:
    x, tangent = torch.randn(2, 4, 3, dtype=torch.float64)
    own = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(ternary_lif(own, 2).sum(), own)
    with forward_ad.dual_level():
        out = ternary_lif(forward_ad.make_dual(x, tangent), 2)
        torch.testing.assert_close(forward_ad.unpack_dual(out).tangent.sum(), (grad * tangent).sum())


def test_transforms_in_a_compiled_graph() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 3)
    grad = torch.func.grad(lambda x: ternary_lif(x, 2).sum())
    assert torch.equal(torch.compile(grad, backend="aot_eager", fullgraph=True)(x), grad(x))


@pytest.mark.parametrize("per_channel", ["amplitude", "threshold", "both"])
@pytest.mark.parametrize("places", [(), (1, 1), (2, 2), (2, 3), (32,), (33,)], ids=str)
def test_maps_of_few_places(per_channel: str, places: tuple[int, ...]) -> None:
    x = torch.randn(3 * 2, 70, *places, generator=torch.Generator().manual_seed(9))
    _must_agree("native", x, 3, channels=70, per_channel=per_channel, learn=True, reset="soft")
    _must_agree("native", x[:2], 3, channels=70, per_channel=per_channel, static_input=True)


def test_more_channels_than_a_tile_is_wide() -> None:
    _must_agree("native", torch.randn(2 * 3, 1100), 2, channels=1100, per_channel="both", learn=True)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("surrogate", ["rectangular", "triangular", "arctan"])
def test_the_smallest_threshold(name: str, surrogate: str) -> None:
    """Of the smallest normal number the inverse is finite, so all compute the same gradients."""
    theta = torch.finfo(torch.float32).tiny
    x = torch.tensor([[0.0], [theta], [3 * theta], [-theta], [1.0]])
    grads = []
    for way in ("reference", name):
        own = x.to(_on(way), copy=True).requires_grad_()
        with kernels.use(way):
            ternary_lif(own, 1, threshold=theta, surrogate=surrogate).sum().backward()
        grads.append(own.grad.cpu())
    assert grads[0].isfinite().all()
    torch.testing.assert_close(*grads)


def test_unknown_way() -> None:
    with pytest.raises(ValueError, match="'fast'"), kernels.use("fast"):
        pass


def test_gradients_of_gradients_are_refused() -> None:
    x = torch.randn(4, 3, requires_grad=True)
    (grad,) = torch.autograd.grad(ternary_lif(x, 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable|does not require grad"):
        grad.sum().backward()


@pytest.mark.parametrize("levels", ["1", pytest.param("3", marks=pytest.mark.slow)])
@pytest.mark.parametrize("kernel", ["_forward", "_backward"])
def test_kernels_compile_for_gpus(kernel: str, levels: str) -> None:
    """To machine code for compute capability 9.0, which needs no GPU; no two roundings are made one."""
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-c", COMPILE, kernel, levels], capture_output=True, text=True, timeout=300,
        env={**os.environ, "TRITON_INTERPRET": "0"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["bytes", "0", "fused"]


COMPILE = """
import inspect, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from lightning_tspike.kernels import triton_kernels

kernel = getattr(triton_kernels, sys.argv[1])
names = list(inspect.signature(kernel.fn).parameters)
levels = int(sys.argv[2])
known = dict(TIMESTEPS=4, SOFT=levels > 1, TERNARY=True, LEVELS=levels, STATIC=False, AMPLITUDE_BY=0, THRESHOLD_BY=0,
             ROWS=1, COLUMNS=1024, CHANNELS=0, SURROGATE="rectangular", DETACH=False, NEEDS_AMPLITUDE=True,
             NEEDS_THRESHOLD=True, NEEDS_DECAY=True, rows=1,
             channels=1)  # the JIT makes constants of arguments that are 1
known = {name: value for name, value in known.items() if name in names}
kinds = {"x": "*bf16", "out": "*bf16", "grad_out": "*bf16", "grad_x": "*bf16", "columns": "i32"}
signature = {name: "constexpr" if name in known else kinds.get(name, "*fp32") for name in names}
source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in known.items()})
options = {"num_warps": 4, "enable_fp_fusion": False}
compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
assert len(compiled.asm["cubin"]) > 1000
print("bytes", compiled.asm["ptx"].count("fma.rn"), "fused")
"""


@pytest.mark.parametrize("static_input", [False, True])
@pytest.mark.parametrize("channels", [None, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("learn", [False, True])
def test_in_a_compiled_graph(
    static_input: bool, channels: int | None, memory_format: torch.memory_format, learn: bool
) -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 5, 3, 2, dtype=torch.float64).contiguous(memory_format=memory_format)
    shape = () if channels is None else (channels,)
    results = []
    for compiled in (False, True):
        values = [torch.full(shape, v, dtype=x.dtype, requires_grad=learn) for v in (0.7, 0.5)]
        values.append(torch.tensor(0.3, dtype=x.dtype, requires_grad=learn))
        current = x.detach().requires_grad_()

        def run(x: torch.Tensor, a: torch.Tensor, theta: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
            return ternary_lif(2 * x, 2, a, threshold=theta, decay=tau, static_input=static_input).sin()

        out = (torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run)(current, *values)
        out.square().sum().backward()
        results.append([out, current.grad, *(v.grad for v in values)])
    for got, want in zip(*results, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want)


def test_several_levels_in_a_compiled_graph() -> None:
    x = 2 * torch.randn(4, 5, 3)
    theta = torch.full((5,), 0.3, requires_grad=True)
    results = []
    for compiled in (False, True):
        theta.grad, current = None, x.detach().requires_grad_()

        def run(x: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
            return ternary_lif(2 * x, 2, threshold=theta, levels=3, reset="soft").sin()

        out = (torch.compile(run, backend="aot_eager", fullgraph=True) if compiled else run)(current, theta)
        out.square().sum().backward()
        results.append([out, current.grad, theta.grad])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("levels", [1, 3])
def test_operator_is_what_torch_asks_of_one(levels: int) -> None:
    neuron = kernels.Neuron(2, "soft", False, "rectangular" if levels > 1 else "arctan", True, False, levels)
    assert kernels.Neuron.of_kind(2, neuron.kind) == neuron
    x = torch.randn(4, 5, 3, requires_grad=True)
    values = (torch.rand(5) + 0.1, torch.rand(5) + 0.1, torch.tensor(0.3))
    arguments = (x, *(v.requires_grad_() for v in values), 2, neuron.kind)
    torch.library.opcheck(kernels.operator.neuron, arguments)


def test_export_has_no_operator_of_this_package() -> None:
    for options in ({}, {"levels": 3, "reset": "soft"}):
        program = torch.export.export(TernaryLIF(2, **options), (torch.randn(4, 3),))
        assert "lightning_tspike" not in str(program.graph)
        x = 2 * torch.randn(4, 3)
        assert torch.equal(program.module()(x), ternary_lif(x, 2, **options))
