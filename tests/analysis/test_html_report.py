"""The HTML report of real runs: what is in it, that a browser draws it, and what is said where there is nothing."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lightning_tspike import TernarySNNModule
from lightning_tspike.analysis import ReportSection, SectionContent, html_report
from lightning_tspike.analysis.html_report import ReportError
from lightning_tspike.analysis.run_logs import RunLogs
from lightning_tspike.analysis.run_summary import RunSummary
from lightning_tspike.callbacks import (
    REPORT_SECTIONS,
    AmplitudeLogger,
    EnergyMonitor,
    FiringRateMonitor,
    FoldExport,
    MembraneHistogram,
)
from lightning_tspike.cli.main import main
from lightning_tspike.data import DigitsDataModule

write_report = partial(html_report.write_report, sections=REPORT_SECTIONS)

TITLES = ["Learning curves", "Amplitudes", "Membrane potentials", "Firing rates", "Energy", "Fold"]


@pytest.fixture(scope="module", params=["csv", "tensorboard"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training run with every callback."""
    folder = tmp_path_factory.mktemp(request.param)
    logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[request.param](folder, name="", version="run")
    watching = [AmplitudeLogger(2), EnergyMonitor(), FiringRateMonitor(2), FoldExport(), MembraneHistogram(2)]
    trainer = L.Trainer(
        max_epochs=2, limit_train_batches=6, log_every_n_steps=2, accelerator="cpu", logger=logger,
        callbacks=[ModelCheckpoint(filename="best", monitor="val/acc1", mode="max"), *watching],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(TernarySNNModule("tspike_resnet_small", 10, 2, 1, freeze_cancelled=False), DigitsDataModule())
    return folder / "run"


def test_every_section_is_there(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run)])
    assert capsys.readouterr().out.strip() == str(run / "report.html")
    page = (run / "report.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == TITLES
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)  # nothing to fetch
    energy = json.loads((run / "energy.json").read_text())
    assert f"{energy['synops']:,.0f} accumulates" in page
    assert "accounting horowitz: 4.6 pJ per MAC, 0.9 pJ per accumulate" in page
    membrane = json.loads((run / "membrane.json").read_text())
    assert membrane["last"]["step"] == 10
    assert f"<td>{membrane['last']['layers']['act1']['fires']:.4f}</td>" in page
    assert "cancelled by a norm" in page
    pictures = re.findall(r'src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert len(pictures) == 7
    assert all(b"<svg" in base64.b64decode(picture) for picture in pictures)


@pytest.mark.parametrize("run", ["csv"], indirect=True)  # the page does not depend on the logger
def test_a_browser_draws_every_chart(run: Path, tmp_path: Path, browser: str) -> None:
    """Headless Chromium lays the page out, and every chart's place in a screenshot holds more than one colour."""
    page = write_report(run, tmp_path / "report.html")
    asking = tmp_path / "asking.html"  # the same page, which then writes down where its charts are
    asking.write_text(
        page.read_text().replace(
            "</body>",
            "<pre id=places></pre><script>onload = () => {const places = [...document.images].map(i => {"
            "const b = i.getBoundingClientRect(); return [i.naturalWidth, b.left, b.top, b.right, b.bottom]});"
            "document.getElementById('places').textContent = JSON.stringify(places)}</script></body>",
        )
    )
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += ["--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND"]
    dom = subprocess.run(
        [*command, "--window-size=1200,900", "--dump-dom", asking.as_uri()],
        capture_output=True, text=True, check=True, timeout=120,
    ).stdout  # fmt: skip
    places = json.loads(re.search(r'<pre id="places">(.*?)</pre>', dom)[1])
    assert len(places) == 7
    height = int(max(bottom for *_, bottom in places)) + 50
    shot = tmp_path / "shot.png"
    subprocess.run(
        [*command, f"--window-size=1200,{height}", f"--screenshot={shot}", page.as_uri()],
        capture_output=True, check=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as picture:
        for width, *box in places:
            assert width > 0
            chart = picture.convert("RGB").crop(tuple(map(int, box)))
            colours = chart.getcolors(10**7)
            blank = max(count for count, _ in colours) / (chart.width * chart.height)
            assert len(colours) > 50
            assert blank < 0.99


def test_the_fold_is_the_best_checkpoints(run: Path, tmp_path: Path) -> None:
    """Not that of the last epoch, which is the newer folder."""
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.5\n")
    for name in ("best", "last"):
        shutil.copytree(run / "checkpoints/best.folded", tmp_path / f"checkpoints/{name}.folded")
    (tmp_path / "checkpoints/last.folded/fold_report.json").touch()
    assert "<p>checkpoints/best.folded: " in write_report(tmp_path).read_text()
    shutil.rmtree(tmp_path / "checkpoints/best.folded")
    assert "<p>checkpoints/last.folded: " in write_report(tmp_path).read_text()


def test_only_what_was_logged(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss\n0,0,2.5\n0,10,1.5\n")
    page = write_report(tmp_path, tmp_path / "elsewhere.html").read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Learning curves"]
    assert not (tmp_path / "report.html").exists()


def test_a_section_of_your_own(tmp_path: Path) -> None:
    """Shown where it stands among the others; without anything to show, left out."""

    def draw(logs: RunLogs) -> SectionContent | None:
        series = logs.scalars.get("coffee/cups")
        return SectionContent(f"{series[1][-1]:.0f} cups") if series else None

    sections = [ReportSection("Coffee", draw), *REPORT_SECTIONS]
    (tmp_path / "metrics.csv").write_text("step,coffee/cups,amplitude/a\n0,1,1\n9,3,2\n")
    page = html_report.write_report(tmp_path, sections=sections).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Coffee", "Amplitudes"]
    assert "<p>3 cups</p>" in page
    (tmp_path / "metrics.csv").write_text("step,amplitude/a\n0,1\n9,2\n")
    page = html_report.write_report(tmp_path, sections=sections).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Amplitudes"]


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,amplitude/<script>x\n0,1.5\n")
    assert "<script>" not in write_report(tmp_path).read_text()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither metrics.csv"),
        ({"metrics.csv": "step,train/loss\n1,hello\n"}, r"metrics\.csv: train/loss has the value 'hello' at step '1'"),
        ({"metrics.csv": "step,train/loss\n1,2\n", "energy.json": "{"}, r"energy\.json cannot be read"),
        ({"metrics.csv": "step,train/loss\n1,2\n", "membrane.json": "{}"}, r"not as lightning-tspike's.*'first'"),
        (
            {"metrics.csv": "step,amplitude/a\n1,2\n", "amplitude_history.json": '{"steps": [0], "layers": {"a": []}}'},
            r"not as lightning-tspike's.*zip",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == files.keys()


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="tspike: there is no folder"):
        main(["report", str(tmp_path / "nowhere")])


FILES = [
    "metrics.csv",
    "membrane.json",
    "energy.json",
    "amplitude_history.json",
    "checkpoints/best.folded/fold_report.json",
]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "link"])
def test_what_is_no_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    """A pipe would keep the reader waiting for ever; a link may lead to a file that is none of the run's."""
    run = tmp_path / "run"
    (run / name).parent.mkdir(parents=True)
    (run / "metrics.csv").write_text("step,train/loss\n1,2\n")
    (run / name).unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(run / name)
    else:
        (tmp_path / "private.json").write_text('{"first": 1}')
        (run / name).symlink_to(tmp_path / "private.json")
    with pytest.raises(ReportError, match=rf"{Path(name).name} is not a regular file"):
        write_report(run)


def test_a_link_in_the_place_of_the_page_is_not_followed(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("step,train/loss\n1,2\n")
    for name in (".report.html.partial", "report.html"):
        (run / name).symlink_to(victim)
    assert "Learning curves" in write_report(run).read_text()
    assert victim.read_text() == "mine"
    assert {path.name for path in run.iterdir()} == {"metrics.csv", "report.html", ".report.html.partial"}


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    """No formula, no control character, and what is not UTF-8 does not stop the report."""
    (tmp_path / "metrics.csv").write_bytes(b"step,amplitude/$\\frac{$,amplitude/\xff\x00,train/$x$\n0,1.5,2,3\n")
    page = write_report(tmp_path).read_text()
    assert r"<td>$\frac{$</td>" in page
    assert "<td>\ufffd\ufffd</td>" in page


def test_steps_that_are_not_finite_are_counted(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("step,amplitude/act1\n0,1.5\n1e400,9\nnan,8\n20,1e300\n30,2.5\n")
    page = write_report(tmp_path).read_text()
    assert "2 values at steps that are not finite are left out" in page
    assert "<td>1.5000</td><td>2.5000</td>" in page


def test_what_is_not_drawn_is_said(tmp_path: Path) -> None:
    columns = [f"{kind}/{k}" for kind in ("train", "amplitude") for k in range(1500)]
    (tmp_path / "metrics.csv").write_text(
        f"step,{','.join(columns)}\n" + "".join(f"{r}{',1' * 3000}\n" for r in (0, 9))
    )
    page = write_report(tmp_path).read_text()
    assert "Drawn are 24 of 1,500 quantities; 1,476 are left out." in page
    assert "Drawn are 40 of 1,500 layers; 1,460 are left out." in page
    assert "500 more rows are left out." in page


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("membrane.json", "[" * 100_000, r"membrane\.json cannot be read"),
        ("membrane.json", " " * 10_000_000, r"membrane\.json has more than 4,194,304 bytes"),
        ("energy.json", "[]", "not as lightning-tspike's"),
        (
            "metrics.csv",
            "step,train/loss\n1," + "1" * 200_000,
            r"metrics\.csv is no table of a CSVLogger: field larger",
        ),
        (
            "metrics.csv",
            "step,train/loss\n" + "1," * 10**6,
            r"metrics\.csv has lines of more than 1,048,576 characters",
        ),
        ("metrics.csv", "step" + ",x" * 30_000, r"metrics\.csv has 30,001 columns, expected at most 20,000"),
    ],
)
def test_what_is_too_much_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / "metrics.csv").write_text("step,train/loss\n1,2\n")
    (tmp_path / name).write_text(text)
    with pytest.raises(ReportError, match=message):
        write_report(tmp_path)


