"""Publishing to and loading from a Hub: the real client, in processes of its own, against a server on loopback.

This proves our use of the client and our files; not that the real Hub takes them (see ``hub_server.py``).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_tspike import zoo
from lightning_tspike.folding import fold
from lightning_tspike.models import create_network
from lightning_tspike.network import NetworkConfig
from lightning_tspike.store.folder import write_folder

_spec: Any = spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
hub_server = sys.modules.setdefault("hub_server", module_from_spec(_spec))
_spec.loader.exec_module(hub_server)

ENTRY = Path(zoo.__file__).parent / "weights" / "tspike-digits"

_LOOP = """
import json, sys, traceback
from pathlib import Path
import torch
from lightning_tspike import TernarySNNModule, zoo
from lightning_tspike.store import entries
entry = Path(zoo.__file__).parent / "weights" / "tspike-digits"

def load(name, **options):
    torch.manual_seed(0)
    return zoo.load(name, **options)(torch.randn(3, 1, 8, 8)).tolist()

def publish(repo_id, **options):
    publication = zoo.publish(entry, repo_id, folder=repo_id.replace("/", "-"), dry_run=False, **options)[1]
    return publication.revision, publication.is_new, publication.pull_request

for line in sys.stdin:
    try:
        answer = {"value": eval(json.loads(line), globals())}
    except BaseException as error:
        answer = {"error": f"{type(error).__name__}: {error}"}
    print("ANSWER" + json.dumps(answer), flush=True)
"""


class Client:
    """A process whose Hub is the server: it evaluates what it is told, with the real client."""

    def __init__(self, hub: Any, folder: Path, **environment: str) -> None:
        folder.mkdir(exist_ok=True)
        settings = {**os.environ, **hub.env(folder / "home"), "OMP_NUM_THREADS": "1", **environment}
        self.process: Any = subprocess.Popen(
            [sys.executable, "-c", _LOOP], cwd=folder, env=settings, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def __call__(self, expression: str) -> Any:
        answer = self._ask(expression)
        assert "error" not in answer, answer["error"]
        return answer["value"]

    def fails(self, expression: str) -> str:
        answer = self._ask(expression)
        assert "error" in answer, answer
        return answer["error"]

    def _ask(self, expression: str) -> dict[str, Any]:
        self.process.stdin.write(json.dumps(expression) + "\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("ANSWER"):
                return json.loads(line.removeprefix("ANSWER"))
        raise AssertionError("the client's process has ended")

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    with hub_server.HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    client = Client(server, tmp_path_factory.mktemp("client"))
    yield client
    client.close()


@pytest.fixture
def hub(server: Any) -> Any:
    """The server, without the faults of an earlier test."""
    server.faults.clear()
    server.requests.clear()
    return server


@pytest.fixture
def repo(request: pytest.FixtureRequest) -> str:
    """A repository of this test alone."""
    return "tester/" + re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:60].strip("-")


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    torch.manual_seed(0)
    return zoo.load("tspike-digits")(torch.randn(3, 1, 8, 8))


def same(logits: Any, expected: torch.Tensor) -> bool:
    return torch.allclose(torch.tensor(logits), expected, rtol=1e-4, atol=1e-4)


def put(hub: Any, repo_id: str, folder: Path) -> str:
    """A folder's files as a repository, made without a client; gives the commit."""
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    repository = hub.repos.setdefault(repo_id, hub_server.Repo())
    return repository.commit("main", repository.branches.get("main"), "made for the test", files)


