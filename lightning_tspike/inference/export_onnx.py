"""ONNX files: written by torch.onnx's exporter for torch.export's programs, read by ONNX Runtime to check them.

That exporter and not the older one by TorchScript, which torch no longer develops: it keeps weights and inputs under
their own names and can take a batch of any size. It writes opset 18 and later.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ..graph.operations import window_size
from .agreement import ExportError, first_line

__all__ = ["LEAST_OPSET", "check_opset", "load_onnx", "replace_pools", "to_onnx"]

LEAST_OPSET = 18
"""Of the exporter; also the default, as most programs can read it (ONNX Runtime since 1.14)."""

_LARGEST = 2_000_000_000  # bytes; a file of protocol buffers holds 2 GiB


def check_opset(opset: int) -> None:
    """Check a version of ONNX's operators.

    Raises:
        ExportError: The exporter writes none so old, or the installed onnx knows none so new.
    """
    import onnx

    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not LEAST_OPSET <= opset <= newest:
        raise ExportError(
            f"opset must be a whole number from {LEAST_OPSET}, the oldest that torch.onnx writes, to {newest}, the "
            f"newest that the installed onnx {onnx.__version__} knows; got {opset!r}"
        )


def replace_pools(model: nn.Module) -> None:
    """Put pools that ONNX has in the place of average pools with a divisor of their own, in place.

    The exporter forgets the divisor, and the fold makes pools sum by it.
    """
    pools = [name for name, m in model.named_modules() if getattr(m, "divisor_override", None) is not None]
    for name in pools:
        model.set_submodule(name, _Pool(model.get_submodule(name)))


class _Pool(nn.Module):
    def __init__(self, pool: Any) -> None:
        super().__init__()
        self.factor = window_size(pool) / pool.divisor_override
        self.pool = copy.copy(pool)
        self.pool.divisor_override = None
        self.pool.count_include_pad = True

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) * self.factor


def to_onnx(
    program: ExportedProgram,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    opset: int,
    facts: Mapping[str, Any],
) -> bytes:
    """The contents of an ONNX file.

    Args:
        program: Its first dimension of every input and output is the batch.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        opset: Version of the operators.
        facts: Metadata, each value is written as JSON.

    Raises:
        ExportError: An operation has no ONNX form, or the weights are too large for one file; the message says which.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    if size > _LARGEST:
        raise ExportError(f"an ONNX file holds at most {_LARGEST:,} bytes, the weights have {size:,}: use format pt2")
    try:
        written: Any = torch.onnx.export(
            program,
            program.example_inputs[0],
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            opset_version=opset,
            verbose=False,
        )
    except torch.onnx.OnnxExporterError as error:
        raise ExportError(f"cannot be written as ONNX of opset {opset}: {first_line(error)}") from error
    model = written.model_proto
    for part in (model, model.graph, *model.graph.node, *model.graph.input, *model.graph.output):
        part.doc_string = ""
        del part.metadata_props[:]  # of the exporter: among others paths and lines of our source
    del model.graph.value_info[:]
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*model.graph.input, *model.graph.output):
        batch = value.type.tensor_type.shape.dim[0]
        batch.dim_param = batch.dim_param.replace(symbol, "batch")
    for key, fact in facts.items():
        model.metadata_props.add(key=key, value=json.dumps(fact))
    return model.SerializeToString()


def load_onnx(contents: bytes) -> Callable[[Mapping[str, Tensor]], list[Tensor]]:
    """The network in a file, run by ONNX Runtime: its inputs by their names to its outputs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(contents, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of types of its own
        version = onnxruntime.__version__
        raise ExportError(
            f"ONNX Runtime {version} cannot run the file: {first_line(error)}; it was not kept"
        ) from error

    def run(inputs: Mapping[str, Tensor]) -> list[Tensor]:
        return [torch.from_numpy(y) for y in session.run(None, {name: x.numpy() for name, x in inputs.items()})]

    return run
