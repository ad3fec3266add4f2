"""From a checkpoint to a folder that can be published: what is refused, what the card says."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file, save_file

from lightning_tspike import zoo
from lightning_tspike.analysis.evaluation import evaluate
from lightning_tspike.cli.main import main
from lightning_tspike.data import DigitsDataModule
from lightning_tspike.files.weights import FILES, file_facts
from lightning_tspike.network import SpikingNetwork
from lightning_tspike.store.folder import FolderError, read_folder, read_manifest, write_folder
from lightning_tspike.store.manifest import seal
from lightning_tspike.store.publish import VerificationError, prepare, verify

ENTRY = Path(zoo.__file__).parent / "weights" / "tspike-digits"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder ready to be published, without figures."""
    return prepare(ENTRY, tmp_path / "net")


def change(folder: Path, spoil: Callable[[dict[str, Any]], None], file: str) -> None:
    """Change weights and mend all checksums, as somebody would who mixes files of two trainings."""
    weights = load_file(folder / file)
    spoil(weights)
    save_file(weights, folder / file)
    home = (folder / file).parent
    config = json.loads((home / "config.json").read_text())
    precision = next(known for known, name in FILES.items() if name == Path(file).name)
    config["weights"][precision] = file_facts(folder / file)
    (home / "config.json").write_text(json.dumps(seal(config)))
    if home != folder:
        outer = json.loads((folder / "config.json").read_text())
        outer["unfolded"] = seal(config)["sha256"]
        (folder / "config.json").write_text(json.dumps(seal(outer)))


def nudge(weights: dict[str, Any]) -> None:
    weights["fc.bias"] += 0.1


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("model.int8.safetensors", r"the int8 weights are no rounding of the others: fc\.bias differs"),
        ("model.bfloat16.safetensors", r"the bfloat16 weights are no rounding of the others: fc\.bias differs"),
        ("unfolded/model.safetensors", r"folding unfolded/ gives other weights: fc\.bias differs"),
    ],
)
def test_files_that_do_not_agree(folder: Path, file: str, message: str) -> None:
    assert len(verify(folder)) == 4
    change(folder, nudge, file)
    with pytest.raises(VerificationError, match=message):
        verify(folder)


def test_weights_that_fail_are_not_published(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "label_names": None}))
    with pytest.raises(FolderError, match="was changed after it was written"):
        zoo.publish(folder, "tester/net", folder=tmp_path / "out", dry_run=False)
    assert not (tmp_path / "out").exists()


def test_card(tmp_path: Path) -> None:
    """Figures of the weights that were read back, with the command that measures them again."""
    data = DigitsDataModule(batch_size=60)
    written, publication = zoo.publish(
        ENTRY, "tester/my-digits", data=data, recipe="digits", folder=tmp_path / "out", license="mit"
    )
    assert publication is None
    card = ModelCard.load(written / "README.md")
    assert card.data.license == "mit"
    assert card.data.model_name == "my-digits"
    figures = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert set(figures) == {f"top-1 accuracy, {precision} weights" for precision in FILES}
    assert all(value >= 0.97 for value in figures.values())
    assert "Measured by `tspike zoo verify tester/my-digits --recipe digits`" in card.text
    assert 'zoo.load("tester/my-digits")' in card.text
    assert "7 of 7 amplitudes folded" in card.text
    assert "synaptic operations" in card.text
    assert "(horowitz: 4.6 pJ per MAC, 0.9 pJ per accumulate)" in card.text
    for name in ("firing_rates.png", "amplitudes.png"):
        with Image.open(written / name) as picture:
            assert picture.size[0] > 300
    before = {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()}
    zoo.publish(ENTRY, "tester/my-digits", data=data, recipe="digits", folder=written, license="mit")
    assert {path.name: path.read_bytes() for path in written.iterdir() if path.is_file()} == before


def test_figures_go_along_with_the_weights(tmp_path: Path, lively: Callable[..., SpikingNetwork]) -> None:
    """Of a folder that was measured, without data: those of the weights that are the same again."""
    known = read_manifest(ENTRY).results
    assert known is not None
    again = prepare(ENTRY, tmp_path / "again")
    assert read_manifest(again).results == known
    card = ModelCard.load(again / "README.md")
    assert len(card.data.eval_results) == len(known.top1) == 3
    assert f"| ANN | {100 * known.twins['ANN']:.2f} % |" in card.text
    assert f"{known.synops:,.0f} synaptic operations" in card.text
    assert (again / "firing_rates.png").read_bytes() == (ENTRY / "firing_rates.png").read_bytes()
    change(again, nudge, "unfolded/model.safetensors")
    other = prepare(again, again)
    assert read_manifest(other).results is None
    assert "Not measured here" in (other / "README.md").read_text()
    assert not (other / "firing_rates.png").exists()
    write_folder(tmp_path / "new", lively("tspike_resnet_small", num_classes=3).float(), precisions=["int8"])
    assert ModelCard.load(prepare(tmp_path / "new", tmp_path / "new") / "README.md").data.eval_results is None