@pytest.mark.slow
def test_round_trip(tmp_path: Path, expected: torch.Tensor) -> None:
    """Published, loaded in a fresh process with an empty cache, and again when there is no server any more."""
    name = "tester/digits"
    with hub_server.HubServer() as hub:
        publisher, loader = Client(hub, tmp_path / "a"), Client(hub, tmp_path / "b")
        revision, is_new, _ = publisher(f"publish({name!r}, tag='v1')")
        assert is_new
        repository = hub.repos[name]
        assert repository.branches["main"] == repository.tags["v1"] == revision
        assert set(repository.files()) - {".gitattributes"} == {
            "README.md", "config.json", "model.bfloat16.safetensors", "model.int8.safetensors", "model.safetensors",
            "fold_report.json", "unfolded/config.json", "unfolded/model.safetensors", "training_log.csv",
            "training_curves.png", "amplitudes.png", "firing_rates.png",
        }  # fmt: skip
        assert publisher(f"publish({name!r}, tag='v1')")[:2] == [revision, False]  # no second commit
        assert len(repository.commits) == 2  # the repository's own first one, and ours
        for there in (f"{name}@{revision}", f"{name}@v1", name):
            assert same(loader(f"load({there!r})"), expected)
        hub.stop()
        assert same(loader(f"load('{name}@{revision}')"), expected)
        offline = Client(hub, tmp_path / "b", HF_HUB_OFFLINE="1")
        assert same(offline(f"load({name!r})"), expected)
        error = offline.fails(f"load('{name}@v2')")
        assert "HF_HUB_OFFLINE is set" in error
        assert "fetch it online once" in error
        for process in (publisher, loader, offline):
            process.close()


def test_only_what_is_needed_is_fetched(hub: Any, client: Client, repo: str) -> None:
    put(hub, repo, ENTRY)
    client(f"zoo.transforms({repo!r}) and None")
    client(f"load({repo!r}, precision='int8')")
    client(f"TernarySNNModule.from_zoo({repo!r}, num_classes=3, lr=0.01) and None")
    fetched = {line.split("/resolve/")[1].partition("/")[2] for line in hub.requests if line.startswith("GET /tester")}
    assert fetched == {"config.json", "model.int8.safetensors", "unfolded/config.json", "unfolded/model.safetensors"}


def test_pull_request_leaves_main_alone(hub: Any, client: Client, repo: str) -> None:
    main, *_ = client(f"publish({repo!r})")
    revision, _, address = client(f"publish({repo!r}, create_pr=True, license='mit')")
    repository = hub.repos[repo]
    assert repository.branches == {"main": main, "refs/pr/1": revision}
    assert address.endswith("/1")
    assert "license: mit" in repository.files("refs/pr/1")["README.md"].decode()
    assert "license: apache-2.0" in repository.files()["README.md"].decode()
    assert "leave out one of tag and create_pr" in client.fails(f"publish({repo!r}, create_pr=True, tag='v2')")


def with_token(client: Client, token: str, expression: str) -> str:
    """The error of an expression with another token."""
    client(f"__import__('os').environ.update(HF_TOKEN={token!r})")
    try:
        return client.fails(expression)
    finally:
        client("__import__('os').environ.update(HF_TOKEN='hf_local')")


def test_private_repository(hub: Any, client: Client, repo: str, expected: torch.Tensor) -> None:
    client(f"publish({repo!r}, private=True)")
    assert hub.repos[repo].private
    put(hub, f"{repo}2", ENTRY)
    hub.repos[f"{repo}2"].private = True
    error = with_token(client, "", f"load('{repo}2')")
    assert "there is no such repository, or it is private and you may not see it" in error
    assert same(client(f"load('{repo}2')"), expected)


@pytest.mark.parametrize(("token", "status"), [("", "401"), ("hf_wrong", "401"), ("hf_read", "403")])
def test_publishing_without_permission(hub: Any, client: Client, repo: str, token: str, status: str) -> None:
    error = with_token(client, token, f"publish({repo!r})")
    assert error.startswith("HubError")
    assert f"({status})" in error or "no such repository" in error
    assert "HF_TOKEN" in error
    assert repo not in hub.repos


def test_tag_that_is_taken(hub: Any, client: Client, repo: str) -> None:
    first, *_ = client(f"publish({repo!r}, tag='v1')")
    error = client.fails(f"publish({repo!r}, tag='v1', license='mit')")
    assert f"tag 'v1' is taken by {first}: choose another tag" in error
    assert hub.repos[repo].tags == {"v1": first}


