"""The model zoo: folded networks by name, from the Hugging Face Hub, or from disk.

from lightning_tspike import zoo

zoo.list()                         # names of all entries
zoo.info("tspike-digits")          # one entry: architecture, recipe, measured accuracy
zoo.load("tspike-digits")          # its network, folded, in eval mode
zoo.load("ORG/NAME@REVISION")      # anybody's on the Hub
zoo.load("runs/digits/version_0/checkpoints/best.folded")
zoo.transforms("tspike-digits")    # from a PIL image to its input
zoo.publish("runs/digits/version_0/checkpoints/best.ckpt", "ORG/NAME")
"""

from __future__ import annotations

import builtins
import difflib
import fnmatch
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .entries import ENTRIES, ZooEntry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from ..files.weights import Precision
    from ..network.spiking_network import SpikingNetwork

__all__ = [
    "ZooEntry", "ZooError", "find", "info", "list", "load", "load_with_config", "publish", "recipe_path",
    "transform_of", "transforms", "verify",
]  # fmt: skip

_HERE = Path(__file__).parent

Needs = Literal["config", "card", "weights", "unfolded", "all"]


class ZooError(LookupError):
    """There is no such entry, or it has no weights yet; the message says what there is."""


def list(pattern: str = "*", status: Literal["trained", "planned"] | None = None) -> builtins.list[str]:
    """Names of the entries in alphabetical order.

    Args:
        pattern: A shell pattern such as ``"*resnet*"``.
        status: Only those that are ``"trained"`` or ``"planned"``.

    Raises:
        ValueError: There is no such status.
    """
    if status not in (None, "trained", "planned"):
        raise ValueError(f"status must be 'trained', 'planned' or None, got {status!r}")
    entries = (entry for entry in ENTRIES if status in (None, entry.status))
    return sorted(fnmatch.filter((entry.name for entry in entries), pattern))


def info(name: str) -> ZooEntry:
    """The entry of this name, or of this architecture and tag (``"tspike_resnet_small.digits"``).

    Raises:
        ZooError: There is none; the message has close names.
    """
    names = _names()
    if name in names:
        return names[name]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"there are {', '.join(map(repr, list()))}"
    raise ZooError(f"the zoo has no entry {name!r}; {hint}")


def load(
    name_or_path: str | os.PathLike[str],
    *,
    folded: bool = True,
    precision: Precision | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    timesteps: int | None = None,
) -> SpikingNetwork:
    """Load a network, ready to classify.

    Args:
        name_or_path: Name of an entry; ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hugging Face Hub; a network's
            folder, such as FoldExport writes; or a checkpoint, which is folded. Names of the zoo go first: write
            ``./NAME`` for a folder of that name.
        folded: False loads the network before folding, to train it on, where that was published.
        precision: Which of the files of weights to read, ``"float32"``, ``"bfloat16"`` or ``"int8"``; by default the
            most precise that is there.
        device: Where to put the network; default is the CPU.
        dtype: What to convert it to; it is float32 whatever the precision of the file.
        timesteps: Number of time steps T for which it is shown an image; default is that of its training.

    Returns:
        The network in eval mode: images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, K]. Its
        ``pretrained_cfg`` has what is known of its input and classes.

    Raises:
        ValueError: ``timesteps`` is no whole number of at least 1.
        ZooError: There is nothing of that name, or the entry is planned and has no weights yet, or there is no unfolded
            network.
        lightning_tspike.store.hub.HubError: The Hub cannot be reached, or does not have it.
        lightning_tspike.store.folder.FolderError: The folder is incomplete, damaged or was changed.
        lightning_tspike.store.checkpoint.CheckpointError: The file is no checkpoint.
    """
    import torch

    if timesteps is not None:
        from ..neurons import check_timesteps

        check_timesteps(timesteps)  # before anything is fetched
    network, _ = load_with_config(name_or_path, folded=folded, precision=precision)
    if timesteps is not None:
        network.timesteps = timesteps
    with torch.inference_mode(False):
        return network.to(device=device, dtype=dtype)


