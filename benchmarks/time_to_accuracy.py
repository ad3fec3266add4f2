"""Minutes to a test accuracy: CIFAR-10 with the paper's ResNet-20 at T = 2, on one GPU, from nothing to int8 weights.

    python -m benchmarks.time_to_accuracy --data FOLDER [--epochs 120] [--minutes 10] [--output PREFIX] ...

Other networks and neurons are for comparisons: ``--backbone tspike_resnet19 --neuron binary_lif``.

FOLDER holds ``train.npz`` and ``test.npz``, arrays ``x`` uint8 [N, H, W, C] and ``y`` [N]. All images are kept on the
device, where they are cropped (moved by up to 4 pixels, the border mirrored), mirrored in every other epoch (Jordan,
arXiv 2404.00498), given a hole (cutout, DeVries and Taylor, arXiv 1708.04552) and normalised, a batch at a time. The
network is compiled and runs in bfloat16 with channels last; SGD with Nesterov momentum, label smoothing, a learning
rate that rises linearly for a fifth of all steps and falls linearly to 0 (after Smith and Topin, arXiv 1708.07120).
``--t1-share`` trains so many of the epochs, the first, at T = 1, as the callback ``TimestepSchedule`` does.

The clock starts when the images are on the device: building the network, compiling, training and the test after each
epoch count. An epoch that would end after ``--minutes`` is not begun; ``--epochs auto`` measures one first, and makes
the schedule as long as the minutes allow. What is left is folded, its weights are rounded to int8 and read back from
disk, and all of them are measured in float32, without any choice between epochs:

* PREFIX.json: machine, command, times, accuracies; first when training ends, again when all is measured;
* PREFIX.jsonl: a line per epoch, written while training goes on;
* PREFIX.folded: the folded network at int8, for ``zoo.load``.

On a CPU everything can be tried with small limits:

    python -m benchmarks.time_to_accuracy --data FOLDER --device cpu --limit-train 512 --limit-test 200 \
        --batch-size 64 --epochs 1 --no-compile --output /tmp/trial
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.optim import create_optimizer_v2
from torch import Tensor
from torch.nn import functional as F

from lightning_tspike import zoo
from lightning_tspike.data.batch_transforms import in_hole, mirrored_inside
from lightning_tspike.data.image_files import NpzImages
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig, SpikingNetwork
from lightning_tspike.store.folder import write_folder

RESULTS = Path(__file__).parent / "results" / "time_to_accuracy"
TARGETS = (0.90, 0.93, 0.94)
TIMESTEPS = 2
PADDING = 4
EVALUATION_BATCH = 2000
SPARE = 1.03  # epochs that take so many times as long as the one that was measured still end in time


@dataclass(frozen=True)
class Images:
    """Labelled images on a device.

    Attributes:
        x: Pixels, uint8 [N, H, W, C], as the file has them.
        y: Classes, int64 [N].
        mean, std: Of each channel in [0, 1], [C].
    """

    x: Tensor
    y: Tensor
    mean: Tensor
    std: Tensor

    def normalized(self, pixels: Tensor) -> Tensor:
        """Pixels [B, H, W, C] to the network's input [B, C, H, W], which has channels last without a copy."""
        return ((pixels / 255 - self.mean) / self.std).permute(0, 3, 1, 2)

    def augmented(self, index: Tensor, mirror: Tensor, generator: torch.Generator, cutout: int) -> Tensor:
        """Images as training sees them: the network's input [B, C, H, W].

        Args:
            index: Which ones, [B].
            mirror: Which of these are mirrored left and right, bool [B].
            generator: Of all random numbers, on the images' device.
            cutout: Side of the hole, in pixels; 0 for none.
        """
        draw = partial(torch.randint, size=(len(index), 1), device=index.device, generator=generator)

        def source(size: int) -> Tensor:
            """Where each row or column comes from, [B, size]; the border is mirrored by its index."""
            moved = torch.arange(size, device=index.device) + draw(-PADDING, PADDING + 1)
            return mirrored_inside(moved, size)

        height, width = self.x.shape[1:3]
        rows, columns = source(height), source(width)
        columns = torch.where(mirror[:, None], columns.flip(1), columns)
        pixels = self.x[index[:, None, None], rows[:, :, None], columns[:, None, :]]  # [B, H, W, C], one gather for all
        tall, wide = (in_hole(draw(0, size), size, cutout) for size in (height, width))  # the centre is anywhere
        hole = tall[:, None, :, None] & wide[:, None, None, :]  # [B, 1, H, W]
        return self.normalized(pixels) * ~hole  # masked_fill would not keep channels last


