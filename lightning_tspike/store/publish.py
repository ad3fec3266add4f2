"""From a training run to a folder that can be published: folded, at every precision, verified, measured."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..analysis.evaluation import evaluate
from ..analysis.figures import plot_curves
from ..analysis.measure import PICTURES, Measured, measure, png
from ..analysis.run_logs import read_logs
from ..files.input_spec import InputSpec
from ..files.weights import PRECISIONS, Precision, decode, encode
from ..folding import FoldError, fold
from ..folding.report import FoldReport
from ..network.spiking_network import SpikingNetwork
from .catalog import find_entry
from .folder import REPORT, UNFOLDED, precisions_in, read_folder, read_manifest, read_network, write_folder
from .hub import Publication, upload
from .loading import load
from .manifest import Manifest
from .results import Results, read_times
from .source import FolderSource, open_path, open_source

__all__ = ["VerificationError", "prepare", "publish", "remeasure", "verify", "verify_folder"]


LOG = "training_log.csv"
CURVES = "training_curves.png"


class VerificationError(RuntimeError):
    """A folder is well-formed, but what is in it does not agree; the message says where."""


class _Networks(NamedTuple):
    """What is to be published; None is what nobody knows, or, for ``unfolded``, has kept.

    ``before`` is what the source says of itself, where it is a folder.
    """

    folded: SpikingNetwork
    unfolded: SpikingNetwork | None
    report: FoldReport | None
    preprocessing: InputSpec | None
    label_names: Sequence[str] | None
    training_seconds: float | None = None
    before: Manifest | None = None


def publish(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    data: Any = None,
    dataset: str | None = None,
    command: str | None = None,
    recipe: str | None = None,
    license: str = "apache-2.0",
    precisions: Iterable[Precision] = PRECISIONS,
    with_unfolded: bool = True,
    speed: str | os.PathLike[str] | None = None,
    twins: Mapping[str, str | os.PathLike[str]] | None = None,
    seeds: Sequence[str | os.PathLike[str]] = (),
    folder: str | os.PathLike[str] | None = None,
    dry_run: bool = True,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
) -> tuple[Path, Publication | None]:
    """Fold, verify and measure a network, write the folder to be published, and publish it if told to.

    Args:
        source: A checkpoint of TernarySNNModule, or a network's folder. What a folder says of training, seeds, twins
            and speed stays, where it is not measured anew.
        repo_id: ``ORG/NAME``; where NAME is one of the zoo's entries, the card takes it and its dataset from there.
        data: LightningDataModule whose test set is measured; without it the card has the figures that a source with
            the same weights has, or none.
        dataset: Name of the data, for the card.
        command: What measures it again, for the card; default is ``tspike zoo verify`` with the recipe.
        recipe: Name of the recipe that trained it.
        license: Of the weights.
        precisions: At which precisions the weights are written.
        with_unfolded: Whether the network before folding is written too: as large as float32 weights, it is what
            training goes on from.
        speed: The file that ``tspike bench NETWORK --json FILE`` has written of it.
        twins: Checkpoints or folders of networks that the same recipe has trained with other neurons, by the names that
            the card gives them (``"ANN"``, ``"binary"``); they are measured beside it.
        seeds: The same of trainings with other seeds.
        folder: Where the folder is written; default is beside ``source``, ``NAME.hub``.
        dry_run: Only write the folder; look at its README.md, then say False.
        private: Whether a new repository is private.
        create_pr: Open a pull request instead of changing the main branch.
        tag: Name for the commit.

    Returns:
        The folder; and what was done on the Hub, or None in a dry run.

    Raises:
        ValueError: There is data, but neither its name nor a recipe; speed, twins or seeds, but no data; a speed that
            is none; a pull request with a tag; no such precision.
        VerificationError: The files do not agree; nothing was published.
        lightning_tspike.store.hub.HubError: The Hub did not take it. Otherwise as ``zoo.load``.
    """
    if tag and create_pr:
        raise ValueError("a pull request cannot be tagged before it is merged: leave out one of tag and create_pr")
    source = Path(source)
    target = Path(folder) if folder is not None else source.with_suffix(".hub")
    if data is not None:
        data.prepare_data()
        data.setup("test")
    name = repo_id.rpartition("/")[2]
    entry = find_entry(name)
    name = name if entry else repo_id
    written = prepare(
        source,
        target,
        data.test_dataloader() if data is not None else None,
        dataset=dataset or (entry.dataset if entry else recipe),
        command=command or (f"tspike zoo verify {name} --recipe {recipe}" if recipe else None),
        label_names=getattr(data, "class_names", None),
        name=name,
        precisions=precisions,
        with_unfolded=with_unfolded,
        speed=speed,
        twins=twins,
        seeds=seeds,
        recipe=recipe,
        license=license,
    )
    if dry_run:
        return written, None
    message = f"{name.rpartition('/')[2]} by lightning-tspike"
    return written, upload(written, repo_id, message=message, private=private, create_pr=create_pr, tag=tag)


def prepare(
    source: str | Path,
    folder: str | Path,
    batches: Iterable[Any] | None = None,
    *,
    dataset: str | None = None,
    command: str | None = None,
    label_names: Sequence[str] | None = None,
    precisions: Iterable[Precision] = PRECISIONS,
    with_unfolded: bool = True,
    speed: str | os.PathLike[str] | None = None,
    twins: Mapping[str, str | os.PathLike[str]] | None = None,
    seeds: Sequence[str | os.PathLike[str]] = (),
    **card: Any,
) -> Path:
    """Write the folder to publish: weights, the unfolded network, card, pictures.

    What the card says was measured on the weights that were read back from the files.

    Args:
        source: A checkpoint of TernarySNNModule, or a network's folder.
        folder: Where to write it. A network's folder that is there already is replaced.
        batches: The test set, see :mod:`lightning_tspike.analysis.measure`; without it the figures are those that the
            source has of the same weights, or there are none.
        dataset: Its name.
        command: What measures it again.
        label_names: Of the classes, where the source does not say.
        precisions: As for :func:`publish`.
        with_unfolded: As for :func:`publish`.
        speed: As for :func:`publish`.
        twins: As for :func:`publish`.
        seeds: As for :func:`publish`.
        card: What else the card says, see :func:`lightning_tspike.store.card.model_card`.

    Raises:
        ValueError: There are test batches, but no name of the dataset or no command; or no such precision.
        VerificationError: The files do not agree with each other, or fold and network differ on the test set.
    """
    if batches is not None and not (dataset and command):
        raise ValueError("figures need their source: say which dataset was measured, and by which command")
    if batches is None and (speed or twins or seeds):
        raise ValueError("speed, twins or seeds stand beside the test accuracy: give the data as well")
    times = read_times(speed) if speed is not None else None  # before anything is written
    wanted = list(precisions)
    if not wanted or not set(wanted) <= set(PRECISIONS):
        raise ValueError(f"precisions must be some of {list(PRECISIONS)}, got {wanted}")
    read = _read_and_fold(source)
    options: dict[str, Any] = {
        "preprocessing": read.preprocessing,
        "label_names": read.label_names or label_names,
        "report": read.report,
        "precisions": [known for known in PRECISIONS if known in wanted],
        "files": _of_the_run(Path(source)),
        **card,
    }
    pictures = _files_in(Path(source), *PICTURES)  # now: the source may be the folder that is written
    # whole, whatever of it is published, so that all of it can be compared
    folder = write_folder(folder, read.folded, **options, unfolded=read.unfolded)
    verify_folder(folder, read_manifest(folder))
    known = read.before.results if read.before else None
    if batches is not None:
        measured = remeasure(folder, batches, dataset=str(dataset), command=str(command), report=read.report)
        options["energy"] = measured.energy
        options["files"] |= measured.pictures
        results = Results.of(
            measured,
            times=times,
            seeds=tuple(_accuracy(path, batches) for path in seeds),
            twins={kind: _accuracy(path, batches) for kind, path in (twins or {}).items()},
            training_seconds=read.training_seconds,
        )
        options["results"] = results.or_else(known) if known else results
    elif known and read.before:
        same = [p for p, file in read_manifest(folder).weights.items() if read.before.weights.get(p) == file]
        if left := known.of_precisions(same):
            options["results"] = left
            options["files"] |= pictures
    elif with_unfolded:
        return folder
    write_folder(folder, read.folded, **options, unfolded=read.unfolded if with_unfolded else None)
    verify_folder(folder, read_manifest(folder))
    return folder


def remeasure(
    folder: str | Path, batches: Iterable[Any], *, dataset: str, command: str, report: Any = None
) -> Measured:
    """Measure the weights in a folder, at every precision that is there.

    Raises:
        VerificationError: The unfolded network decides otherwise.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    precisions = precisions_in(folder, manifest)
    networks = {precision: read_network(folder, manifest, precision=precision) for precision in precisions}
    measured = measure(networks, batches, dataset=dataset, command=command, report=report)
    if manifest.unfolded:
        unfolded = evaluate(read_folder(folder / UNFOLDED)[0], batches, description="testing the unfolded network")
        # float32 rounds differently before and after the fold: once in millions a spike flips, in thousands a decision
        if abs(unfolded.accuracy - next(iter(measured.accuracies.values()))) > max(1 / measured.samples, 1e-3):
            raise VerificationError(
                f"{folder}: the folded weights reach {measured.accuracies}, the unfolded network {unfolded.accuracy}: "
                "they do not come from the same training; prepare the folder again"
            )
    return measured