def load_with_config(
    name_or_path: str | os.PathLike[str], *, folded: bool = True, precision: Precision | None = None
) -> tuple[SpikingNetwork, dict[str, Any]]:
    """As :func:`load`, and the contents of its ``config.json`` (of a checkpoint: what that would be)."""
    if _is_file(name_or_path):
        return _load_checkpoint(Path(name_or_path), folded=folded, precision=precision)
    from ..store.folder import FolderError

    needs: Needs = "weights" if folded else "unfolded"
    folder, sha256 = find(name_or_path, needs=needs, precision=precision)
    try:
        return _read(folder, sha256, folded, precision)
    except FolderError:
        if folder.parent.name != "snapshots":
            raise
    # a file in the cache of the Hub is damaged: fetch it again, once
    folder, sha256 = find(name_or_path, needs=needs, precision=precision, anew=True)
    return _read(folder, sha256, folded, precision)


def find(
    name_or_path: str | os.PathLike[str],
    *,
    needs: Needs = "weights",
    precision: Precision | None = None,
    anew: bool = False,
) -> tuple[Path, str | None]:
    """Where the folder of a network lies on disk, fetched from the Hub if need be.

    Args:
        name_or_path: As for :func:`load`, but no checkpoint.
        needs: What is to be there beside ``config.json``: nothing (``"config"``), the ``"card"``, the ``"weights"``,
            the ``"unfolded"`` network, or ``"all"``.
        precision: Of the weights.
        anew: Fetch again what is in the cache already.

    Returns:
        The folder, and the ``sha256`` that its configuration must have, where the zoo knows it.

    Raises:
        ZooError, HubError, FolderError: As :func:`load`.
    """
    name = os.fspath(name_or_path)
    entry = info(name) if name in _names() or not _is_place(name) else None
    if entry is not None and (_HERE / "weights" / entry.name).is_dir():
        folder, sha256 = _HERE / "weights" / entry.name, entry.sha256
    elif entry is not None and entry.repo_id and entry.revision:
        folder, sha256 = _fetch(entry.repo_id, entry.revision, needs, precision, anew), entry.sha256
    elif entry is not None:
        raise ZooError(
            f"{name!r} is planned: its weights do not exist yet. The recipe {entry.recipe!r} trains it: "
            f"tspike fit --config {entry.recipe}  ({recipe_path(entry.recipe)})"
        )
    elif Path(name).is_dir():
        folder, sha256 = Path(name), None
    elif (repository := _repository(name)) is not None:
        from ..store.hub import HubError

        try:
            folder, sha256 = _fetch(*repository, needs, precision, anew), None
        except HubError as error:
            raise HubError(f"{error} (nor is there a folder {Path(name).resolve()})") from error
    else:
        raise ZooError(f"there is no folder {Path(name).resolve()}")
    return folder, sha256


def transforms(name_or_path: str | os.PathLike[str]) -> Callable[[Any], torch.Tensor]:
    """What makes a network's input of new data, as in its training's evaluation.

    Args:
        name_or_path: As for :func:`load`.

    Returns:
        A function from a PIL image to a tensor [C, H, W]; or, of a network for event cameras, from tonic's events (an
        array with fields x, y, t, p) to frames [T, P, H, W].

    Raises:
        ZooError: The preprocessing is not known; otherwise as :func:`load`.
    """
    if _is_file(name_or_path):
        from ..store.checkpoint import read_checkpoint

        preprocessing = read_checkpoint(Path(name_or_path)).preprocessing
    else:
        from ..store.folder import read_manifest

        folder, sha256 = find(name_or_path, needs="config")
        preprocessing = read_manifest(folder, sha256=sha256)["preprocessing"]
    return transform_of(preprocessing, os.fspath(name_or_path))