class Training:
    """A network in training.

    Args:
        network: On the images' device.
        train: Training images.
        args: The command's options.
    """

    def __init__(self, network: SpikingNetwork, train: Images, args: argparse.Namespace) -> None:
        self.network, self.train, self.args = network, train, args
        device = train.x.device
        self.autocast = partial(torch.autocast, device.type, torch.bfloat16, enabled=args.precision == "bfloat16")
        self.generator = torch.Generator(device).manual_seed(args.seed)
        self.mirrored_first = torch.randint(2, (len(train.y),), device=device, generator=self.generator)
        self.steps = len(train.y) // args.batch_size  # of an epoch; images that fill no batch wait for another one
        peak = args.lr * args.batch_size / 128
        # timm's "sgd" has Nesterov momentum; it spares norms, biases, amplitudes and thresholds the weight decay
        self.optimizer = create_optimizer_v2(network, "sgd", lr=peak, weight_decay=args.weight_decay, momentum=0.9)
        corners = [0, 0.2 * self.steps * args.epochs, self.steps * args.epochs]
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: float(np.interp(step + 0.5, corners, [0, 1, 0]))
        )

    def seconds_of_an_epoch(self, test: Images, timesteps: int) -> float:
        """How long an epoch takes, from one that leaves no trace but in optimizer, schedule and random numbers."""
        before = self._state()
        begin = time.perf_counter()
        self.epoch(0, timesteps)  # waits for the device
        self.classify(test)
        self.network.load_state_dict(before)
        return time.perf_counter() - begin

    def compile(self, test: Images) -> None:
        """Compile the network for all that is to come, and leave its weights and statistics as they were."""
        before = self._state()
        pixels, labels = (tensor[: self.args.batch_size] for tensor in (self.train.x, self.train.y))
        # two batch sizes, of training and of testing, are no reason for any size
        self.network.model.compile(dynamic=False)
        for timesteps in {TIMESTEPS, 1 if self.args.t1_share else TIMESTEPS}:
            self.network.timesteps = timesteps
            self._loss(self.train.normalized(pixels), labels)[0].backward()
            self.classify(test)
        self.network.load_state_dict(before)
        self.optimizer.zero_grad()

    def epoch(self, number: int, timesteps: int) -> tuple[float, float]:
        """Train for an epoch, counted from 0; gives mean loss and accuracy on the augmented images."""
        device = self.train.x.device
        order = torch.randperm(len(self.train.y), device=device, generator=self.generator)
        total, hits = torch.zeros((), device=device), torch.zeros((), device=device)  # read once: the GPU never waits
        self.network.train()
        self.network.timesteps = timesteps
        for index in order[: self.steps * self.args.batch_size].split(self.args.batch_size):
            mirror = (self.mirrored_first[index] + number) % 2 == 1
            x = self.train.augmented(index, mirror, self.generator, self.args.cutout)
            y = self.train.y[index]
            loss, logits = self._loss(x, y)
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.step()
            total += loss.detach()
            hits += (logits.argmax(1) == y).sum()
        return total.item() / self.steps, hits.item() / (self.steps * self.args.batch_size)

    def classify(self, images: Images) -> Tensor:
        """As :func:`classify`, in the precision of training."""
        with self.autocast():
            return classify(self.network, images)

    def _state(self) -> dict[str, Tensor]:
        """A copy of the network's weights and statistics."""
        return {name: tensor.clone() for name, tensor in self.network.state_dict().items()}

    def _loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with self.autocast():
            logits = self.network(x)
            return F.cross_entropy(logits, y, label_smoothing=self.args.label_smoothing), logits


@torch.no_grad()
def classify(network: SpikingNetwork, images: Images, *, mirrored_too: bool = False) -> Tensor:
    """Decide the class of every image, [N] on the CPU; ``mirrored_too`` adds the logits of the mirrored images."""
    network.eval()
    decided = []
    for pixels in images.x.split(EVALUATION_BATCH):
        logits = network(images.normalized(pixels))
        if mirrored_too:
            logits = logits + network(images.normalized(pixels.flip(2)))
        decided.append(logits.argmax(1))
    return torch.cat(decided).cpu()