def verify(name_or_path: str | os.PathLike[str]) -> list[str]:
    """Check that a network's files are whole and agree with each other, without data.

    Every file is whole and builds the network; every precision is what rounding the most precise one gives; folding the
    unfolded network again gives these weights.

    Args:
        name_or_path: As for ``zoo.load``, but no checkpoint.

    Returns:
        What was checked, a line each.

    Raises:
        VerificationError: Two files do not agree; otherwise as ``zoo.load``.
    """
    return verify_folder(*open_source(name_or_path).fetch("all"))


def verify_folder(folder: Path, manifest: Manifest) -> list[str]:
    """As :func:`verify`, of a folder on disk whose manifest has been read; weights that it lacks are named.

    Raises:
        FolderError: There are no weights, or a file is damaged or was changed.
        VerificationError: Two of them do not agree.
    """
    precisions = precisions_in(folder, manifest)
    exact = read_network(folder, manifest, precision=precisions[0]).model.state_dict()
    checked = [f"{precisions[0]} weights are whole and build {manifest.network.backbone}"]
    for precision in precisions[1:]:
        rounded = read_network(folder, manifest, precision=precision).model.state_dict()
        _agree(_decoded(exact, precision), rounded, f"{folder}: the {precision} weights are no rounding of the others")
        checked.append(f"{precision} weights are those rounded")
    checked += [f"{precision} weights are not here" for precision in manifest.precisions if precision not in precisions]
    if manifest.unfolded:
        unfolded = read_folder(folder / UNFOLDED, sha256=manifest.unfolded)[0]
        try:
            again, _ = fold(unfolded)
        except FoldError as error:
            raise VerificationError(f"{folder / UNFOLDED} cannot be folded: {error}") from error
        _agree(again.model.state_dict(), exact, f"{folder}: folding {UNFOLDED}/ gives other weights")
        checked.append("the unfolded network folds to them")
    return checked


