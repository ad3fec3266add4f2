"""From a training run to a folder that can be published: folded, at every precision, verified, measured."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..analysis.evaluation import evaluate
from ..analysis.measure import Measured, measure
from ..files.weights import PRECISIONS, Precision, decode, encode
from ..folding.absorb import FoldError, fold
from ..network.spiking_network import SpikingNetwork
from .checkpoint import read_checkpoint
from .folder import UNFOLDED, read_folder, read_manifest, write_folder
from .manifest import precisions_in

__all__ = ["Source", "VerificationError", "prepare", "read_source", "remeasure", "verify"]


class VerificationError(RuntimeError):
    """A folder is well-formed, but what is in it does not agree; the message says where."""


class Source(NamedTuple):
    """A network to publish: not yet folded, or folded by somebody else, in which case ``unfolded`` is None."""

    folded: SpikingNetwork
    unfolded: SpikingNetwork | None
    report: Any
    facts: dict[str, Any]


def read_source(path: str | Path) -> Source:
    """Read and, where that is still to be done, fold.

    Args:
        path: A checkpoint of TernarySNNModule, or a network's folder.

    Raises:
        CheckpointError, FolderError, FoldError: It cannot be read, or not be folded.
    """
    path = Path(path)
    if path.is_dir():
        network, config = read_folder(path)
        facts = {key: config[key] for key in ("preprocessing", "label_names")}
        unfolded = read_folder(path / UNFOLDED, sha256=config["unfolded"])[0] if config["unfolded"] else None
        if unfolded is None and not any(neuron.raw_amplitude is not None for neuron in network.neurons().values()):
            return Source(network, None, None, facts)
        network = unfolded or network
    else:
        network, preprocessing, label_names = read_checkpoint(path)
        facts = {"preprocessing": preprocessing, "label_names": label_names}
    folded, report = fold(network.eval())
    return Source(folded, network, report, facts)


def prepare(
    source: str | Path,
    folder: str | Path,
    batches: Iterable[Any] | None = None,
    *,
    dataset: str | None = None,
    command: str | None = None,
    label_names: Sequence[str] | None = None,
    **card: Any,
) -> Path:
    """Write the folder to publish: weights at every precision, the unfolded network, card, pictures.

    What the card says was measured on the weights that were read back from the files.

    Args:
        source: A checkpoint of TernarySNNModule, or a network's folder.
        folder: Where to write it. A network's folder that is there already is replaced.
        batches: The test set, see :mod:`lightning_tspike.analysis.measure`; without it the card has no figures.
        dataset: Its name.
        command: What measures it again.
        label_names: Of the classes, where the source does not say.
        card: What else the card says, see :func:`lightning_tspike.store.card.model_card`.

    Raises:
        ValueError: There are test batches, but no name of the dataset or no command.
        VerificationError: The files do not agree with each other, or fold and network differ on the test set.
    """
    if batches is not None and not (dataset and command):
        raise ValueError("figures need their source: say which dataset was measured, and by which command")
    read = read_source(source)
    facts = {**read.facts, "label_names": read.facts["label_names"] or label_names}
    log = _training_log(Path(source))
    options: dict[str, Any] = {**facts, "report": read.report, "precisions": PRECISIONS, "unfolded": read.unfolded}
    options["files"] = {"training_log.csv": log} if log else {}
    folder = write_folder(folder, read.folded, **options, **card)
    if batches is not None:
        measured = remeasure(folder, batches, dataset=str(dataset), command=str(command), report=read.report)
        write_folder(folder, read.folded, **options, **card, measured=measured)
    verify(folder)
    return folder


def remeasure(
    folder: str | Path, batches: Iterable[Any], *, dataset: str, command: str, report: Any = None
) -> Measured:
    """Measure the weights in a folder, at every precision that is there.

    Raises:
        VerificationError: The unfolded network decides otherwise.
    """
    folder = Path(folder)
    config = read_manifest(folder)
    networks = {precision: read_folder(folder, precision=precision)[0] for precision in precisions_in(config)}
    measured = measure(networks, batches, dataset=dataset, command=command, report=report)
    if config["unfolded"]:
        unfolded = evaluate(read_folder(folder / UNFOLDED)[0], batches, description="testing the unfolded network")
        # float32 rounds differently before and after the fold: once in millions a spike flips, in thousands a decision
        if abs(unfolded.accuracy - next(iter(measured.accuracies.values()))) > max(1 / measured.samples, 1e-3):
            raise VerificationError(
                f"{folder}: the folded weights reach {measured.accuracies}, the unfolded network {unfolded.accuracy}: "
                "they are not of the same training; prepare the folder again"
            )
    return measured


def verify(folder: str | Path, *, sha256: str | None = None) -> list[str]:
    """Check all that a folder says of itself, without data.

    Every file is whole and builds the network; every precision is what rounding the most precise one gives; folding the
    unfolded network again gives these weights.

    Args:
        folder: The folder.
        sha256: What its configuration's ``sha256`` must be.

    Returns:
        What was checked, a line each.

    Raises:
        FolderError: A file is missing, damaged or was changed.
        VerificationError: Two of them do not agree.
    """
    folder = Path(folder)
    network, config = read_folder(folder, sha256=sha256)
    precisions = precisions_in(config)
    checked = [f"{precisions[0]} weights are whole and build {config['network']['backbone']}"]
    exact = network.model.state_dict()
    for precision in precisions[1:]:
        rounded = read_folder(folder, precision=precision)[0].model.state_dict()
        _agree(_decoded(exact, precision), rounded, f"{folder}: the {precision} weights are no rounding of the others")
        checked.append(f"{precision} weights are those rounded")
    if config["unfolded"]:
        unfolded = read_folder(folder / UNFOLDED, sha256=config["unfolded"])[0]
        try:
            again, _ = fold(unfolded)
        except FoldError as error:
            raise VerificationError(f"{folder / UNFOLDED} cannot be folded: {error}") from error
        _agree(again.model.state_dict(), exact, f"{folder}: folding {UNFOLDED}/ gives other weights")
        checked.append("the unfolded network folds to them")
    return checked


def _training_log(checkpoint: Path) -> bytes | None:
    """Losses and accuracies of the run that a checkpoint is of, as CSVLogger has written them beside its folder."""
    file = checkpoint.parent.parent / "metrics.csv"
    if checkpoint.is_dir() or not file.is_file():
        return None
    with file.open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    columns = [name for name in (rows[0] if rows else ()) if name.partition("/")[0] in ("train", "val", "test")]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["epoch", "step", *columns], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(row for row in rows if any(row[name] for name in columns))
    return text.getvalue().encode()


def _decoded(weights: dict[str, torch.Tensor], precision: Precision) -> dict[str, torch.Tensor]:
    return decode(encode(weights, precision), Path("memory"))


def _agree(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor], message: str) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in expected or name not in found:
            raise VerificationError(f"{message}: only one of them has {name}")
        if not torch.allclose(expected[name].double(), found[name].double(), rtol=1e-5, atol=1e-7):
            raise VerificationError(f"{message}: {name} differs")