def facts(page: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r'<dt>(.*?)</dt><dd class="value">(.*?)</dd><dd class="remark">(.*?)</dd>', page)
    return {label: (value.replace("<wbr>", ""), remark) for label, value, remark in found}


def test_the_page_begins_with_what_the_run_came_to(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "runs/digits")
    summary = RunSummary("tspike_resnet_small", 2, 77_756, 2, 3725.0, 360, 0.975, 0.9725, 1)
    (tmp_path / "runs/digits/run_summary.json").write_text(json.dumps(summary.to_dict()))
    page = write_report(tmp_path / "runs/digits").read_text()
    assert "<h1>runs/digits</h1>" in page
    assert str(tmp_path) not in page  # a page that is passed on says nothing of the machine
    found = facts(page)
    assert found["network"] == ("tspike_resnet_small", "T = 2, 77,756 parameters")
    assert found["test accuracy, folded"] == ("97.25%", "unfolded 97.50%; 1 of 360 differ")
    assert found["training"] == ("1 h 2 min", "2 epochs")
    energy = json.loads((run / "energy.json").read_text())
    assert found["energy per image"][0] == f"{energy['picojoules'] / 1e6:.3g} uJ"
    assert found["additions alone"][1] == "of the folded network&#39;s operations; no amplitudes kept"
    assert {"validation accuracy", "firing rate"} < found.keys()


