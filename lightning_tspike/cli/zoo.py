"""``tspike zoo list|info|load|card|verify|publish``: the zoo on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import zoo
from .._tables import new_table, table_text
from .._waiting import waiting
from ..store.catalog import over_seeds, shipped_facts
from .commands import Commands, completes
from .data import recipe_changes, recipe_data

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the commands of the zoo."""
    group = commands.group("zoo", "The model zoo.")
    listed = group.add("list", _list, "list the entries")
    listed.add_argument("pattern", nargs="?", default="*", help="shell pattern, e.g. '*resnet*'")
    listed.add_argument("--status", choices=("trained", "planned"), help="only those")
    _takes_name(group.add("info", _info, "all that the table says of an entry"))
    _takes_name(group.add("load", _load, "fetch a network into the cache, check it and say what it is"))
    _takes_name(group.add("card", _card, "print the model card of a network"))
    verified = group.add(
        "verify",
        _verify,
        "check a network's files; with a recipe, measure accuracy",
        "Check that a network's files are whole and agree with each other; with a recipe, measure its test accuracy.",
        takes_more=True,
    )
    _takes_name(verified)
    published = group.add(
        "publish",
        _publish,
        "write the folder to be published; with --upload, publish it",
        "Fold, verify and measure a network and write the folder to be published; with --upload, publish it.",
        takes_more=True,
    )
    published.add_argument("source", type=Path, help="checkpoint, or folder of a network")
    published.add_argument("repo_id", metavar="ORG/NAME", help="repository on the Hugging Face Hub")
    published.add_argument("--upload", action="store_true", help="publish; without it nothing leaves this machine")
    published.add_argument("--folder", type=Path, help="folder to write; default: beside the source, .hub")
    published.add_argument("--license", default="apache-2.0", help="of the weights; default: %(default)s")
    published.add_argument("--precisions", nargs="+", metavar="PRECISION", help="float32, bfloat16, int8; default: all")
    published.add_argument("--folded-only", action="store_true", help="leave out the network before folding")
    published.add_argument("--speed", type=Path, metavar="FILE", help="what tspike bench --json has written of it")
    published.add_argument(
        "--twin", action="append", default=[], metavar="NAME=CHECKPOINT",
        help="a network that the same recipe has trained with other neurons, such as ANN=PATH; may be repeated",
    )  # fmt: skip
    published.add_argument("--seeds", nargs="+", default=[], metavar="CHECKPOINT", help="trainings with other seeds")
    published.add_argument("--private", action="store_true", help="a new repository is private")
    published.add_argument("--create-pr", action="store_true", help="open a pull request")
    published.add_argument("--tag", help="name for the commit")
    for command in (verified, published):
        recipe = command.add_argument(
            "--recipe", help="whose test set is measured; options such as --data.root=PATH change it"
        )
        completes("recipes", recipe)


def _takes_name(parser: argparse.ArgumentParser) -> None:
    completes("networks", parser.add_argument("name", help="entry, ORG/NAME[@REVISION] on the Hub, or folder"))


def _list(options: argparse.Namespace) -> None:
    table = new_table("name", "T", "accuracy", "size", "latency", "recipe")
    for entry in map(zoo.info, zoo.list(options.pattern, options.status)):
        facts = shipped_facts(entry)
        accuracy = _accuracy(entry) if entry.status == "trained" else entry.status
        size = f"{entry.size / 1e6:.1f} MB" if entry.size else ""
        table.add_row(entry.name, str(entry.timesteps), accuracy, size, _latency(facts), entry.recipe)
    print(table_text(table), end="")


def _info(options: argparse.Namespace) -> None:
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
        "read by default": entry.precision,
        "license": entry.license,
        **{name: f"{value:.4f}" for name, value in entry.metrics.items()},
        **_results(shipped_facts(entry).get("results") or {}),
        "measured by": entry.measured_by,
    }
    known = {f"{name}:": value for name, value in rows.items() if value is not None}
    width = max(map(len, known))
    for name, value in known.items():
        print(f"{name:<{width}} {value}")


