"""Write a folded copy of the network beside every checkpoint."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from ..files.input_spec import InputSpec
from ..folding.absorb import fold
from ..graph.tracing import copy_of
from ..network.config import OWN, NetworkConfig
from ..network.spiking_network import SpikingNetwork
from ..store.checkpoint import read_checkpoint
from ..store.folder import write_folder
from ..store.image_size import take_image_size
from ._common import network_of
from .checkpoints import LastCheckpoint, best_checkpoint

__all__ = ["COPY_OF", "FoldExport"]

COPY_OF = "copy_of.json"
"""File in a folder that FoldExport has written: which checkpoint it is the copy of. Others' folders are left alone."""

log = logging.getLogger(__name__)

# What can go wrong with reading (CheckpointError is a ValueError), folding (FoldError is a RuntimeError) or writing one
# checkpoint. Wrong settings (MisconfigurationException) still end a run.
_NOT_FATAL = (OSError, RuntimeError, ValueError)


class FoldExport(Callback):
    """Keep a folded copy beside every checkpoint that a ModelCheckpoint keeps.

    The copy of ``NAME.ckpt`` is the folder ``NAME.folded``, which ``zoo.load`` reads. It is made from the checkpoint
    file, so it holds exactly the weights saved there; checkpoints themselves stay as they are and can be resumed. The
    fold is verified, and its operations counted, at the size of the datamodule's images. A folder goes when its
    checkpoint goes. It is written under another name and then renamed, so there is never half of one. Only the first
    process reads and writes; no process waits for another.

    A copy appears when training goes on after the checkpoint was saved, or ends, also by Ctrl-C, SIGTERM or an error.
    That of a :class:`LastCheckpoint`, which changes with every epoch, appears when training ends. What a killed run has
    left without its checkpoint goes when training goes on in its folder.

    Args:
        on_error: What to do when a checkpoint cannot be folded (its weights are not finite, say) or the copy not be
            written (the disk is full): ``"warn"`` and train on, or ``"raise"``.
        wandb_artifact: When training ends, log the folder of the best checkpoint to W&B, as the artifact
            ``folded-<run id>`` of type ``model``.
        publish: When training ends, publish the best checkpoint to this repository of the Hugging Face Hub,
            ``ORG/NAME``, as ``zoo.publish`` does. Its card has no figures: ``tspike zoo publish --recipe`` measures.

    Raises:
        MisconfigurationException: An option is not known, the trainer has no ModelCheckpoint, or no WandbLogger for
            the artifact, the module has no spiking network in ``network`` or one that no name can rebuild, or the
            strategy shards the weights over processes, so that no checkpoint file has them all.

    Attributes:
        folders: Folded folder by checkpoint path, of the checkpoints that exist now.
    """

    def __init__(
        self, on_error: Literal["warn", "raise"] = "warn", wandb_artifact: bool = False, publish: str | None = None
    ) -> None:
        if on_error not in ("warn", "raise"):
            raise MisconfigurationException(f"on_error must be 'warn' or 'raise', got {on_error!r}")
        if publish is not None and publish.count("/") != 1:
            raise MisconfigurationException(f"publish must be a repository ORG/NAME, got {publish!r}")
        self.on_error, self.wandb_artifact, self.publish = on_error, wandb_artifact, publish
        self.folders: dict[Path, Path] = {}
        self._seen: dict[Path, int] = {}  # time of last change of the checkpoint file that was folded
        self._config: NetworkConfig | None = None
        self._own: SpikingNetwork | None = None  # an untrained copy, where no name can build the network
        self._has_swept = False

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        network = network_of(pl_module, self)
        self._config = network.config
        if self._config is None:
            raise MisconfigurationException(
                "FoldExport needs a network that a name can rebuild, or that TernarySNNModule was given (backbone=); "
                "register the backbone with timm and build the network by lightning_tspike.models.create_network"
            )
        self._own = copy_of(network).cpu() if self._config.backbone.startswith(OWN) else None
        is_dry_run: Any = getattr(trainer, "fast_dev_run", False)  # then Lightning takes checkpoint callbacks out
        if not is_dry_run and not any(isinstance(c, ModelCheckpoint) for c in trainer.checkpoint_callbacks):
            raise MisconfigurationException(
                "FoldExport folds what a ModelCheckpoint saves, and the trainer has none: enable_checkpointing is off. "
                "Turn it on or leave FoldExport out"
            )
        if self.wandb_artifact and not any(isinstance(logger, WandbLogger) for logger in trainer.loggers):
            raise MisconfigurationException("FoldExport(wandb_artifact=True) needs a WandbLogger, and there is none")

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        self._follow(trainer)

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._follow(trainer)

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Called after every callback's on_train_end, where ModelCheckpoint may save for the last time.
        if stage == "fit":
            self._follow(trainer, is_over=True)
            if self.wandb_artifact and trainer.is_global_zero:
                self._log_artifact(trainer)
            if self.publish is not None and trainer.is_global_zero:
                self._publish(self.publish, trainer)

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        # No teardown comes after it. Whatever ended the training is what the user is to hear of.
        if self._config is None or trainer.state.fn != "fit":
            return
        try:
            self._follow(trainer, is_over=True)
        except (*_NOT_FATAL, MisconfigurationException) as error:
            rank_zero_warn(f"the folded copies are not those of the checkpoints: {error}")

    def _publish(self, repo_id: str, trainer: Trainer) -> None:
        best = best_checkpoint(trainer)
        if best is None:
            rank_zero_warn(f"nothing was published to {repo_id}: there is no best checkpoint")
            return
        from ..store.publish import publish  # what it needs takes long to import

        try:
            publish(best, repo_id, dry_run=False)
        except _NOT_FATAL as error:  # HubError and VerificationError are RuntimeErrors
            if self.on_error == "raise":
                raise
            rank_zero_warn(f"{best} was not published, try `tspike zoo publish {best} {repo_id}`: {error}")

    def _log_artifact(self, trainer: Trainer) -> None:
        best = best_checkpoint(trainer)
        folder = self.folders.get(best) if best else None
        if folder is None:
            rank_zero_warn("no W&B artifact: there is no folded copy of a best checkpoint")
            return
        import wandb

        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                artifact = wandb.Artifact(f"folded-{logger.experiment.id}", type="model")
                for file in folder.rglob("*"):
                    if file.is_file() and file.name != COPY_OF:  # which only means something beside the checkpoint
                        artifact.add_file(str(file), name=str(file.relative_to(folder)))
                logger.experiment.log_artifact(artifact)

    def _follow(self, trainer: Trainer, is_over: bool = False) -> None:
        """Fold the checkpoints that are new or have changed; drop the folders of those that are gone or not yet due."""
        if not trainer.is_global_zero:
            return
        for checkpoint, is_passing in _kept_checkpoints(trainer):
            changed = checkpoint.stat().st_mtime_ns
            if self._seen.get(checkpoint) == changed:
                continue
            if is_passing and not is_over:
                self._drop(checkpoint)
                continue
            try:
                self._export(checkpoint, trainer)
            except _NOT_FATAL as error:
                # Not worth losing a training run: the checkpoint is safe, and can be folded later.
                self._drop(checkpoint)
                self._seen[checkpoint] = changed
                if self.on_error == "raise":
                    raise
                rank_zero_warn(f"no folded copy of {checkpoint}, training goes on: {error}")
            self._seen[checkpoint] = changed  # not before: Ctrl-C may come in the midst of it
        for checkpoint in [c for c in self._seen if not c.exists()]:
            del self._seen[checkpoint]
            self._drop(checkpoint)
        if not self._has_swept:
            self._has_swept = True
            for folder in {Path(c.dirpath) for c in _model_checkpoints(trainer) if c.dirpath}:
                _sweep(folder)

    def _drop(self, checkpoint: Path) -> None:
        self.folders.pop(checkpoint, None)
        if (checkpoint.with_suffix(".folded") / COPY_OF).is_file():
            shutil.rmtree(checkpoint.with_suffix(".folded"), ignore_errors=True)

    def _export(self, checkpoint: Path, trainer: Trainer) -> None:
        if checkpoint.is_dir():
            raise MisconfigurationException(
                f"the strategy {type(trainer.strategy).__name__} shards the weights ({checkpoint} is a folder of "
                "shards), so FoldExport cannot read them; save full checkpoints (FSDPStrategy(state_dict_type='full'), "
                "ModelParallelStrategy(save_distributed_checkpoint=False)), or leave "
                "FoldExport out and fold after training"
            )
        saved = read_checkpoint(checkpoint, self._config, self._own)  # its own: the one in training may carry hooks
        data = getattr(trainer, "datamodule", None)  # the checkpoint of a module of your own may not say
        preprocessing = getattr(data, "preprocessing", None)
        spec = InputSpec.of(preprocessing) if preprocessing is not None else None
        take_image_size(saved.network, spec)
        folded, report = fold(saved.network)
        facts: dict[str, Any] = {"preprocessing": spec, "label_names": getattr(data, "class_names", None)}
        folder = checkpoint.with_suffix(".folded")
        marker = (json.dumps({"checkpoint": checkpoint.name}) + "\n").encode()
        self.folders[checkpoint] = write_folder(folder, folded, report=report, files={COPY_OF: marker}, **facts)
        log.debug("folded %s: %s", checkpoint, report)


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _kept_checkpoints(trainer: Trainer) -> Iterator[tuple[Path, bool]]:
    """Checkpoints, and whether the next epoch replaces them."""
    for callback in _model_checkpoints(trainer):
        is_passing = isinstance(callback, LastCheckpoint)
        for path in map(Path, sorted({*callback.best_k_models, callback.best_model_path, callback.last_model_path})):
            # a run that goes on elsewhere remembers the one before, whose last epoch is not its own
            is_other_runs = is_passing and path.parent.resolve() != Path(str(callback.dirpath)).resolve()
            if path.name and path.exists() and not is_other_runs:
                yield path, is_passing


def _sweep(folder: Path) -> None:
    """Remove what killed runs have left: half a folder, and folders whose checkpoint is gone."""
    for leftover in folder.glob(".*.folded.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for copy in folder.glob("*.folded"):
        if (copy / COPY_OF).is_file() and not copy.with_suffix(".ckpt").exists():
            shutil.rmtree(copy, ignore_errors=True)