def test_a_fit_writes_its_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    main(["fit", "--config", "digits", "--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--report=true",
          "--trainer.enable_progress_bar=false"])  # fmt: skip
    summary = json.loads((tmp_path / "runs/digits/version_0/run_summary.json").read_text())
    assert (summary["network"], summary["timesteps"], summary["images"]) == ("tspike_resnet_small", 4, 360)
    assert 0 < summary["seconds"] < 600
    found = facts((tmp_path / "runs/digits/version_0/report.html").read_text())
    assert found["test accuracy, folded"][0] == f"{summary['folded_accuracy']:.2%}"


def test_a_hundred_layers(tmp_path: Path) -> None:
    """Bars are as wide as their names need, along which one scrolls, and a long table opens at a click."""
    tags = [f"firing_rate/layer{i}/{sign}" for i in range(104) for sign in ("positive", "negative")]
    tags += [f"entropy/layer{i}/{kind}" for i in range(104) for kind in ("signed", "unsigned")]
    (tmp_path / "metrics.csv").write_text(f"step,{','.join(tags)}\n0,{','.join(['0.25'] * len(tags))}\n")
    page = write_report(tmp_path).read_text()
    assert page.count('<img class="broad"') == 1
    assert "<details><summary>Table of 104 rows</summary>" in page
    assert facts(page)["firing rate"] == ("0.50", "mean over 104 layers; 0.50 to 0.50")
