"""What benchmarks/inference.py compares: a spiking network that fires as a trained one, its ANN, and the ANN in ONNX.

The weights are random; the statistics of the batch norms are those of some noise, so that what neurons get has mean 0
and variance 1, as in training. Threshold 0.5 then gives a firing rate of about 0.6 (2 * (1 - Phi(0.5)) = 0.617).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork

CLASSES = 1000


@torch.no_grad()
def folded_network(backbone: str, timesteps: int, size: int) -> SpikingNetwork:
    """A folded ternary network with batch norms merged, :func:`calibrate`-d before."""
    torch.manual_seed(0)
    network = create_network(NetworkConfig(backbone, num_classes=CLASSES, timesteps=timesteps))
    calibrate(network, size)
    with torch.enable_grad():
        folded, _ = fold(network, torch.randn(1, 3, min(size, 64), min(size, 64)), merge_bn=True)
    return folded


@torch.no_grad()
def calibrate(network: nn.Module, size: int) -> None:
    """Give every batch norm the statistics of what it gets for noise [8, 3, size, size], in place; then eval mode."""
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.reset_running_stats()
            norm.momentum = None  # the mean over all passes, here one
            nn.init.ones_(norm.weight)  # timm's residual blocks start with 0, so that nothing passes but the shortcut
    network.train()(torch.randn(8, 3, size, size))
    network.eval()


def onnx_ann(ann: nn.Module, images: Tensor, folder: Path, threads: int) -> dict[str, Callable[[], Any]]:
    """An ANN in ONNX Runtime, float32 and int8, by name; empty where the extra ``export`` is not installed.

    int8: static quantisation by onnxruntime.quantization (QDQ, uint8 activations, int8 weights by channel), calibrated
    on noise.

    Args:
        ann: In eval mode, on the CPU.
        images: What it is run on, [B, 3, H, W].
        folder: For the models.
        threads: Of a call.
    """
    if any(find_spec(module) is None for module in ("onnx", "onnxscript", "onnxruntime")):
        return {}
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    exported, prepared, int8 = (folder / f"{name}.onnx" for name in ("float32", "prepared", "int8"))
    program = torch.onnx.export(ann, (images,), dynamo=True, input_names=["images"], verbose=False)
    assert program is not None
    program.save(str(exported))
    quant_pre_process(str(exported), str(prepared))

    class Noise(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter([torch.randn(images.shape) for _ in range(2)])

        def get_next(self) -> Any:
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    quantize_static(
        str(prepared), str(int8), Noise(), quant_format=QuantFormat.QDQ, per_channel=True,
        weight_type=QuantType.QInt8, activation_type=QuantType.QUInt8,
    )  # fmt: skip
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    fed = {"images": images.numpy()}

    def run(file: Path) -> Callable[[], Any]:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, fed)

    return {"ONNX Runtime float32": run(exported), "ONNX Runtime int8": run(int8)}