def test_only_some_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left out changes nothing else: the card's figures are those of a folder with all of it."""
    monkeypatch.chdir(tmp_path)
    words = ["zoo", "publish", str(ENTRY), "tester/small", "--recipe", "digits", "--folder", "out"]
    run(*words, "--precisions", "int8", "float32", "--folded-only")
    files = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.suffix == ".safetensors"}
    assert files == {"model.safetensors", "model.int8.safetensors"}
    assert verify("out") == [
        "float32 weights are whole and build tspike_resnet_small",
        "int8 weights are those rounded",
    ]
    card = (tmp_path / "out/README.md").read_text()
    assert "| `int8` | 99.72 % |" in card
    assert "bfloat16" not in card
    assert "unfolded" not in card
    with pytest.raises(ValueError, match=r"precisions must be some of \['float32', .*\], got \['int4'\]"):
        zoo.publish(ENTRY, "tester/small", precisions=["int4"], folder="other")
    assert not Path("other").exists()


def test_what_was_measured_is_in_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the network, of its twins and of other seeds, and how long it was trained; card and commands say it."""
    monkeypatch.chdir(tmp_path)
    for folder, options in {"a": [], "b": ["--seed_everything=5"], "ann": ["--model.neuron=none"]}.items():
        logger = "--trainer.logger=CSVLogger", "--trainer.logger.init_args.save_dir", folder
        short = "--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.limit_test_batches=0"
        run("fit", "--config", "digits", *options, *logger, *short)
    a, b, ann = (str(next(Path(folder).rglob("last.ckpt"))) for folder in ("a", "b", "ann"))
    words = ["zoo", "publish", a, "tester/net", "--recipe", "digits", "--folder", "out"]
    run(*words, "--twin", f"ANN={ann}", "--seeds", b, "--precisions", "float32", "--folded-only")
    results = read_manifest("out").results
    assert results is not None
    loader = DigitsDataModule()
    loader.setup("test")
    for path, found in [(a, results.top1["float32"]), (b, results.seeds[0]), (ann, results.twins["ANN"])]:
        assert found == evaluate(zoo.load(path), loader.test_dataloader()).accuracy
    assert results.top1["float32"] < results.top5["float32"] <= 1
    assert results.samples == 360
    assert 0 < results.training_seconds < 600
    assert results.synops > 0
    card = Path("out/README.md").read_text()
    assert f"| ANN | {100 * results.twins['ANN']:.2f} % |" in card
    assert f"| other seeds | {100 * results.seeds[0]:.2f} % |" in card
    assert "| over all seeds | " in card
    assert "@inproceedings{guo2024ternary," in card
    assert "| training took |" in card
    again = ["zoo", "publish", "out", "tester/net", "--recipe", "digits", "--folder", "again"]
    run(*again, "--precisions", "float32", "--folded-only")
    assert read_manifest("again").results == results  # what was measured of these weights goes along
    with pytest.raises(SystemExit) as caught:
        run(*words, "--twin", "ann")
    assert caught.value.code == 2
    with pytest.raises(ValueError, match="speed, twins or seeds stand beside the test accuracy"):
        zoo.publish(a, "tester/net", folder="other", seeds=[b])
    config = json.loads(Path("out/config.json").read_text())
    for change in ({"samples": 0}, {"top1": {"float32": 1.5}}, {"twins": {"ANN": "high"}}, {"macs": -1}, {"more": 1}):
        Path("out/config.json").write_text(json.dumps(seal(config | {"results": config["results"] | change})))
        with pytest.raises(FolderError, match="'results'"):
            read_manifest("out")


def test_figures_need_a_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="say which dataset was measured, and by which command"):
        zoo.publish(ENTRY, "tester/net", data=DigitsDataModule(), folder=tmp_path / "out")


def run(*words: str) -> None:
    main(list(words))


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("zoo", "info", "tspike-digits")
    printed = capsys.readouterr().out
    assert zoo.info("tspike-digits").sha256 in printed
    assert "read by default" not in printed  # as everywhere: the most precise
    run("zoo", "info", "tspike-cifar10-fast")
    assert "read by default:      int8" in capsys.readouterr().out
    run("zoo", "load", "tspike-digits")
    assert "tspike_resnet_small, T = 4, 10 classes" in capsys.readouterr().out
    run("zoo", "card", "tspike-digits")
    assert "model-index" in capsys.readouterr().out
    run("zoo", "verify", "tspike-digits", "--recipe", "digits", "--data.batch_size=90")
    printed = capsys.readouterr().out
    assert "the unfolded network folds to them" in printed
    assert f"float32: test accuracy {100 * zoo.info('tspike-digits').metrics['test/acc1']:.2f} %" in printed
    run("zoo", "publish", str(ENTRY), "tester/net", "--folder", "out")
    assert "nothing was published" in capsys.readouterr().out
    assert read_folder("out")
    run("zoo", "list", "--status", "planned")
    printed = capsys.readouterr().out
    assert "tspike-resnet34-imagenet" in printed
    assert "tspike-digits" not in printed


def test_what_goes_along_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Log and curves of the run that a checkpoint is of, as CSVLogger has written them."""
    monkeypatch.chdir(tmp_path)
    logger = "--trainer.logger=CSVLogger", "--trainer.logger.init_args.save_dir=runs"
    run("fit", "--config", "digits", "--trainer.max_epochs=2", "--trainer.limit_train_batches=3", *logger)
    (checkpoint,) = tmp_path.glob("runs/*/version_0/checkpoints/best.ckpt")
    written = prepare(checkpoint, tmp_path / "net")
    lines = (written / "training_log.csv").read_text().splitlines()
    assert lines[0].startswith("epoch,step,train/acc1")
    assert sum(line[:2] == "0," for line in lines) >= 2  # training and validation
    with Image.open(written / "training_curves.png") as picture:
        assert picture.size[0] > 300
    assert "![loss and accuracy over the steps](training_curves.png)" in (written / "README.md").read_text()
    again = prepare(prepare(written, tmp_path / "folded", with_unfolded=False), tmp_path / "again")
    for name in ("training_log.csv", "training_curves.png", "fold_report.json"):  # it goes along from folder to folder
        assert (again / name).read_bytes() == (written / name).read_bytes()
    assert "7 of 7 amplitudes folded" in (again / "README.md").read_text()
    (again / "fold_report.json").write_text('{"neurons": [{}]}')
    with pytest.raises(
        ValueError, match=r"again/fold_report.json is no report of a fold.*remove it to publish without"
    ):
        prepare(again, tmp_path / "once more")