def _results(results: Mapping[str, Any]) -> dict[str, str]:
    """What ``config.json`` says was measured, beside the accuracies that the table has."""
    if not results:
        return {}
    seconds = results["training_seconds"]
    return {
        **{f"top-5, {precision}": f"{share:.4f}" for precision, share in results["top5"].items()},
        **{f"{kind}, same recipe": f"{accuracy:.4f}" for kind, accuracy in results["twins"].items()},
        **_seeds(results),
        "multiply-accumulates": f"{results['macs']:,.0f} per sample",
        "synaptic operations": f"{results['synops']:,.0f} per sample",
        "energy": f"{results['microjoules']:.1f} uJ per sample (horowitz)",
        **{runtime: f"{time:.3g} ms" for runtime, time in results["milliseconds"].items()},
        **({"timed": results["timed"]} if results["timed"] else {}),
        **({"training": f"{seconds / 60:.1f} minutes"} if seconds is not None else {}),
        "cite": "Guo et al., Ternary Spike, AAAI 2024, arXiv 2312.06372; BibTeX is in the card",
    }


def _seeds(results: Mapping[str, Any]) -> dict[str, str]:
    if (over_all := over_seeds(results)) is None:
        return {}
    return {
        "other seeds": ", ".join(f"{accuracy:.4f}" for accuracy in results["seeds"]),
        "over all seeds": f"{over_all[0]:.4f} ± {over_all[1]:.4f}",
    }


def _latency(facts: Mapping[str, Any]) -> str:
    """Of a call in its fastest runtime, on the machine that ``tspike zoo info`` names."""
    times = (facts.get("results") or {}).get("milliseconds", {})
    own = [time for runtime, time in times.items() if not runtime.startswith("ANN")]
    return f"{min(own):.3g} ms" if own else ""


def _load(options: argparse.Namespace) -> None:
    from ..store.source import CheckpointSource, open_source

    source = open_source(options.name)
    network, manifest = source.read()
    print(f"{options.name}: {manifest.network.backbone}, T = {network.timesteps}, {network.num_classes} classes")
    if not isinstance(source, CheckpointSource):
        print(f"folder: {source.fetch('weights')[0]}")


def _card(options: argparse.Namespace) -> None:
    from ..store.folder import CARD
    from ..store.source import open_source

    folder, _ = open_source(options.name).fetch("card")
    print(folder.joinpath(CARD).read_text(encoding="utf-8"))


def _verify(options: argparse.Namespace) -> None:
    changes = recipe_changes(options)

    from ..store.publish import remeasure, verify_folder
    from ..store.source import open_source

    folder, manifest = open_source(options.name).fetch("all")
    with waiting(f"verifying {options.name}"):
        checked = verify_folder(folder, manifest)
    print("\n".join(checked))
    if options.recipe:
        data = recipe_data(options.recipe, changes)
        data.prepare_data()
        data.setup("test")
        command = _command(options.name, options.recipe, changes)
        measured = remeasure(folder, data.test_dataloader(), dataset=options.recipe, command=command)
        for precision, accuracy in measured.accuracies.items():
            print(f"{precision}: test accuracy {100 * accuracy:.2f} % of {measured.samples} samples")


def _publish(options: argparse.Namespace) -> None:
    changes = recipe_changes(options)

    from ..files.weights import PRECISIONS

    folder, publication = zoo.publish(
        options.source,
        options.repo_id,
        data=recipe_data(options.recipe, changes) if options.recipe else None,
        recipe=options.recipe,
        command=_command(options.repo_id, options.recipe, changes) if options.recipe else None,
        license=options.license,
        precisions=options.precisions or PRECISIONS,
        with_unfolded=not options.folded_only,
        speed=options.speed,
        twins=dict(_twin(options, word) for word in options.twin),
        seeds=options.seeds,
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


def _twin(options: argparse.Namespace, word: str) -> tuple[str, str]:
    name, equals, path = word.partition("=")
    if not (name and equals and path):
        options.command.parser.error(f"--twin takes NAME=CHECKPOINT, such as ANN=runs/ann/last.ckpt; got {word!r}")
    return name, path


def _command(name: str, recipe: str, changes: Sequence[str]) -> str:
    """What measures the figures again; folders of this machine mean nothing elsewhere."""
    words = [f"{word.partition('=')[0]}=PATH" if Path(word.partition("=")[2]).is_dir() else word for word in changes]
    entry = name.rpartition("/")[2]
    return " ".join(["tspike zoo verify", entry if entry in zoo.list() else name, "--recipe", recipe, *words])


def _accuracy(entry: zoo.ZooEntry) -> str:
    """With the weights that are read by default."""
    read = entry.precision or "float32"
    accuracy = entry.metrics.get("test/acc1" if read == "float32" else f"test/acc1/{read}")
    return "" if accuracy is None else f"{100 * accuracy:.2f} %"