def transform_of(preprocessing: Mapping[str, Any] | None, name: str) -> Callable[[Any], torch.Tensor]:
    """As :func:`transforms`, of a ``preprocessing`` that was read already from ``name``."""
    from ..files.bounds import check_preprocessing

    try:
        preprocessing = check_preprocessing(preprocessing)
    except ValueError as error:
        raise ZooError(f"{name} does not say what its input is: {error}") from error
    if missing := {"input_size", "mean", "std"} - preprocessing.keys():
        raise ZooError(f"{name} does not say what its input is: {sorted(missing)} are not known")
    if "frames" in preprocessing:
        from ..data.event_frames import frames_transform

        return frames_transform(preprocessing)
    from ..data.image_transforms import any_image_transform

    return any_image_transform(preprocessing)


def verify(name_or_path: str | os.PathLike[str]) -> builtins.list[str]:
    """Check that a network's files are whole and agree with each other, see :mod:`lightning_tspike.store.publish`.

    Args:
        name_or_path: As for :func:`load`, but no checkpoint.

    Returns:
        What was checked, a line each.

    Raises:
        lightning_tspike.store.publish.VerificationError: Two files do not agree; otherwise as :func:`load`.
    """
    from ..store.publish import verify as check

    folder, sha256 = find(name_or_path, needs="all")
    return check(folder, sha256=sha256)


def publish(
    source: str | os.PathLike[str],
    repo_id: str,
    *,
    data: Any = None,
    dataset: str | None = None,
    command: str | None = None,
    recipe: str | None = None,
    license: str = "apache-2.0",
    folder: str | os.PathLike[str] | None = None,
    dry_run: bool = True,
    private: bool = False,
    create_pr: bool = False,
    tag: str | None = None,
) -> Any:
    """Fold, verify and measure a network, write the folder to be published, and publish it if told to.

    Args:
        source: A checkpoint of TernarySNNModule, or a network's folder.
        repo_id: ``ORG/NAME``; where NAME is one of the zoo's entries, the card takes it and its dataset from there.
        data: LightningDataModule whose test set is measured; without it the card has no figures.
        dataset: Name of the data, for the card.
        command: What measures it again, for the card; default is ``tspike zoo verify`` with the recipe.
        recipe: Name of the recipe that trained it.
        license: Of the weights.
        folder: Where the folder is written; default is beside ``source``, ``NAME.hub``.
        dry_run: Only write the folder; look at its README.md, then say False.
        private: Whether a new repository is private.
        create_pr: Open a pull request instead of changing the main branch.
        tag: Name for the commit.

    Returns:
        The folder; and the :class:`lightning_tspike.store.hub.Publication`, or None in a dry run.

    Raises:
        ValueError: There is data, but neither its name nor a recipe; a pull request with a tag.
        lightning_tspike.store.publish.VerificationError: The files do not agree; nothing was published.
        lightning_tspike.store.hub.HubError: The Hub did not take it. Otherwise as :func:`load`.
    """
    from ..store.publish import prepare

    if tag and create_pr:
        raise ValueError("a pull request cannot be tagged before it is merged: leave out one of tag and create_pr")
    source = Path(source)
    target = Path(folder) if folder is not None else source.with_suffix(".hub")
    if data is not None:
        data.prepare_data()
        data.setup("test")
    name = repo_id.rpartition("/")[2]
    entry = _names().get(name)
    name = name if entry else repo_id
    written = prepare(
        source,
        target,
        data.test_dataloader() if data is not None else None,
        dataset=dataset or (entry.dataset if entry else recipe),
        command=command or (f"tspike zoo verify {name} --recipe {recipe}" if recipe else None),
        label_names=getattr(data, "class_names", None),
        name=name,
        recipe=recipe,
        license=license,
    )
    if dry_run:
        return written, None
    from ..store.hub import upload

    message = f"{name.rpartition('/')[2]} by lightning-tspike"
    return written, upload(written, repo_id, message=message, private=private, create_pr=create_pr, tag=tag)


def recipe_path(name: str) -> Path:
    """The YAML file of a recipe that comes with the package.

    Raises:
        ZooError: There is none of that name; the message has close names.
    """
    recipes = {path.stem: path for path in sorted((_HERE / "recipes").glob("*.yaml"))}
    if name in recipes:
        return recipes[name]
    close = difflib.get_close_matches(name, recipes, n=3) or builtins.list(recipes)
    raise ZooError(f"there is no recipe {name!r}; did you mean {', '.join(map(repr, close))}?")