@pytest.mark.parametrize(
    "fault",
    [
        lambda hub: hub.fail(r"POST .*/commit/", 500),
        lambda hub: hub.fail(r"POST .*/commit/", 429),
        lambda hub: hub.fail(r"POST .*/repos/create", 503),
        lambda hub: hub.fail(r"POST .*/commit/", None),
        lambda hub: hub.cut(r"POST .*/commit/", 0),  # done, but the answer was lost
        lambda hub: hub.slow(r"POST .*/commit/", 2.0),
    ],
    ids=["500", "429", "503", "no-answer", "answer-lost", "slow"],
)
def test_publishing_to_a_hub_that_stumbles(hub: Any, client: Client, repo: str, fault: Callable[[Any], None]) -> None:
    fault(hub)
    revision, *_ = client(f"publish({repo!r})")
    assert not hub.faults
    assert hub.repos[repo].branches["main"] == revision
    assert len(hub.repos[repo].commits) == 2


def test_pull_request_whose_answer_was_lost_is_not_opened_twice(hub: Any, client: Client, repo: str) -> None:
    client(f"publish({repo!r})")
    hub.cut(r"POST .*/commit/", 0)
    assert client.fails(f"publish({repo!r}, create_pr=True, license='mit')").startswith("HubError")
    assert set(hub.repos[repo].branches) == {"main", "refs/pr/1"}


@pytest.mark.parametrize(
    "fault",
    [
        lambda hub: hub.fail(r"GET .*/model\.safetensors", 500),
        lambda hub: hub.fail(r"HEAD .*/config\.json", 429),
        lambda hub: hub.fail(r"HEAD .*/config\.json", None),
        lambda hub: hub.cut(r"GET .*/model\.safetensors", 10_000),
        lambda hub: hub.cut(r"GET .*/model\.safetensors", 10_000, reset=True),
        lambda hub: hub.slow(r"GET .*/model\.safetensors", 2.0),
        lambda hub: hub.tamper(r"GET .*/model\.safetensors"),
        lambda hub: hub.tamper(r"GET .*/config\.json"),
    ],
    ids=["500", "429", "no-answer", "cut", "reset", "slow", "tampered", "configuration-tampered"],
)
def test_loading_from_a_hub_that_stumbles(
    hub: Any, client: Client, repo: str, expected: torch.Tensor, fault: Callable[[Any], None]
) -> None:
    revision = put(hub, repo, ENTRY)
    fault(hub)
    assert same(client(f"load({repo!r})"), expected)
    assert not hub.faults
    hub.requests.clear()
    assert same(client(f"load('{repo}@{revision}')"), expected)  # what is in the cache now is whole
    assert not hub.requests


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (lambda hub: hub.fail(r"HEAD .*/config\.json", 403, times=9), "the Hub does not let you (403)"),
        (lambda hub: hub.fail(r"GET .*/model\.safetensors", 500, times=99), "status 500, also after several tries"),
        (lambda hub: hub.tamper(r"GET .*/model\.safetensors", times=9), "was changed after it was written"),
    ],
    ids=["403", "500", "tampered"],
)
def test_a_hub_that_does_not_recover(
    hub: Any, client: Client, repo: str, expected: torch.Tensor, fault: Callable[[Any], None], message: str
) -> None:
    put(hub, repo, ENTRY)
    fault(hub)
    assert message in client.fails(f"load({repo!r})")
    hub.faults.clear()  # later all is well again, and the cache holds nothing that is in the way
    assert same(client(f"load({repo!r})"), expected)


def test_what_is_not_there(hub: Any, client: Client, repo: str, tmp_path: Path) -> None:
    assert "there is no such repository" in client.fails("load('tester/nothing')")
    put(hub, repo, ENTRY)
    assert "the repository has no such revision" in client.fails(f"load('{repo}@v9')")
    (tmp_path / "README.md").write_text("empty")
    put(hub, f"{repo}2", tmp_path)
    assert "holds no network of lightning-tspike" in client.fails(f"load('{repo}2')")


