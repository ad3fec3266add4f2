"""What a name or a path stands for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lightning_tspike import zoo
from lightning_tspike.cli.main import main
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.store.folder import write_folder
from lightning_tspike.store.source import CheckpointSource, FolderSource, HubSource, open_path

WRITTEN = Path(__file__).parent / "written_before"


@pytest.mark.parametrize("name", ["tspike-digits", "tspike_resnet_small.digits"])
def test_entries(name: str) -> None:
    source = zoo.open_source(name)
    assert isinstance(source, FolderSource)
    assert source.sha256 == zoo.info("tspike-digits").sha256
    folder, manifest = source.fetch("all")
    assert manifest.sha256 == source.sha256
    assert manifest.precisions == ["float32", "bfloat16", "int8"]
    assert {file.name for file in folder.iterdir()} >= {"config.json", "README.md", "model.int8.safetensors"}


@pytest.mark.parametrize("as_path", [str, Path])
def test_what_is_on_disk(as_path: type) -> None:
    assert zoo.open_source(as_path(WRITTEN / "net")) == FolderSource(WRITTEN / "net")
    assert zoo.open_source(as_path(WRITTEN / "a.ckpt")) == CheckpointSource(WRITTEN / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "revision"), [("some-org/net", "main"), ("some-org/net@v1", "v1"), ("a/b.c@refs/pr/1", "refs/pr/1")]
)
def test_repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, revision: str) -> None:
    """Unless there is a folder of that name."""
    monkeypatch.chdir(tmp_path)
    source = zoo.open_source(name)
    assert isinstance(source, HubSource)
    assert (source.repo_id, source.revision) == (name.partition("@")[0], revision)
    Path(name).mkdir(parents=True)
    assert zoo.open_source(name) == FolderSource(Path(name))


@pytest.mark.parametrize("name", ["./nowhere", "../a/b", "a/b/c", "a//b", "/nowhere", "a/b c"])
def test_nothing_of_that_name(name: str) -> None:
    with pytest.raises(zoo.ZooError, match="there is no folder and no checkpoint /"):
        zoo.open_source(name)


def test_names_of_the_zoo_go_first_but_not_for_what_is_to_be_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    own = create_network(NetworkConfig("tspike_resnet_small", num_classes=3, in_chans=1, timesteps=2))
    write_folder("tspike-digits", own)
    assert zoo.load("tspike-digits").num_classes == 10
    assert zoo.load("./tspike-digits").num_classes == 3
    assert open_path("tspike-digits").read_saved().network.num_classes == 3
    written, _ = zoo.publish("tspike-digits", "some-org/net")
    assert zoo.load(written).num_classes == 3
    shutil.copy(WRITTEN / "a.ckpt", "tspike-cifar10")
    assert isinstance(zoo.open_source("./tspike-cifar10"), CheckpointSource)


def test_what_needs_a_folder_refuses_a_checkpoint() -> None:
    for command in ("verify", "card"):
        with pytest.raises(SystemExit, match=r"a\.ckpt is a checkpoint, not a network's folder: write one by"):
            main(["zoo", command, str(WRITTEN / "a.ckpt")])


def test_a_checkpoint_reads_as_the_folder_that_it_would_be() -> None:
    source = zoo.open_source(WRITTEN / "a.ckpt")
    network, manifest = source.read()
    assert manifest.network == network.config
    assert (manifest.weights, manifest.unfolded, manifest.amplitudes) == ({}, None, ())
    assert manifest.label_names == tuple("0123456789")
    assert source.read_input_spec() == manifest.preprocessing
    start, unfolded = source.read(folded=False)
    assert len(unfolded.amplitudes) == len(start.neurons()) > 0
    assert not start.training
    assert torch.equal(start.model.conv1.weight, source.read_saved().network.model.conv1.weight)


def test_a_folders_manifest_is_what_its_file_says() -> None:
    _, manifest = zoo.open_source(WRITTEN / "net").fetch("config")
    said = json.loads((WRITTEN / "net" / "config.json").read_text())
    # what came later, as it was before
    said["network"] |= {"levels": 1, "couple_threshold": False}
    said |= {"schema_version": 4, "standardized": [], "results": None}
    assert manifest.to_dict() == said