def test_the_ann_of_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained, exported and published by the same commands; its card speaks of no spikes."""
    monkeypatch.chdir(tmp_path)
    ann = "--model.neuron=none", "--model.timesteps=1"
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run("fit", "--config", "digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3", *ann)
    assert not [warning for warning in warned if "synaptic operations" in str(warning.message)]
    (folded,) = tmp_path.glob("runs/*/version_0/checkpoints/best.folded")
    assert not zoo.load(folded).neurons()
    data = DigitsDataModule(batch_size=60)
    written, _ = zoo.publish(folded, "tester/ann", data=data, recipe="digits", folder="out")
    card = (written / "README.md").read_text()
    assert "# tspike_resnet_small, an ANN" in card
    assert "| `float32` | " in card
    assert "spiking-neural-network" not in card
    assert not list(written.glob("*rates.png"))


def test_classify(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Image files with the entry's own preprocessing and labels."""
    from sklearn.datasets import load_digits

    monkeypatch.chdir(tmp_path)
    digits = load_digits()
    for i in (0, 1, 2):
        image = Image.fromarray((digits.images[i] * 255 / 16).round().astype("uint8"))
        image.convert("RGB").save(f"digit{i}.png")
    run("classify", "tspike-digits", "digit0.png", "digit1.png", "digit2.png")
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(" digit")]
    assert [row[:2] for row in rows] == [["digit0.png", "0"], ["digit1.png", "1"], ["digit2.png", "2"]]
    assert all(0.5 < float(row[2]) <= 1 for row in rows)
    run("classify", "tspike-digits", "--top", "3", "digit0.png")
    assert capsys.readouterr().out.count("digit0.png") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["zoo", "load", "tspike-digit"], "no entry 'tspike-digit'; did you mean 'tspike-digits'"),
        (["zoo", "load", "tspike-resnet34-imagenet"], "is planned"),
        (["zoo", "load", "./nowhere"], "there is no folder"),
        (["zoo", "verify", "tspike-digits", "--recipe", "digit"], "did you mean 'digits'"),
        (["classify", "tspike-digits", "none.png"], "none.png cannot be read as an image"),
        (["classify", "tspike-digits", "text.png"], "text.png cannot be read as an image"),
        (["classify", "tspike-nmnist", "text.png"], "classifies recordings of event cameras, not images"),
        (["zoo", "publish", "text.png", "tester/net"], "is damaged or not a Lightning checkpoint"),
    ],
)
def test_mistakes_are_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("no image")
    with pytest.raises(SystemExit) as caught:
        run(*words)
    assert message in str(caught.value)


def test_unfolded_checkpoint_is_folded(tmp_path: Path) -> None:
    """A folder that is not folded yet is, and its own weights go to unfolded/."""
    written, _ = zoo.publish(ENTRY / "unfolded", "tester/net", folder=tmp_path / "out")
    x = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(zoo.load(written)(x), zoo.load("tspike-digits")(x))
    assert torch.equal(zoo.load(written, folded=False)(x), zoo.load("tspike-digits", folded=False)(x))
