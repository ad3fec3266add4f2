"""``tspike fit|validate|test|predict``: a LightningCLI that ends a fit with what the run has given."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

from lightning import LightningDataModule
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from .callbacks import FoldExport, PredictionWriter
from .callbacks._common import run_folder
from .evaluation import Evaluation, evaluate
from .folder import read_folder
from .module import TernarySNNModule

__all__ = ["run_training_cli"]


class TrainingCLI(LightningCLI):
    """LightningCLI for TernarySNNModule and any datamodule; its own part is the summary after ``fit``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Trainer, module and data do not know."""
        parser.add_argument(
            "--report", type=bool, default=False, help="after fit, write report.html to the run's folder"
        )

    def before_instantiate_classes(self) -> None:
        """Refuse to measure or use a network with random weights, and to report on what logs nothing."""
        if self.subcommand != "fit" and self.config[self.subcommand].report:
            self.parser.error(f"tspike {self.subcommand} has nothing to report: --report is for tspike fit")
        if self.subcommand != "fit" and not self.config[self.subcommand].ckpt_path:
            self.parser.error(f"tspike {self.subcommand} needs trained weights: --ckpt_path=PATH of a checkpoint")

    def after_fit(self) -> None:
        """Test the best checkpoint and its folded copy, and say where both are; write the report if asked to."""
        trainer: Any = self.trainer
        if trainer.is_global_zero and self.config.fit.report:
            self._write_report(run_folder(trainer))
        export = next((c for c in trainer.callbacks if isinstance(c, FoldExport)), None)
        checkpoint = getattr(trainer.checkpoint_callback, "best_model_path", "")
        folder = export.folders.get(Path(checkpoint)) if export else None
        if not trainer.is_global_zero or not checkpoint:
            return
        console = Console()
        console.out(
            f"checkpoint: {checkpoint}\nfolded:     {folder or 'none (no FoldExport, or it warned)'}", highlight=False
        )
        has_no_test = trainer.limit_test_batches == 0
        if folder is None or has_no_test or not is_overridden("test_dataloader", self.datamodule, LightningDataModule):
            return
        self.datamodule.setup("test")
        device = trainer.strategy.root_device
        unfolded = TernarySNNModule.load_from_checkpoint(checkpoint, map_location=device).network
        folded = read_folder(folder)[0].to(device)
        before = evaluate(unfolded, self._test_batches(), description="testing the unfolded network")
        after = evaluate(folded, self._test_batches(), description="testing the folded network")
        _print_summary(console, before, after)

    def _write_report(self, folder: Path) -> None:
        from .html_report import ReportError, write_report

        try:
            print(f"report:     {write_report(folder)}")
        except (ReportError, OSError) as error:  # the training is done, and there is more to say of it
            rank_zero_warn(f"no report: {error}")

    def _test_batches(self) -> Iterable[Any]:
        """The test batches, as many as the trainer's limit_test_batches lets through, all of them for this process."""
        shared, limit = self.datamodule.test_dataloader(), self.trainer.limit_test_batches
        loader = DataLoader(
            shared.dataset, shared.batch_size, num_workers=shared.num_workers, collate_fn=shared.collate_fn
        )
        if isinstance(limit, float) and limit == 1:
            return loader
        return islice(loader, limit if isinstance(limit, int) else int(limit * len(loader)))


def _print_summary(console: Console, before: Evaluation, after: Evaluation) -> None:
    n = len(after.decisions)
    differ = int((before.decisions != after.decisions).sum())
    console.out(
        f"test accuracy: unfolded {100 * before.accuracy:.2f} %, folded {100 * after.accuracy:.2f} % "
        f"({n} images; decisions that differ: {differ})",
        highlight=False,
    )
    table = Table(
        "neuron layer", "positive", "negative", "all", title="firing rates of the folded network on the test set"
    )
    for name, rate in after.firing_rates.items():
        table.add_row(name, f"{rate.positive:.4f}", f"{rate.negative:.4f}", f"{rate.total:.4f}")
    console.print(table)


def run_training_cli() -> None:
    """Run the training command that ``sys.argv`` holds, e.g. ``tspike fit --config digits.yaml``."""
    TrainingCLI(
        TernarySNNModule,
        LightningDataModule,
        subclass_mode_data=True,
        trainer_defaults={"callbacks": [PredictionWriter()]},
        parser_kwargs={
            "description": "Train, validate, test or predict with ternary-spike networks. See also: tspike zoo list"
        },
    )
