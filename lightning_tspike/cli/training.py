"""``tspike fit|validate|test|predict``: a LightningCLI that ends a fit with what the run has given."""

from __future__ import annotations

import difflib
import os
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

import torch
from lightning import LightningDataModule, Trainer
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from ..analysis.evaluation import Evaluation, evaluate
from ..analysis.run_summary import RunSummary
from ..callbacks import REPORT_SECTIONS, FoldExport, PredictionWriter
from ..callbacks.checkpoints import best_checkpoint
from ..callbacks.run_files import run_folder, write_json
from ..network.spiking_network import SpikingNetwork
from ..store.checkpoint import CheckpointError
from ..store.folder import read_folder
from ..training.checkpoint_io import AtomicCheckpointIO
from ..training.module import TernarySNNModule
from .quiet import quieten_lightning
from .resume import (
    command_to_go_on,
    ends_of_processes,
    enter_run_folder,
    keep_metrics,
    last_checkpoint,
    newest_checkpoint,
)
from .run_folders import DiscardUntrained, folder_of_checkpoint, without_numbered

__all__ = ["options_of_commands", "run_training_cli"]


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
    """LightningCLI for TernarySNNModule and any datamodule.

    Its own part is the summary after ``fit``, and how a stopped fit goes on: ``--ckpt_path last`` is the last
    checkpoint of the newest run, which goes on in that run's folder, and stopping a fit prints how.

    Args:
        words: The command line after ``tspike``, with paths of recipes.
    """

    _goes_on_in_its_folder = False

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        quieten_lightning()
        super().__init__(
            TernarySNNModule,
            LightningDataModule,
            subclass_mode_data=True,
            # Lightning's table of submodules has one row of interest, and "FLOPs: 0"
            trainer_defaults={"callbacks": [PredictionWriter()], "enable_model_summary": False},
            # a beginning of an option that passes for the option today may mean another one tomorrow
            parser_kwargs={
                "prog": "tspike",
                "allow_abbrev": False,
                **{command: {"allow_abbrev": False} for command in self.subcommands()},
                "description": "Train, validate, test or predict with ternary-spike networks.",
            },
            parser_class=CommandParser,
            args=self.words,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override] # Lightning asks the instance
        """Only the one that is run, where the command line starts with it: a parser takes a while to build."""
        known = LightningCLI.subcommands()
        return {name: known[name] for name in self.words[:1] if name in known} or known

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what Trainer, module and data do not know."""
        parser.add_argument(
            "--report", type=bool, default=False, help="after fit, write report.html to the run's folder"
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Find the checkpoint that is asked for, before Lightning looks for its hyperparameters."""
        self.config = parser.parse_args(args)  # Lightning's own warns where sys.argv has words as well
        subcommand = self.config.subcommand
        config = self.config[subcommand]
        if config.ckpt_path == "last":
            try:
                config.ckpt_path = str(last_checkpoint(config.trainer))
            except FileNotFoundError as error:
                parser.error(f"--ckpt_path=last: {error}")
            # Lightning starts further processes of this run by sys.argv; they must not look for themselves.
            sys.argv.append(f"--ckpt_path={config.ckpt_path}")
        elif config.ckpt_path not in (None, "best", "hpc") and _is_missing(config.ckpt_path):
            parser.error(
                f"--ckpt_path={config.ckpt_path}: there is no such checkpoint; --ckpt_path=last finds the newest"
            )
        if config.ckpt_path and Path(config.ckpt_path).is_file():
            _check_is_checkpoint(config.ckpt_path)
        if subcommand == "fit" and config.ckpt_path and Path(config.ckpt_path).exists():
            self._goes_on_in_its_folder = enter_run_folder(config.trainer, Path(config.ckpt_path))
            if self._goes_on_in_its_folder:  # config.yaml is that of the beginning
                self.save_config_kwargs |= {"config_filename": "config.resumed.yaml", "overwrite": True}

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
            changes["logger"] = without_numbered(options.trainer.logger, self.config[self.subcommand].trainer.logger)
            if options.trainer.default_root_dir is None and Path(options.ckpt_path).exists():
                changes["default_root_dir"] = folder_of_checkpoint(options.ckpt_path)
        try:
            trainer: Any = super().instantiate_trainer(**changes)
        except (ValueError, RuntimeError, ImportError) as error:  # the trainer's checks of its options
            raise MisconfigurationException(str(error)) from error
        if not any(isinstance(callback, Timer) for callback in trainer.callbacks):
            trainer.callbacks.append(Timer())  # its count is in checkpoints, and goes on where a run is resumed
        if self.subcommand == "fit":
            trainer.callbacks.append(DiscardUntrained(trainer))
            if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # unless the user has chosen another
                trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def before_fit(self) -> None:
        """Say what is trained, which checkpoint is resumed, and where the run goes on."""
        checkpoint = self.config.fit.ckpt_path
        if not self.trainer.is_global_zero:
            return
        network = getattr(self.model, "network", None)
        if isinstance(network, SpikingNetwork):
            print(_described(network), flush=True)
        if not checkpoint:
            return
        folder = run_folder(self.trainer)
        if not self._goes_on_in_its_folder:
            print(f"resuming {checkpoint} in a new run folder, {folder}: its best epoch is one of those to come")
            return
        print(f"resuming {checkpoint} in its run folder, {folder}")
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
        if isinstance(self.trainer.logger, CSVLogger):
            keep_metrics(self.trainer.logger, Path(checkpoint))

    def fit(self, **arguments: Any) -> None:
        """Train; who stops it is told where the checkpoint is, and how to go on."""
        try:
            self.trainer.fit(**arguments)
        except BaseException as error:
            self._say_how_to_go_on(is_stopped=isinstance(error, (KeyboardInterrupt, SystemExit)))
            if isinstance(error, SIGTERMException):
                _leave_process_group()  # it stops all processes at the same step
                if self.trainer.is_global_zero:
                    # it would end as if all was done; of the others, Lightning takes a status for a failure: kills all
                    raise SystemExit(128 + signal.SIGTERM) from error
            raise

    def _say_how_to_go_on(self, is_stopped: bool) -> None:
        if not self.trainer.is_global_zero:
            return
        for end in ends_of_processes(self.trainer):
            print(end, file=sys.stderr)
        checkpoint = newest_checkpoint(self.trainer)
        if checkpoint is not None:
            command = command_to_go_on(self.words, checkpoint)
            print(f"checkpoint: {checkpoint}\nto go on:   {command}", file=sys.stderr, flush=True)
        elif is_stopped:
            print("no checkpoint: the first one is saved at the end of an epoch", file=sys.stderr, flush=True)

    def after_fit(self) -> None:
        """Test the best checkpoint and its folded copy, write what the run came to, and the report."""
        _leave_process_group()  # now, as the processes are in step: the first one has more to do than the others
        trainer: Any = self.trainer
        if not trainer.is_global_zero:
            return
        tested = self._test_best(Console())
        network = getattr(self.model, "network", None)
        if isinstance(network, SpikingNetwork):
            timer = next(callback for callback in trainer.callbacks if isinstance(callback, Timer))
            summary = RunSummary(
                network.name,
                network.timesteps,
                sum(p.numel() for p in network.parameters()),
                trainer.current_epoch,
                timer.time_elapsed("train"),
                **tested,
            )
            write_json(run_folder(trainer) / RunSummary.FILE, summary.to_dict())
        if self.config.fit.report:
            self._write_report(run_folder(trainer))

    def _test_best(self, console: Console) -> dict[str, Any]:
        """Test both; gives what a summary of the run says of it, or nothing where there is nothing to test."""
        trainer: Any = self.trainer
        export = next((c for c in trainer.callbacks if isinstance(c, FoldExport)), None)
        checkpoint = best_checkpoint(trainer)
        folder = export.folders.get(checkpoint) if export and checkpoint else None
        if not checkpoint:
            return {}
        if folder is not None and folder.is_relative_to(Path.cwd()):  # as the checkpoint's path is
            folder = folder.relative_to(Path.cwd())
        console.out(
            f"checkpoint: {checkpoint}\nfolded:     {folder or 'none (no FoldExport, or it warned)'}", highlight=False
        )
        has_no_test = trainer.limit_test_batches == 0
        if folder is None or has_no_test or not is_overridden("test_dataloader", self.datamodule, LightningDataModule):
            return {}
        self.datamodule.setup("test")
        device = trainer.strategy.root_device
        unfolded = TernarySNNModule.load_from_checkpoint(checkpoint, map_location=device).network
        folded = read_folder(folder)[0].to(device)
        before = evaluate(unfolded, self._test_batches(), description="testing the unfolded network")
        after = evaluate(folded, self._test_batches(), description="testing the folded network")
        tested = {
            "images": len(after.decisions),
            "unfolded_accuracy": before.accuracy,
            "folded_accuracy": after.accuracy,
            "decisions_that_differ": int((before.decisions != after.decisions).sum()),
        }
        _print_summary(console, tested, after)
        return tested

    def _write_report(self, folder: Path) -> None:
        from ..analysis.html_report import ReportError, write_report

        try:
            print(f"report:     {write_report(folder, sections=REPORT_SECTIONS)}")
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