def accuracy(decided: Tensor, images: Images) -> float:
    """Share of the images that were decided rightly."""
    return (decided == images.y.cpu()).sum().item() / len(decided)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, fold, round, measure, and write the results."""
    parser = _parser()
    arguments = sys.argv[1:] if arguments is None else arguments
    args = parser.parse_args(arguments)
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no CUDA device; --device cpu runs the same with small limits")
    args.precision = args.precision or ("bfloat16" if device.type == "cuda" else "float32")
    torch.manual_seed(args.seed)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False  # what is measured at the end is float32; training has bfloat16
    begin = time.perf_counter()
    try:
        train, test, facts = _read(args, device)
        start = time.perf_counter()
        options = {"widths": args.widths} if args.widths else {}
        classes, channels = len(facts["label_names"]), train.x.shape[3]
        config = NetworkConfig(
            args.backbone,
            classes,
            channels,
            TIMESTEPS,
            neuron=args.neuron,
            amplitude=args.amplitude,
            backbone_kwargs=options,
        )
        network = create_network(config).to(device, memory_format=torch.channels_last)
    except (FileNotFoundError, ValueError) as error:
        parser.error(str(error))
    wanted, args.epochs = args.epochs, args.epochs or 1
    training = Training(network, train, args)
    if args.compile:
        training.compile(test)
    if wanted is None:
        duration = (1 - args.t1_share) * training.seconds_of_an_epoch(test, TIMESTEPS)
        if args.t1_share:
            duration += args.t1_share * training.seconds_of_an_epoch(test, 1)
        left = 60 * args.minutes - (time.perf_counter() - start)
        args.epochs = max(1, int(left / (SPARE * duration)))
        training = Training(network, train, args)
    compiled = time.perf_counter()
    log = _train(training, test, args, start)
    trained = time.perf_counter()
    results: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "command": f"python -m benchmarks.time_to_accuracy {shlex.join(arguments)}",
        "settings": vars(args),
        "parameters": sum(p.numel() for p in network.parameters()),
        "training_images": len(train.y),
        "test_images": len(test.y),
        "epochs": len(log),
        "ended_by": "schedule" if len(log) == args.epochs else "time limit",
        "load_seconds": start - begin,
        "compile_seconds": compiled - start,
        "training_seconds": sum(row["training_seconds"] for row in log),
        "evaluation_seconds": sum(row["evaluation_seconds"] for row in log),
        "seconds_per_epoch": (trained - compiled) / len(log) if log else None,
        "total_seconds": trained - start,
        "seconds_to_accuracy": {
            f"{target:.0%}": next((row["seconds"] for row in log if row["test_accuracy"] >= target), None)
            for target in TARGETS
        },
        "peak_memory_mib": torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else None,
        "accuracy": {"last_epoch": log[-1]["test_accuracy"] if log else None},
    }
    _write(Path(f"{args.output}.json"), results, indent=2)  # whatever happens to the fold
    with torch.compiler.set_stance("force_eager"):  # a single pass in float32 is not worth compiling for
        _fold_and_measure(network, test, facts, Path(f"{args.output}.folded"), results)
    results["fold_seconds"] = time.perf_counter() - trained
    _write(Path(f"{args.output}.json"), results, indent=2)
    print(json.dumps({name: results[name] for name in ("accuracy", "seconds_to_accuracy", "total_seconds")}, indent=2))


def _train(training: Training, test: Images, args: argparse.Namespace, start: float) -> list[dict[str, Any]]:
    """Train to the end of the schedule or of the time; gives what the log has."""
    log: list[dict[str, Any]] = []
    longest = 0.0  # how long the first epoch takes nobody knows
    t1_epochs = min(round(args.t1_share * args.epochs), args.epochs - 1)  # the last one has all time steps
    for number in range(args.epochs):
        begin = time.perf_counter()
        if begin - start + longest > 60 * args.minutes:
            break
        timesteps = 1 if number < t1_epochs else TIMESTEPS
        loss, train_accuracy = training.epoch(number, timesteps)
        if not math.isfinite(loss):
            raise FloatingPointError(f"the loss of epoch {number + 1} is {loss}: try a smaller --lr than {args.lr}")
        trained = time.perf_counter()
        test_accuracy = accuracy(training.classify(test), test)
        end = time.perf_counter()
        longest = max(longest, end - begin)
        row = {"epoch": number + 1, "timesteps": timesteps, "loss": loss}
        row |= {"train_accuracy": train_accuracy, "test_accuracy": test_accuracy}
        times = {"training_seconds": trained - begin, "evaluation_seconds": end - trained, "seconds": end - start}
        log.append({**row, **times})
        _write(Path(f"{args.output}.jsonl"), *log)
        print(f"epoch {number + 1}: loss {loss:.4f}, test {test_accuracy:.2%}, {end - start:.1f} s", flush=True)
    training.network.timesteps = TIMESTEPS  # also of a training that was cut off at T = 1
    return log


def _fold_and_measure(
    network: SpikingNetwork, test: Images, facts: dict[str, Any], folder: Path, results: dict[str, Any]
) -> None:
    """Fold, write, read back; add the accuracies in float32, and how many decisions folding has changed."""
    folded, report = fold(network)
    int8 = zoo.load(write_folder(folder, folded, report=report, precisions=("int8",), **facts), device=test.x.device)
    before, after = classify(network, test), classify(folded, test)
    results["decisions_changed_by_fold"] = int((before != after).sum())
    results["accuracy"] |= {
        "network": accuracy(before, test),
        "folded": accuracy(after, test),
        "int8": accuracy(classify(int8, test), test),
        "network_with_mirrored_images": accuracy(classify(network, test, mirrored_too=True), test),
    }


def _read(args: argparse.Namespace, device: torch.device) -> tuple[Images, Images, dict[str, Any]]:
    """Training and test images on the device, and what a network's folder says of them."""
    sources = NpzImages(args.data / "train.npz"), NpzImages(args.data / "test.npz")
    mean, std = sources[0].mean_and_std()
    names = sources[0].classes or [str(label) for label in range(max(int(source.y.max()) for source in sources) + 1)]

    def images(source: NpzImages, limit: int | None) -> Images:
        x, y = (torch.from_numpy(array[:limit]).to(device) for array in (source.x, source.y))
        return Images(x, y.long(), torch.tensor(mean, device=device), torch.tensor(std, device=device))

    train, test = images(sources[0], args.limit_train), images(sources[1], args.limit_test)
    if len(train.y) < args.batch_size:
        raise ValueError(f"--batch-size {args.batch_size} is more than the {len(train.y)} training images")
    preprocessing = {"input_size": [train.x.shape[3], *train.x.shape[1:3]], "mean": mean, "std": std}
    return train, test, {"preprocessing": preprocessing, "label_names": names}