def _names() -> dict[str, ZooEntry]:
    """The entries by all that they are called."""
    return {key: entry for entry in ENTRIES for key in (entry.name, f"{entry.architecture}.{entry.tag}")}


def _is_file(name_or_path: str | os.PathLike[str]) -> bool:
    return Path(name_or_path).is_file() and os.fspath(name_or_path) not in _names()


def _is_place(name: str) -> bool:
    """Whether a name can be none of the zoo's, but a folder's or a repository's."""
    return os.sep in name or "/" in name or Path(name).is_dir()


def _repository(name: str) -> tuple[str, str] | None:
    """``ORG/NAME@REVISION`` as (repository, revision), where it has that form."""
    repo_id, _, revision = name.partition("@")
    parts = repo_id.split("/")
    allowed = all(part and part.strip(".") and part.replace("-", "").replace("_", "").replace(".", "").isalnum()
                  for part in parts)  # fmt: skip
    return (repo_id, revision or "main") if len(parts) == 2 and allowed else None


def _fetch(repo_id: str, revision: str, needs: Needs, precision: Precision | None, anew: bool) -> Path:
    from ..files.weights import FILES
    from ..store.folder import CARD, CONFIG, UNFOLDED, FolderError, read_manifest
    from ..store.hub import fetch
    from ..store.manifest import precisions_in

    folder = fetch(repo_id, revision, [CONFIG], anew=anew)
    try:
        config = read_manifest(folder)
    except FolderError:
        if anew:
            raise
        return _fetch(repo_id, revision, needs, precision, anew=True)  # damaged on its way, or in the cache
    there = precisions_in(config)
    unfolded = [f"{UNFOLDED}/{CONFIG}", f"{UNFOLDED}/{FILES['float32']}"] if config["unfolded"] else []
    names = {
        "config": [],
        "card": [CARD],
        "weights": [FILES[precision if precision in there else there[0]]],
        "unfolded": unfolded,
        "all": [*(FILES[known] for known in there), *unfolded, CARD],
    }[needs]
    return fetch(repo_id, folder.name, names, anew=anew) if names else folder


def _read(
    folder: Path, sha256: str | None, folded: bool, precision: Precision | None
) -> tuple[SpikingNetwork, dict[str, Any]]:
    from ..store.folder import UNFOLDED, read_folder, read_manifest

    if folded:
        return read_folder(folder, precision=precision, sha256=sha256)
    inner = read_manifest(folder, sha256=sha256)["unfolded"]
    if inner is None:
        raise ZooError(f"{folder} holds a network that was published folded alone: load it with folded=True")
    return read_folder(folder / UNFOLDED, sha256=inner)


def _load_checkpoint(path: Path, *, folded: bool, precision: Precision | None) -> tuple[SpikingNetwork, dict[str, Any]]:
    import torch

    from ..files.bounds import MOST_FOLDED_TIMESTEPS
    from ..folding.absorb import fold
    from ..store.checkpoint import read_checkpoint
    from ..store.folder import timm_cfg
    from ..store.manifest import describe

    if precision not in (None, "float32"):
        raise ZooError(f"{path} is a checkpoint, whose weights are float32: precision={precision!r} is for folders")
    saved = read_checkpoint(path)
    if folded and saved.network.timesteps > MOST_FOLDED_TIMESTEPS:
        raise ZooError(
            f"{path} has {saved.network.timesteps} timesteps, and folding runs them all: above {MOST_FOLDED_TIMESTEPS} "
            "only if you say so; load it with folded=False and call lightning_tspike.fold"
        )
    with torch.inference_mode(False):
        network = fold(saved.network)[0] if folded else saved.network.eval()
    facts: dict[str, Any] = {"preprocessing": saved.preprocessing, "label_names": saved.label_names}
    config = describe(network, weights={}, unfolded=None, **facts)
    network.pretrained_cfg = timm_cfg(config)
    return network, config
