"""``tspike fit|validate|test|predict``: a LightningCLI that ends a fit with what the run has given."""

from __future__ import annotations

import difflib
import os
import re
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from lightning import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from .callbacks import FoldExport, PredictionWriter
from .callbacks._common import run_folder
from .checkpoint import CheckpointError
from .evaluation import Evaluation, evaluate
from .folder import read_folder
from .module import TernarySNNModule
from .run_folders import DiscardUntrained, folder_of_checkpoint, without_numbered

__all__ = ["run_training_cli"]


class CommandParser(LightningArgumentParser):
    """Says what is wrong in one line: the usage alone of ``tspike fit`` is ninety, and ``--help`` has it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with status 2, or raise where jsonargparse asks for that."""
        if not self.exit_on_error or "JSONARGPARSE_DEBUG" in os.environ:
            super().error(message, ex)
        parser: Any = getattr(ex, "subcommand_parser", None) or self
        command = parser.prog.replace(" [options]", "")
        text = " ".join(message.split()).rstrip(".")
        if unknown := re.search(r"unrecognized arguments: (--[^\s=]+)", text):
            subcommands = [p for a in self._actions if isinstance(a.choices, dict) for p in a.choices.values()]
            known = [option for p in [self, *subcommands] for option in p._option_string_actions]
            if close := difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.8):
                text += f"; did you mean {close[0]}?"
        elif "are required: " in text:
            text += "; a recipe has all that is needed, e.g. --config digits"
        print(f"{command}: {text} ({command} --help lists the options)", file=sys.stderr)
        sys.exit(2)


class TrainingCLI(LightningCLI):
    """LightningCLI for TernarySNNModule and any datamodule; its own part is the summary after ``fit``."""

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Only the one that is run, where the command line starts with it: a parser takes a while to build."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in sys.argv[1:2] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Trainer, module and data do not know."""
        parser.add_argument(
            "--report", type=bool, default=False, help="after fit, write report.html to the run's folder"
        )

    def before_instantiate_classes(self) -> None:
        """Refuse to measure or use a network with random weights, and to report on what logs nothing."""
        if self.subcommand != "fit" and self.config[self.subcommand].report:
            self.parser.error(f"{self.subcommand} has nothing to report: --report is for fit")
        if self.subcommand != "fit" and not self.config[self.subcommand].ckpt_path:
            self.parser.error(f"{self.subcommand} needs trained weights: --ckpt_path=PATH of a checkpoint")

    def instantiate_trainer(self, **changes: Any) -> Trainer:
        """Only a fit that trains takes a new run folder; what others write goes to their checkpoint's."""
        if self.subcommand != "fit":
            self.save_config_callback = None
            options = self.config_init[self.subcommand]
            changes["logger"] = without_numbered(options.trainer.logger)
            if options.trainer.default_root_dir is None and Path(options.ckpt_path).exists():
                changes["default_root_dir"] = folder_of_checkpoint(options.ckpt_path)
        try:
            trainer = super().instantiate_trainer(**changes)
        except (ValueError, RuntimeError, ImportError) as error:  # the trainer's checks of its options
            raise MisconfigurationException(str(error)) from error
        if self.subcommand == "fit":
            trainer.callbacks.append(DiscardUntrained(trainer))  # type: ignore[attr-defined]
        return trainer

    def _parse_ckpt_path(self) -> None:
        """Lightning reads a checkpoint's hyperparameters here, and what is no checkpoint can raise anything."""
        try:
            super()._parse_ckpt_path()
        except Exception as error:
            path = self.config[self.config.subcommand].ckpt_path
            raise CheckpointError(f"{path} is damaged or not a Lightning checkpoint") from error

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
        # a beginning of an option that passes for the option today may mean another one tomorrow
        parser_kwargs={
            "prog": "tspike",
            "allow_abbrev": False,
            **{command: {"allow_abbrev": False} for command in TrainingCLI.subcommands()},
            "description": "Train, validate, test or predict with ternary-spike networks.",
        },
        parser_class=CommandParser,
    )