def _write(path: Path, *contents: Any, indent: int | None = None) -> None:
    """Write a file of JSON texts, whole or not at all."""
    text = "".join(json.dumps(content, indent=indent, default=str) + "\n" for content in contents)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)


def _count(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{count} is less than 1")
    return count


def _share(text: str) -> float:
    if not 0 <= (share := float(text)) < 1:
        raise argparse.ArgumentTypeError(f"{share} does not lie in [0, 1)")
    return share


def _epochs(text: str) -> int | None:
    return None if text == "auto" else _count(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.time_to_accuracy", description=__doc__.split("\n")[0])
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="with train.npz and test.npz")
    add("--output", type=Path, default=RESULTS, metavar="PREFIX", help="of the files that are written (%(default)s)")
    add("--epochs", type=_epochs, default=120, help="length of the schedule; auto: what --minutes allow (%(default)s)")
    add("--minutes", type=float, default=10.0, help="begin no epoch that would end later (%(default)s)")
    add("--batch-size", type=_count, default=512, help="(%(default)s)")
    add("--lr", type=float, default=0.1, help="peak for a batch of 128, grows with the batch (%(default)s)")
    add("--weight-decay", type=float, default=5e-4, help="(%(default)s)")
    add("--label-smoothing", type=float, default=0.1, help="(%(default)s)")
    add("--cutout", type=int, default=12, help="side of the hole in pixels, 0 for none (%(default)s)")
    add("--backbone", default="tspike_resnet20", help="(%(default)s)")
    add("--neuron", default="ternary_lif", help="one that spikes (%(default)s)")
    add("--amplitude", default="layer", help="layer, channel or fixed (%(default)s)")
    add("--t1-share", type=_share, default=0.0, help="of the epochs, the first ones, that have T = 1 (%(default)s)")
    add("--widths", type=_count, nargs="+", help="channels of each stage, where the backbone takes them")
    add("--device", choices=("cuda", "cpu"), default="cuda", help="(%(default)s)")
    add("--precision", choices=("bfloat16", "float32"), help="of training (bfloat16 on a GPU, float32 elsewhere)")
    add("--no-compile", dest="compile", action="store_false", help="run the network as it is")
    add("--limit-train", type=_count, help="take so many training images alone")
    add("--limit-test", type=_count, help="the same for test images")
    add("--seed", type=int, default=1, help="of weights, order and augmentation (%(default)s)")
    return parser


if __name__ == "__main__":
    main()
