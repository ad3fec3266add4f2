"""The table of the zoo: one entry for each set of weights. Pure data: reading it needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["ENTRIES", "ZooEntry"]


@dataclass(frozen=True)
class ZooEntry:
    """One set of weights, trained or planned.

    Attributes:
        name: What ``zoo.load`` is asked for; ``ARCHITECTURE.TAG`` works as well.
        architecture: Backbone, a name in timm's registry.
        tag: What tells it from other weights of the architecture.
        dataset: What it is trained on.
        timesteps: Number of time steps T.
        status: ``"trained"``: weights exist. ``"planned"``: only the recipe does.
        recipe: Name of the recipe that trains it: ``tspike fit --config RECIPE``.
        repo_id: ``ORG/NAME`` on the Hugging Face Hub; None where the weights come with the package, or do not exist.
        revision: 40-hex commit of that repository.
        precision: Which of its weights are read where nothing else is asked for; None for the most precise. Of larger
            entries an installed package has no more precise ones.
        sha256: The ``sha256`` in its ``config.json``, which covers all of its files of weights.
        size: Bytes of the weights that are read by default.
        license: Licence of the weights.
        metrics: Measured figures; accuracies in [0, 1] are those of the folded weights on the test set,
            ``"test/acc1"`` in float32.
        measured_by: The command that gave them.
    """

    name: str
    architecture: str
    tag: str
    dataset: str
    timesteps: int
    status: Literal["trained", "planned"]
    recipe: str
    repo_id: str | None = None
    revision: str | None = None
    precision: Literal["float32", "bfloat16", "int8"] | None = None
    sha256: str | None = None
    size: int | None = None
    license: str = "apache-2.0"
    metrics: dict[str, float] = field(default_factory=dict)
    measured_by: str | None = None


ENTRIES = (
    ZooEntry(
        name="tspike-digits",
        architecture="tspike_resnet_small",
        tag="digits",
        dataset="scikit-learn digits",
        timesteps=4,
        status="trained",
        recipe="digits",
        sha256="1b25500b5c286c1f2b45389be89db7bbac4d333d7c37161be499de956ebe11ac",
        size=319_196,
        metrics={"test/acc1": 356 / 360, "test/acc1/bfloat16": 356 / 360, "test/acc1/int8": 356 / 360},
        measured_by="tspike zoo verify tspike-digits --recipe digits",
    ),
    ZooEntry(
        name="tspike-fashion-mnist",
        architecture="tspike_resnet_small",
        tag="fashion_mnist",
        dataset="Fashion-MNIST",
        timesteps=2,
        status="trained",
        recipe="fashion_mnist",
        sha256="7215451be51912af03d6796b39da53c944206a1e87c8e9d9b41a86f91bb88eb6",
        size=319_196,
        metrics={"test/acc1": 0.9086, "test/acc1/bfloat16": 0.9105, "test/acc1/int8": 0.9099},
        measured_by="tspike zoo verify tspike-fashion-mnist --recipe fashion_mnist --data.root=PATH",
    ),
    ZooEntry(
        name="tspike-fashion-mnist-fast",
        architecture="tspike_fast_resnet",
        tag="fashion_mnist",
        dataset="Fashion-MNIST",
        timesteps=2,
        status="trained",
        recipe="fashion_mnist_fast",
        precision="int8",
        sha256="d45db05f1eeea19683c401928295be7c41ff0c8e957cc02181211b54b39c4470",
        size=507_112,
        metrics={"test/acc1": 0.9411, "test/acc1/int8": 0.9418},
        measured_by="tspike zoo verify tspike-fashion-mnist-fast --recipe fashion_mnist_fast --data.root=PATH "
        "--data.num_workers=0",
    ),
    ZooEntry(
        name="tspike-cifar10",
        architecture="tspike_resnet_small",
        tag="cifar10",
        dataset="CIFAR-10 (93 of its 60,000 images as JPEG)",
        timesteps=2,
        status="trained",
        recipe="cifar10_small",
        sha256="d54305b7d81969f8718fcf5663e5cd2fcb86654edd20ab15b800a64fe3979ba8",
        size=320_348,
        metrics={"test/acc1": 0.7693, "test/acc1/bfloat16": 0.7708, "test/acc1/int8": 0.7761},
        measured_by="tspike zoo verify tspike-cifar10 --recipe cifar10_small --data.dataset=npz --data.root=PATH",
    ),
    ZooEntry(
        name="tspike-cifar10-fast",
        architecture="tspike_fast_resnet",
        tag="cifar10",
        dataset="CIFAR-10 (93 of its 60,000 images as JPEG)",
        timesteps=2,
        status="trained",
        recipe="cifar10_fast",
        precision="int8",
        sha256="6ed1ccd28dc20c6045a4baf7b7b46ab654c7014bff95fb33f7ca088b8305f024",
        size=1_991_208,
        metrics={"test/acc1": 0.9187, "test/acc1/int8": 0.9199},
        measured_by="tspike zoo verify tspike-cifar10-fast --recipe cifar10_fast --data.dataset=npz --data.root=PATH "
        "--data.num_workers=0",
    ),
    ZooEntry(
        name="tspike-cifar10-fast-sparse",
        architecture="tspike_fast_resnet",
        tag="cifar10_sparse",
        dataset="CIFAR-10 (93 of its 60,000 images as JPEG)",
        timesteps=1,
        status="trained",
        recipe="cifar10_fast_sparse",
        precision="int8",
        sha256="0b9adf6165d5ce28a5f10ea49e74aaf93ed4d84ddb6f3b3849edcee9aa993865",
        size=1_991_208,
        metrics={"test/acc1": 0.8797, "test/acc1/int8": 0.879},
        measured_by="tspike zoo verify tspike-cifar10-fast-sparse --recipe cifar10_fast_sparse --data.dataset=npz "
        "--data.root=PATH --data.num_workers=0",
    ),
    ZooEntry(
        name="tspike-nmnist",
        architecture="tspike_resnet_small",
        tag="nmnist",
        dataset="N-MNIST (its first 1,000 training and 100 test recordings)",
        timesteps=4,
        status="trained",
        recipe="nmnist",
        sha256="49048e42a60a635512a25a6ebe6d0caf9fe725187427e7e327c37ad64d9a74e4",
        size=319_772,
        metrics={"test/acc1": 0.97, "test/acc1/bfloat16": 0.97, "test/acc1/int8": 0.97},
        measured_by="tspike zoo verify tspike-nmnist --recipe nmnist --data.root=PATH",
    ),
    ZooEntry(
        name="tspike-resnet34-imagenet",
        architecture="resnet34",
        tag="imagenet",
        dataset="imagenet-1k",
        timesteps=4,
        status="planned",
        recipe="resnet34_imagenet",
    ),
)