def _described(network: SpikingNetwork) -> str:
    """A network in a line."""
    parameters = sum(p.numel() for p in network.parameters())
    neurons = network.neurons().values()
    learned = sum(neuron.raw_amplitude is not None for neuron in neurons)
    return (
        f"network:    {network.name}, T = {network.timesteps}, {parameters:,} parameters, {len(neurons)} layers of "
        f"neurons, amplitudes learned in {learned}"
    )


def _is_missing(checkpoint: str) -> bool:
    """Whether there is no such file; what is no path (a URL, a model registry's name) is left to Lightning."""
    return ":" not in checkpoint and not Path(checkpoint).exists()


def _check_is_checkpoint(path: str) -> None:
    """Say what a file is not, before Lightning takes hyperparameters from it."""
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        is_checkpoint = isinstance(saved.get("hyper_parameters", {}), dict)
    except Exception as error:  # what is no checkpoint can raise anything
        raise CheckpointError(f"{path} is damaged or not a Lightning checkpoint") from error
    if not is_checkpoint:
        raise CheckpointError(f"{path} is not a Lightning checkpoint: its hyper_parameters are no dict")


def _print_summary(console: Console, tested: Mapping[str, Any], after: Evaluation) -> None:
    console.out(
        f"test accuracy: unfolded {100 * tested['unfolded_accuracy']:.2f} %, folded "
        f"{100 * tested['folded_accuracy']:.2f} % ({tested['images']} images; decisions that differ: "
        f"{tested['decisions_that_differ']})",
        highlight=False,
    )
    table = Table(
        "neuron layer", "positive", "negative", "all", title="firing rates of the folded network on the test set"
    )
    for name, rate in after.firing_rates.items():
        table.add_row(name, f"{rate.positive:.4f}", f"{rate.negative:.4f}", f"{rate.total:.4f}")
    console.print(table)


class _ParserBuilt(Exception):  # noqa: N818 # no error: what comes after the parser is left out
    pass


class _ParserOnly(TrainingCLI):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _ParserBuilt(parser)


def options_of_commands() -> dict[str, list[str]]:
    """Names of the options of ``fit``, ``validate``, ``test`` and ``predict``."""
    try:
        _ParserOnly([])
    except _ParserBuilt as built:
        (parser,) = built.args
    (commands,) = (action.choices for action in parser._actions if isinstance(action.choices, dict))
    return {
        name: [option for option in command._option_string_actions if option.startswith("--")]
        for name, command in commands.items()
    }


def _leave_process_group() -> None:
    """End torch's communication: threads of it that are left to the interpreter's end at times abort the process."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def run_training_cli(words: Sequence[str]) -> None:
    """Run a training command, e.g. ``["fit", "--config", "digits.yaml"]``."""
    TrainingCLI(words)
    _leave_process_group()