def _read_and_fold(path: str | Path) -> _Networks:
    """Read, and fold where that is still to be done."""
    source = open_path(path)
    label_names: Sequence[str] | None
    seconds = before = None
    if isinstance(source, FolderSource):
        network, manifest = source.read()
        spec, label_names, before = manifest.preprocessing, manifest.label_names, manifest
        if manifest.unfolded:
            network, _ = source.read(folded=False)
        elif not manifest.amplitudes:
            return _Networks(network, None, _report_in(Path(path)), spec, label_names, before=before)
    else:
        network, spec, label_names, seconds = source.read_saved()
    folded, report = fold(network.eval())
    return _Networks(folded, network, report, spec, label_names, seconds, before)


def _report_in(folder: Path) -> FoldReport | None:
    """What folding did, where it was written beside the weights that it gave."""
    file = folder / REPORT
    if not file.is_file():
        return None
    try:
        return FoldReport.from_dict(json.loads(file.read_text(encoding="utf-8")))
    except ValueError as error:
        raise ValueError(f"{file} {error}; remove it to publish without it") from error


def _accuracy(path: str | os.PathLike[str], batches: Iterable[Any]) -> float:
    """Test accuracy of another network, folded, in float32."""
    return evaluate(load(Path(path)), batches, description=f"testing {Path(path).name}").accuracy


def _of_the_run(source: Path) -> dict[str, bytes]:
    """What goes along of the run: log and curves, where a folder has them or a CSVLogger wrote beside a checkpoint."""
    if source.is_dir():
        return _files_in(source, LOG, CURVES)
    run = source.parent.parent
    if not (run / "metrics.csv").is_file():
        return {}
    quantities = read_logs(run).quantities()
    shown = {name: quantities[name] for name in ["loss", "acc1"] if name in quantities}
    curves = {CURVES: png(plot_curves(shown))} if shown else {}
    return {LOG: _training_log(run), **curves}


def _files_in(folder: Path, *names: str) -> dict[str, bytes]:
    """Those of the files that are there."""
    return {name: (folder / name).read_bytes() for name in names if (folder / name).is_file()}


def _training_log(run: Path) -> bytes:
    """Losses and accuracies of a run."""
    with (run / "metrics.csv").open(newline="") as lines:
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
