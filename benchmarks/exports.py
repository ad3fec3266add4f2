"""Exported files of every entry of the zoo on its test images, and ways to write int8 weights as ONNX side by side.

    python -m benchmarks.exports [--fashion-mnist PATH] [--cifar10 PATH] [--nmnist PATH] [--rounds 9] [--output FOLDER]

PATH is what ``tspike zoo verify ENTRY --recipe RECIPE --data.root=PATH`` takes; entries without one are left out but
``tspike-digits``, whose images come with scikit-learn. For each entry and kind of file: its size, the greatest
deviation of the logits in export's own check, how many test images it decides as PyTorch does with the same (rounded)
weights, how many as with the float32 weights, and its accuracy. Then ResNet-18 at 224x224, T = 4, in ONNX Runtime:
float32, int8 as it is written here, as QDQ, and with signed weights. exports.json and .md.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper, numpy_helper
from rich.progress import track
from torch import Tensor

from lightning_tspike import fold, inference, zoo
from lightning_tspike.cli.data import recipe_data
from lightning_tspike.files.weights import decode, encode
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork

from .measuring import RESULTS, in_turn, machine, ratio, table, write

KINDS = [(form, int8, step) for form in ("onnx", "pt2") for int8 in (False, True) for step in (False, True)]
PT2_IMAGES = 1000  # that pt2 files, which run the same operations as PyTorch, are shown at most
SIGNED_ZERO = 128  # what stands for 0 among weights that are written as uint8


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Measure all and write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exports")
    for data in ("fashion-mnist", "cifar10", "nmnist"):
        parser.add_argument(f"--{data}", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=224, help="side of ResNet-18's images")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    changes = {"tspike-digits": []}
    if options.fashion_mnist:
        changes["tspike-fashion-mnist"] = [f"--data.root={options.fashion_mnist}"]
    if options.cifar10:
        changes["tspike-cifar10"] = ["--data.dataset=npz", f"--data.root={options.cifar10}"]
    if options.nmnist:
        changes["tspike-nmnist"] = [f"--data.root={options.nmnist}"]
    files = [row for name, words in changes.items() for row in _entry(name, words)]
    ways = _ways(options.rounds, options.size)
    command = "python -m benchmarks.exports --fashion-mnist PATH --cifar10 PATH --nmnist PATH"
    results = {"command": command, "machine": machine("cpu"), "files": files, "int8 as ONNX": ways}
    results["machine"] |= {package.__name__: package.__version__ for package in (onnx, onnxruntime)}
    text = (
        f"# Exported files\n\n`{command}`\n\n{table(files)}\n\n"
        f"## ResNet-18, {options.size}x{options.size}, T = 4, batch 1, in ONNX Runtime\n\n{table(ways)}"
    )
    print(text)
    write(options.output, "exports", results, text)
    return results


def _entry(name: str, words: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each kind of file of an entry."""
    data = recipe_data(zoo.info(name).recipe, words)
    data.prepare_data()
    data.setup("test")
    batches = [(x, y) for x, y in track(data.test_dataloader(), f"reading {name}", transient=True)]
    labels = torch.cat([y for _, y in batches])
    network = zoo.load(name)
    exact = _decisions(network, batches, name)
    coarse: Tensor | None = None
    with tempfile.TemporaryDirectory() as folder:
        for form, int8, step in KINDS:
            path = Path(folder) / f"net.{form}"
            written = inference.export(network, path, form, int8=int8, step=step, name=name, overwrite=True)
            if int8 and coarse is None:
                coarse = _decisions(_rounded(network, written.rounded), batches, f"{name}, rounded")
            same = coarse if int8 and coarse is not None else exact
            some = batches if form == "onnx" else batches[: max(1, PT2_IMAGES // len(batches[0][1]))]
            got = _decisions(_runner(path, network, step), some, f"{name}, {form}")
            count = len(got)
            yield {
                "entry": name,
                "file": form + (", one step" if step else ""),
                "weights": "int8" if int8 else "float32",
                "bytes": written.size,
                "deviation": written.agreement.deviation,
                "images": count,
                "decides as PyTorch, same weights": _share(got, same[:count]),
                "as PyTorch, float32": _share(got, exact[:count]),
                "accuracy": _share(got, labels[:count]),
            }


def _decisions(run: Callable[[Tensor], Tensor], batches: Sequence[tuple[Tensor, Tensor]], name: str) -> Tensor:
    with torch.no_grad():
        return torch.cat([run(x).argmax(-1) for x, _ in track(batches, name, transient=True)])


def _share(a: Tensor, b: Tensor) -> float:
    return (a == b).double().mean().item()


def _rounded(network: SpikingNetwork, layers: Sequence[str]) -> SpikingNetwork:
    """In PyTorch, with the weights of these layers rounded as in a file of int8 weights."""
    folded, _ = fold(network, merge_bn=True, integer_pools=True)
    state = folded.model.state_dict()
    names = [f"{layer}.weight" for layer in layers]
    folded.model.load_state_dict({**state, **decode(encode({key: state[key] for key in names}, "int8"), Path("file"))})
    return folded


def _runner(path: Path, network: SpikingNetwork, step: bool) -> Callable[[Tensor], Tensor]:
    """The file as a function from images or frames to logits, the mean over time."""
    if path.suffix == ".pt2":
        facts = {"facts.json": ""}
        module = torch.export.load(path, extra_files=facts).module()
        memories = json.loads(facts["facts.json"]).get("memories", {})
        run: Any = module
    else:
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        first, *rest = [x.name for x in session.get_inputs()]
        memories = {x.name: [1, *x.shape[1:]] for x in session.get_inputs()[1:]}

        def run(x: Tensor, state: dict[str, Tensor] | None = None) -> Any:
            inputs = {first: x.numpy(), **{key: value.numpy() for key, value in (state or {}).items()}}
            logits, *after = map(torch.from_numpy, session.run(None, inputs))
            return (logits, dict(zip(rest, after, strict=True))) if rest else logits

    if not step:
        return run

    def all_steps(x: Tensor) -> Tensor:
        frames = x.unbind(1) if x.ndim == 5 else [x] * network.timesteps
        state = {key: torch.zeros(rows * len(x), *shape) for key, (rows, *shape) in memories.items()}
        logits = []
        for frame in frames:
            now, state = run(frame, state)
            logits.append(now)
        return torch.stack(logits).mean(0)

    return all_steps


def _ways(rounds: int, size: int) -> list[dict[str, Any]]:
    """ResNet-18 in ONNX Runtime, its int8 weights written in several ways; times relative to the float32 file."""
    network = create_network(NetworkConfig("resnet18", num_classes=1000, timesteps=4)).eval()
    x = np.random.default_rng(0).standard_normal((1, 3, size, size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        models = {}
        for name, int8 in (("float32", False), ("int8: ConvInteger (as written here)", True)):
            inference.export(network, Path(folder) / "net.onnx", int8=int8, example=torch.from_numpy(x), overwrite=True)
            models[name] = onnx.load(Path(folder) / "net.onnx")
    integer = models["int8: ConvInteger (as written here)"]
    models["int8: QDQ around Conv"] = _as_qdq(integer)
    models["int8: ConvInteger, signed weights"] = _with_signed_weights(integer)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    runs = {}
    for name, model in models.items():
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        runs[name] = lambda s=session: s.run(None, {"images": x})
    times = in_turn(runs, "cpu", rounds=rounds)
    return [
        {
            "file": name,
            "bytes": models[name].ByteSize(),
            "fastest, ms": 1000 * min(own),
            "relative to float32": ratio(own, times["float32"]),
        }
        for name, own in times.items()
    ]


def _as_qdq(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with QuantizeLinear and DequantizeLinear around float32 convolutions."""
    model = copy.deepcopy(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    scales = {node.input[0]: node for node in model.graph.node if node.op_type == "DequantizeLinear"}
    one = next(node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear")
    for node in model.graph.node:
        if node.op_type != "ConvInteger":
            if node not in scales.values():
                nodes.append(node)
            continue
        spikes, weight, zero, _ = node.input
        result = scales[node.output[0]]
        zeros = numpy_helper.from_array(np.full(tensors[weight].dims[0], SIGNED_ZERO, np.uint8), f"{weight}_zeros")
        model.graph.initializer.append(zeros)
        x, w = f"{node.output[0]}_x", f"{node.output[0]}_w"
        nodes.append(helper.make_node("DequantizeLinear", [spikes, one, zero], [x]))
        nodes.append(helper.make_node("DequantizeLinear", [weight, result.input[1], zeros.name], [w], axis=0))
        nodes.append(helper.make_node("Conv", [x, w], list(result.output)))
        nodes[-1].attribute.extend(node.attribute)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return model


def _with_signed_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with weights around 0 instead of around 128."""
    model = copy.deepcopy(model)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "ConvInteger":
            weight = numpy_helper.to_array(tensors[node.input[1]])
            if weight.dtype == np.uint8:
                signed = (weight.astype(np.int16) - SIGNED_ZERO).astype(np.int8)
                tensors[node.input[1]].CopyFrom(numpy_helper.from_array(signed, node.input[1]))
            node.input.pop()  # no zero point is 0
    return model


if __name__ == "__main__":
    main()