_FIT = """
import lightning as L, warnings
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning_tspike.callbacks import FoldExport
from lightning_tspike.data import DigitsDataModule
small = {"layers": [1], "widths": [4]}
module = TernarySNNModule("tspike_resnet_small", num_classes=10, in_chans=1, timesteps=2, backbone_kwargs=small)
trainer = L.Trainer(max_epochs=1, limit_train_batches=2, limit_val_batches=1, accelerator="cpu", logger=False,
                    enable_progress_bar=False, callbacks=[ModelCheckpoint(FOLDER), FoldExport(publish=REPO)])
with warnings.catch_warnings(record=True) as warned:
    warnings.simplefilter("always")
    trainer.fit(module, DigitsDataModule(batch_size=32))
warned = [str(warning.message) for warning in warned]
"""


def test_callback_publishes_the_best_checkpoint(hub: Any, client: Client, repo: str, tmp_path: Path) -> None:
    """When training ends; a Hub that does not take it does not end the training with an error."""
    code = _FIT.replace("REPO", repr(repo)).replace("FOLDER", repr(str(tmp_path)))
    client(f"exec({code!r}, globals())")
    logits = client(f"zoo.load({repo!r})(torch.ones(2, 1, 8, 8)).tolist()")
    best = client("trainer.checkpoint_callback.best_model_path")
    torch.testing.assert_close(torch.tensor(logits), zoo.load(best)(torch.ones(2, 1, 8, 8)), rtol=1e-4, atol=1e-4)
    hub.fail(r"POST .*/commit/", 403)
    client(f"exec({code!r}, globals())")
    assert client("[w for w in warned if 'was not published, try' in w and '(403)' in w] != []")


def test_imagenet_entry_when_it_is_published(hub: Any, client: Client, tmp_path: Path) -> None:
    """The entry as a release would have it, with repository, commit and sha256; until then it says it is planned."""
    torch.manual_seed(0)
    images = torch.rand(2, 3, 32, 32)
    network = create_network(NetworkConfig("resnet34", num_classes=1000, timesteps=4)).eval()
    names = [f"class {i}" for i in range(1000)]
    preprocessing = {"input_size": [3, 224, 224], "mean": [0.5] * 3, "std": [0.2] * 3, "crop_pct": 0.9}
    folded, _ = fold(network, images.double())
    folder = write_folder(tmp_path / "net", folded, preprocessing=preprocessing, label_names=names)
    revision = put(hub, "tester/imagenet", folder)
    sha256 = json.loads((folder / "config.json").read_text())["sha256"]
    name = "tspike-resnet34-imagenet"
    error = client.fails(f"zoo.load({name!r})")
    assert "is planned" in error
    assert "tspike fit --config resnet34_imagenet" in error

    def release(sha256: str) -> None:
        made = {"repo_id": "tester/imagenet", "revision": revision, "sha256": sha256, "status": "trained"}
        client(
            "setattr(entries, 'ENTRIES', tuple(__import__('dataclasses').replace(e, **"
            f"({made!r} if e.name == {name!r} else {{}})) for e in entries.ENTRIES))"
        )

    release(sha256)
    logits = client(f"torch.manual_seed(0) and zoo.load({name!r})(torch.rand(2, 3, 32, 32)).tolist()")
    torch.testing.assert_close(torch.tensor(logits), folded(images), rtol=1e-3, atol=1e-3)
    cfg = client("zoo.load('resnet34.imagenet').pretrained_cfg")
    assert (cfg["label_names"][7], cfg["crop_pct"], cfg["num_classes"]) == ("class 7", 0.9, 1000)
    grey = "__import__('PIL.Image').Image.new('L', (300, 260), 128)"
    assert client(f"list(zoo.transforms({name!r})({grey}).shape)") == [3, 224, 224]
    release("0" * 64)
    assert "is not the one that is expected" in client.fails(f"zoo.load({name!r})")
