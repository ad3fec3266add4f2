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
        sha256="9984b5fb86f26d8368fa5e4eed45ee879a410499ac631f4df0a2664bd29ed2e0",
        size=319_196,
        metrics={"test/acc1": 356 / 360, "test/acc1/bfloat16": 359 / 360, "test/acc1/int8": 359 / 360},
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
        sha256="1e2679fd6f93239cf07406c9d577b6ff0b0ebefb5092d6ceb994c1f70486dcd0",
        size=319_196,
        metrics={"test/acc1": 0.9087, "test/acc1/bfloat16": 0.9105, "test/acc1/int8": 0.9099},
        measured_by="tspike zoo verify tspike-fashion-mnist --recipe fashion_mnist --data.root=PATH "
        "--data.num_workers=0",
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
        sha256="bcd844359749bc84ddbc7d3ce9dd5d95104f38b7ffdd22fb9fb685abb015eb43",
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
        sha256="0ad8a25a1f38e41dbe1976afd2d1eedeb00883c4fe3d181d949fb68bb64fcaee",
        size=320_348,
        metrics={"test/acc1": 0.7693, "test/acc1/bfloat16": 0.7708, "test/acc1/int8": 0.7761},
        measured_by="tspike zoo verify tspike-cifar10 --recipe cifar10_small --data.dataset=npz --data.root=PATH "
        "--data.num_workers=0",
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
        sha256="95ed1637aa31133af79001fb16796397c45748660905cec72af2068dbfde8616",
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
        sha256="34e4f5fb93e11d414b7ecc3859d8fec94f11f8cff456267ba7011061bc7e9d3e",
        size=1_991_208,
        metrics={"test/acc1": 0.8797, "test/acc1/int8": 0.879},
        measured_by="tspike zoo verify tspike-cifar10-fast-sparse --recipe cifar10_fast_sparse --data.dataset=npz "
        "--data.root=PATH --data.num_workers=0",
    ),
    ZooEntry(
        name="tspike-nmnist",
        architecture="tspike_fast_resnet_small",
        tag="nmnist",
        dataset="N-MNIST (its first 1,000 training and 100 test recordings)",
        timesteps=4,
        status="trained",
        recipe="nmnist",
        sha256="b577b1e62c90b4adc8f8d3df564d078849d7633c91f3b05db8aad6843ec1b8cc",
        size=504_520,
        metrics={"test/acc1": 0.98, "test/acc1/bfloat16": 0.98, "test/acc1/int8": 0.98},
        measured_by="tspike zoo verify tspike-nmnist --recipe nmnist --data.root=PATH --data.num_workers=0",
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
