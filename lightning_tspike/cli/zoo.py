"""``tspike zoo list|info|load|verify|publish|card`` and ``tspike predict --model``: the zoo on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from .. import zoo

__all__ = ["predict", "recipe_data", "run_zoo"]


def run_zoo(words: Sequence[str]) -> None:
    """``tspike zoo ...``."""
    parser = argparse.ArgumentParser(prog="tspike zoo", allow_abbrev=False, description="The model zoo.")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[..., None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, allow_abbrev=False, help=text, description=text)
        command.set_defaults(run=run)
        return command

    listed = add("list", _list, "list the entries")
    listed.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. '*resnet*'")
    listed.add_argument("--status", choices=("trained", "planned"), help="only those")
    for name, run, text in (
        ("info", _info, "all that the table says of an entry"),
        ("load", _load, "fetch a network into the cache, check it and say what it is"),
        ("card", _card, "print the model card of a network"),
    ):
        add(name, run, text).add_argument("name", help="entry, ORG/NAME[@REVISION] on the Hub, or folder")
    verified = add(
        "verify",
        _verify,
        "check that a network's files are whole and agree with each other; with a recipe, measure its test accuracy",
    )
    verified.add_argument("name", help="entry, ORG/NAME[@REVISION] on the Hub, or folder")
    published = add(
        "publish",
        _publish,
        "fold, verify and measure a network and write the folder to be published; with --upload, publish it",
    )
    published.add_argument("source", type=Path, help="checkpoint, or folder of a network")
    published.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hugging Face Hub")
    published.add_argument("--upload", action="store_true", help="publish; without it nothing leaves this machine")
    published.add_argument("--folder", type=Path, help="folder to write; default: beside the source, .hub")
    published.add_argument("--license", default="apache-2.0", help="of the weights; default: %(default)s")
    published.add_argument("--private", action="store_true", help="a new repository is private")
    published.add_argument("--create-pr", action="store_true", help="open a pull request")
    published.add_argument("--tag", help="name for the commit")
    for command in (verified, published):
        command.add_argument("--recipe", help="whose test set is measured; options such as --data.root=PATH change it")
    options, changes = parser.parse_known_args(words)
    recipe = getattr(options, "recipe", None)
    if unknown := [word for word in changes if not (recipe and word.startswith("--data"))]:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    options.run(options, changes)


def predict(words: Sequence[str]) -> None:
    """``tspike predict --model NAME IMAGE...``."""
    parser = argparse.ArgumentParser(
        prog="tspike predict",
        allow_abbrev=False,
        description="Classify image files with a network of the zoo, of the Hub or in a folder.",
    )
    parser.add_argument("--model", required=True, help="entry, ORG/NAME[@REVISION] on the Hub, folder or checkpoint")
    parser.add_argument("--top", type=int, default=1, help="classes to print for each image; default: 1")
    parser.add_argument("images", nargs="+", type=Path, help="image files")
    options = parser.parse_args(words)
    if options.top < 1:
        parser.error(f"--top must be at least 1, got {options.top}")
    _predict(options)


def _list(options: argparse.Namespace, _changes: Sequence[str]) -> None:
    table = _table("name", "T", "status", "test accuracy", "recipe")
    for entry in map(zoo.info, zoo.list(options.pattern, options.status)):
        table.add_row(entry.name, str(entry.timesteps), entry.status, _accuracy(entry), entry.recipe)
    Console().print(table)


def _info(options: argparse.Namespace, _changes: Sequence[str]) -> None:
    entry = zoo.info(options.name)
    rows = {
        "name": entry.name,
        "architecture": f"{entry.architecture}, T = {entry.timesteps}",
        "dataset": entry.dataset,
        "status": entry.status,
        "recipe": f"tspike fit --config {entry.recipe}",
        "weights": entry.repo_id or ("with this package" if entry.status == "trained" else "none yet"),
        "revision": entry.revision,
        "sha256": entry.sha256,
        "size": f"{entry.size:,} bytes" if entry.size else None,
        "license": entry.license,
        **{name: f"{value:.4f}" for name, value in entry.metrics.items()},
        "measured by": entry.measured_by,
    }
    for name, value in rows.items():
        if value is not None:
            print(f"{name + ':':<20} {value}")


def _load(options: argparse.Namespace, _changes: Sequence[str]) -> None:
    from ..store.source import CheckpointSource, open_source

    source = open_source(options.name)
    network, manifest = source.read()
    print(f"{options.name}: {manifest.network.backbone}, T = {network.timesteps}, {network.num_classes} classes")
    if not isinstance(source, CheckpointSource):
        print(f"folder: {source.fetch('weights')[0]}")


def _card(options: argparse.Namespace, _changes: Sequence[str]) -> None:
    from ..store.folder import CARD
    from ..store.source import open_source

    folder, _ = open_source(options.name).fetch("card")
    print(folder.joinpath(CARD).read_text(encoding="utf-8"))


def _verify(options: argparse.Namespace, changes: Sequence[str]) -> None:
    from ..store.publish import remeasure, verify_folder
    from ..store.source import open_source

    folder, manifest = open_source(options.name).fetch("all")
    for line in verify_folder(folder, manifest):
        print(line)
    if options.recipe:
        data = recipe_data(options.recipe, changes)
        data.prepare_data()
        data.setup("test")
        command = _command(options.name, options.recipe, changes)
        measured = remeasure(folder, data.test_dataloader(), dataset=options.recipe, command=command)
        for precision, accuracy in measured.accuracies.items():
            print(f"{precision}: test accuracy {100 * accuracy:.2f} % of {measured.samples} samples")


def _publish(options: argparse.Namespace, changes: Sequence[str]) -> None:
    folder, publication = zoo.publish(
        options.source,
        options.repo_id,
        data=recipe_data(options.recipe, changes) if options.recipe else None,
        recipe=options.recipe,
        command=_command(options.repo_id, options.recipe, changes) if options.recipe else None,
        license=options.license,
        folder=options.folder,
        dry_run=not options.upload,
        private=options.private,
        create_pr=options.create_pr,
        tag=options.tag,
    )
    print(f"written: {folder}")
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        print(f"  {file.relative_to(folder)} ({file.stat().st_size:,} bytes)")
    if publication is None:
        print(f"nothing was published; look at {folder / 'README.md'}, then say --upload")
    elif publication.pull_request:
        print(f"pull request: {publication.pull_request}")
    else:
        print(f"{'published' if publication.is_new else 'there already'}: {options.repo_id}@{publication.revision}")


def _predict(options: argparse.Namespace) -> None:
    import torch
    from PIL import Image

    from ..store.loading import load_with_config, transform_of

    network, manifest = load_with_config(options.model)
    spec = manifest.preprocessing
    if spec is not None and spec.frames is not None:
        raise ValueError(f"{options.model} classifies recordings of event cameras, not images")
    transform = transform_of(spec, options.model)
    names = manifest.label_names or [str(label) for label in range(network.num_classes)]
    table = _table("image", "class", "probability")
    for file in options.images:
        try:
            with Image.open(file) as image:
                x = transform(image)
        except (OSError, Image.DecompressionBombError) as error:  # also what is no image: UnidentifiedImageError
            raise ValueError(f"{file} cannot be read as an image: {error}") from error
        with torch.no_grad():
            probabilities = network(x[None]).softmax(-1)[0]
        for probability, label in zip(*probabilities.topk(min(options.top, len(names))), strict=True):
            table.add_row(str(file), names[int(label)], f"{probability:.4f}")
    Console().print(table)


def _command(name: str, recipe: str, changes: Sequence[str]) -> str:
    """What measures the figures again; folders of this machine mean nothing elsewhere."""
    words = [f"{word.partition('=')[0]}=PATH" if Path(word.partition("=")[2]).is_dir() else word for word in changes]
    entry = name.rpartition("/")[2]
    return " ".join(["tspike zoo verify", entry if entry in zoo.list() else name, "--recipe", recipe, *words])


def recipe_data(recipe: str, changes: Sequence[str]) -> Any:
    """The datamodule of a recipe, by its name or its file, changed by words such as ``--data.root=PATH``."""
    from ..data.check import datamodule_of

    path = Path(recipe) if Path(recipe).is_file() else zoo.recipe_path(recipe)
    return datamodule_of(path, list(changes))


def _accuracy(entry: zoo.ZooEntry) -> str:
    accuracy = entry.metrics.get("test/acc1")
    return "" if accuracy is None else f"{100 * accuracy:.2f} %"


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)  # 80 characters are enough: names are there to be copied
    return table
