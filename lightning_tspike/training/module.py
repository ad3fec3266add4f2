"""The LightningModule: training, validation, test and prediction of a ternary-spike network."""

from __future__ import annotations

import math
import os
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import Lookahead
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from .._batches import images_of, targets_of
from .._options import options_of, save_options, takes
from .._seeding import place_to_come, run_seed, seed_all
from .._strategies import require_whole_weights
from ..conversion.ann import load_ann
from ..conversion.calibration import copy_weights
from ..conversion.start import start_at_rate, start_from
from ..kernels import can_compile
from ..memory import MemoryMode
from ..memory.compiling import compile_for_training
from ..models import create_network
from ..network.config import NetworkConfig
from ..network.own import own_network
from ..network.spiking_network import SpikingNetwork
from ..store.checkpoint import LABEL_NAMES, PREPROCESSING
from ..store.loading import load_with_config
from .losses import membrane_regularization
from .objective import Objective
from .optimization import OptimizerOptions, create_optimizer
from .option_checks import check_start, check_together, slow_precision
from .schedules import create_schedule
from .synaptic_cost import OperationsBySize

__all__ = ["TernarySNNModule"]


@takes(NetworkConfig, Objective, OptimizerOptions, backbone=str, loss=Literal["ce", "tet"])
class TernarySNNModule(L.LightningModule):
    """A backbone with spiking neurons, trained on the cross-entropy of the time-averaged logits or another loss.

    Batches are pairs of images [B, C, H, W] or frames [B, T, C, H, W] and labels [B]. Labels may also be one-hot rows
    or, as mixup makes them, probabilities [B, K] (their accuracy is that of the likeliest class). Batches may also be
    dicts, such as ``{"image": ..., "label": ...}``, or triples whose third part is left alone. Logged: ``train/loss``,
    ``train/acc1``, ``val/loss``, ``val/acc1``, ``val/acc5`` and the same for ``test``; accuracies lie in [0, 1]. Where
    synaptic operations have a cost, also ``train/synops``, their share of the multiply-accumulates, and
    ``train/synops_cost``, what they add to the loss.

    Args:
        backbone: A timm model, e.g. ``"resnet34"``, ``"vgg16_bn"``, ``"tspike_resnet_small"``; or a network of your
            own: any module, which :func:`lightning_tspike.ternarize` makes spiking, or what that function gave. Files
            know only the name of its class: give it again on loading (``load_from_checkpoint(path, backbone=...)``,
            ``zoo.load(path, model=...)``).
        num_classes: Number of classes K; a network of your own knows them itself.
        timesteps: Number of time steps T.
        in_chans: Channels C of an image or a frame; the length F of the vectors [B, F] or [B, T, F] of a backbone whose
            ``pretrained_cfg`` has ``input_size=(F,)``.
        pretrained: Start from a trained ANN: True for timm's pretrained weights of the backbone (a tag may follow its
            name, ``"resnet50.a1_in1k"``), or the path of a file with a state_dict or of an ANN's checkpoint. When the
            fit begins, the neurons are fitted to it on training images
            (:func:`lightning_tspike.conversion.calibrate`); until then the network has the ANN's weights alone. A
            checkpoint of the network never asks for the ANN again.
        initial_rate: Firing rate in (0, 1) at which every layer of neurons starts: when the fit begins, thresholds are
            set layer by layer on training images (:func:`lightning_tspike.conversion.set_firing_rate`). None: they
            start at ``threshold``, where about 0.6 of the neurons behind a norm fire. A checkpoint has the thresholds,
            and never sets them again.
        calibration_images: How many training images ``pretrained`` and ``initial_rate`` look at.
        memory: What a training step keeps for its backward pass: ``"full"``, ``"packed"`` (spikes at 2 bits each) or
            ``"lean"`` (blocks by their inputs alone, computed again); see :mod:`lightning_tspike.memory`. Gradients are
            the same.
        compile: Compile the network (``torch.compile``) for every run of a Trainer. The first steps then take up to a
            minute, the others less time; where no compiler is found, a warning says so and the network runs as it is.
            On batches that a callback observes, it also runs as it is. What is kept for the backward pass is up to
            torch, which on a CPU is told to keep less than it would; so ``memory`` must be ``"full"``.
        channels_last: Keep the channels of images and convolutions innermost in memory for every run of a Trainer:
            convolutions on a CPU, and in half precision on a GPU, take less time then.
        options: Those of NetworkConfig, Objective and OptimizerOptions.

    Raises:
        ValueError: Unknown backbone (the message has close names), or a number out of range.

    With ``seed_everything`` called (or ``seed_everything:`` in a recipe), every epoch draws its random numbers from a
    stream of its own, so that a run resumed from a checkpoint at the end of an epoch goes on as if it had not stopped.

    Example:
        >>> module = TernarySNNModule("resnet34", num_classes=1000, timesteps=4)
        >>> Trainer(max_epochs=90).fit(module, datamodule)  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str | nn.Module = "resnet34",
        num_classes: int = 1000,
        timesteps: int = 4,
        in_chans: int = 3,
        *,
        pretrained: bool | str = False,
        initial_rate: float | None = None,
        calibration_images: int = 512,
        memory: MemoryMode = "full",
        compile: bool = False,
        channels_last: bool = False,
        **options: Any,
    ) -> None:
        L.LightningModule.__init__(self)  # not by super(), see save_options
        self.objective = Objective(**options_of(Objective, options))
        optimizer = OptimizerOptions(**options_of(OptimizerOptions, options))
        check_together(self.objective, calibration_images, memory, compile)
        check_start(initial_rate, pretrained)
        shape = {"num_classes": num_classes, "timesteps": timesteps, "in_chans": in_chans, **options}
        self.network = _build(backbone, shape, pretrained)
        config: Any = self.network.config
        save_options(
            self,
            {
                **asdict(config),
                **asdict(optimizer),
                **{**vars(self.objective), "loss": self.objective.loss_name},
                "pretrained": pretrained,
                "initial_rate": initial_rate,
                "calibration_images": calibration_images,
                "memory": memory,
                "compile": compile,
                "channels_last": channels_last,
            },
        )
        num_classes = config.num_classes
        self.network.memory = memory
        self._is_compiled = False
        self._is_real_fit = False  # a tuner (learning rate, batch size) tries steps before on_fit_start
        self._operations = OperationsBySize()
        self._initial_rate = initial_rate  # None once it has been set
        self._planned_lr: float | None = None  # what the optimizer was made with
        self._resumes_at = (0, 0)  # epoch and batch
        self._epoch_seeded = -1
        # ANNs that the network starts from ("start") or learns from ("teacher"); in a dict, where they are no part of
        # the module: not of its parameters, its checkpoints or what DDP looks after
        self._anns: dict[str, torch.nn.Module] = {}
        if pretrained:
            weights = None if pretrained is True else pretrained
            self._anns["start"] = load_ann(
                config.backbone,
                weights,
                num_classes=config.num_classes,
                in_chans=config.in_chans,
                fresh_classifier=True,
                **config.backbone_kwargs,
            )
            copy_weights(self.network, self._anns["start"])
        top = {"acc1": 1, "acc5": 5} if num_classes > 5 else {"acc1": 1}
        accuracies: dict[str, Any] = {
            name: MulticlassAccuracy(num_classes, top_k=k, average="micro") for name, k in top.items()
        }
        self.train_metrics = MetricCollection({"acc1": accuracies["acc1"].clone()}, prefix="train/")
        self.val_metrics = MetricCollection(accuracies, prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")
        self.losses = nn.ModuleDict({"val": MeanMetric(), "test": MeanMetric()})

    @classmethod
    def from_zoo(cls, name_or_path: str | os.PathLike[str], **options: Any) -> TernarySNNModule:
        """A module that starts from trained weights: of the zoo, the Hub, a folder or a checkpoint.

        Args:
            name_or_path: As for :func:`lightning_tspike.zoo.load`. The network before folding is loaded.
            options: Of the training, such as ``lr``; ``num_classes``, where it differs, gives a fresh classifier, and
                ``timesteps`` may be any, as weights fit every number of time steps.

        Raises:
            ValueError: An option would change the network otherwise.
            lightning_tspike.zoo.ZooError: There is nothing of that name, or it was published folded alone. Otherwise as
                :func:`lightning_tspike.zoo.load`.
        """
        network, manifest = load_with_config(name_or_path, folded=False)
        shape = asdict(manifest.network)
        free = ("num_classes", "timesteps")
        if changed := sorted(k for k in shape.keys() & options if k not in free and options[k] != shape[k]):
            raise ValueError(
                f"{name_or_path} has {', '.join(f'{k}={shape[k]!r}' for k in changed)}, which its weights depend on: "
                f"leave {', '.join(changed)} out, or train a new network"
            )
        module = cls(**{**shape, **options})
        if module.network.num_classes != network.num_classes:
            network.reset_classifier(module.network.num_classes)
        module.network.load_state_dict(network.state_dict())
        return module

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] or frames [B, T, C, H, W] -> logits [B, K], the mean over time."""
        return self.network(x)

    def training_step(self, batch: object, batch_idx: int) -> Tensor:
        return self._step(batch, "train", batch_idx)

    def validation_step(self, batch: object, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: object, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: object, batch_idx: int) -> Tensor:
        """Class probabilities [B, K]; labels, where the batch has any, are not looked at."""
        return self(images_of(batch, self._network_dtype)).softmax(-1)

    @property
    def _network_dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def _step(self, batch: object, stage: Literal["train", "val", "test"], batch_idx: int = 0) -> Tensor:
        x = images_of(batch, self._network_dtype)
        y = targets_of(batch, self.hparams["num_classes"])
        is_train = stage == "train"
        if is_train:
            loss, logits = self._training_loss(x, y, batch_idx)
        else:
            logits = self(x)
            loss = F.cross_entropy(logits, y)
        if is_train:
            self.log("train/loss", loss, on_step=True, on_epoch=False, batch_size=len(y))
        else:
            # Lightning's own mean over processes rounds their number of images down to a multiple of the processes
            mean: Any = self.losses[stage]
            mean.update(loss.detach(), len(y))
            self.log(f"{stage}/loss", mean, on_step=False, on_epoch=True, batch_size=len(y))
        metrics = getattr(self, f"{stage}_metrics")
        metrics.update(logits.detach(), y if y.ndim == 1 else y.argmax(-1))
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        return loss

    def _training_loss(self, x: Tensor, y: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The loss, shape [], and the logits [B, K] averaged over time."""
        weight = self.objective.tmpr_weight
        listening: Any = membrane_regularization(self.network) if weight else nullcontext([])
        operations = self._operations.of(self.network, x) if self.objective.synops_weight else None
        counting: Any = operations.counting() if operations else nullcontext()
        with listening as terms, counting as readings:
            per_step = self.network(x, per_step=True)  # [T, B, K]
        taught: Tensor | None = None
        if teacher := self._anns.get("teacher"):
            if x.ndim != 4:
                raise ValueError(f"a teacher looks at still images [B, C, H, W], got shape {tuple(x.shape)}")
            with torch.no_grad():
                taught = teacher(x)
        loss = self.objective.of(per_step, y, taught=taught)
        if terms:
            loss = loss + weight * torch.stack(terms).mean()
        if operations:
            loss = loss + self._synops_cost(operations.shares(readings), operations.most, batch_idx, len(y))
        return loss, per_step.mean(0)

    def _synops_cost(self, shares: Tensor, most: Tensor, batch_idx: int, batch_size: int) -> Tensor:
        seen, epochs = shares.detach(), float(self.current_epoch)
        if self._trainer is not None:
            if self.objective.synops_target is not None:  # which is one for all processes
                seen = self.trainer.strategy.reduce(seen.clone(), reduce_op="mean")
            batches = float(self.trainer.num_training_batches)
            epochs += batch_idx / batches if math.isfinite(batches) else 0.0
        cost = self.objective.of_synops(shares, most, epochs, seen=seen)
        for name, value in (("synops", seen.sum()), ("synops_cost", cost.detach())):
            self.log(f"train/{name}", value, on_step=True, on_epoch=False, batch_size=batch_size)
        return cost

    def setup(self, stage: str) -> None:
        self._operations = OperationsBySize()  # the network may be another one by now
        if self.hparams["channels_last"]:
            self.network.to(memory_format=torch.channels_last)  # what convolutions give follows their weights
        if not self.hparams["compile"] or self._is_compiled:
            return
        device = self.trainer.strategy.root_device.type
        if not can_compile(device):
            rank_zero_warn(f"compile=True: no compiler for the {device} was found, so the network runs as it is")
            return
        compile_for_training(self.network.model, device)
        self._is_compiled = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._resumes_at = place_to_come(checkpoint)

    def on_fit_start(self) -> None:
        hp = self.hparams
        self._is_real_fit = True
        if advice := slow_precision(self.trainer.precision, self.trainer.strategy.root_device.type):
            rank_zero_warn(advice)
        if self.objective.synops_weight:
            require_whole_weights(self.trainer.strategy, "synops_weight= counts operations by", "leave it out")
        if self._planned_lr not in (None, hp["lr"]):  # Lightning's LearningRateFinder has just set another
            self.trainer.strategy.setup_optimizers(self.trainer)
        if self.objective.teacher:
            teacher = load_ann(
                self.objective.teacher,
                self.objective.teacher_weights,
                num_classes=hp["num_classes"],
                in_chans=hp["in_chans"],
            )
            self._anns["teacher"] = teacher.requires_grad_(False).to(self.device)
        # last: no other random numbers may be drawn before Lightning makes the loader's iterator
        progress: Any = self.trainer.fit_loop.epoch_progress
        self._seed(*((progress.current.processed, 0) if self.trainer.ckpt_path is None else self._resumes_at))

    def on_train_start(self) -> None:
        ann = self._anns.get("start")
        if ann is not None and self.trainer.ckpt_path is None:  # a run that is resumed has begun already
            start_from(self, ann, images=self.hparams["calibration_images"])
        if self._initial_rate is not None and self.trainer.ckpt_path is None:
            start_at_rate(self, self._initial_rate, images=self.hparams["calibration_images"])
        if self._is_real_fit:  # after the trial of a tuner, Lightning takes the weights back
            self._anns.pop("start", None)
            self._initial_rate = None

    def teardown(self, stage: str) -> None:
        self._anns.pop("teacher", None)
        self._is_real_fit = False

    def on_train_epoch_start(self) -> None:
        # Lightning makes the iterator of a loader, which draws random numbers, right after this; but that of a fit's
        # first epoch long before, after on_fit_start, where that epoch has been seeded.
        if self._epoch_seeded != self.current_epoch:
            self._seed(self.current_epoch, 0)

    def on_train_batch_end(self, outputs: object, batch: object, batch_idx: int) -> None:
        # Lookahead validates and saves its slow weights: as in timm's training, they take a step when an epoch ends
        if self.trainer.is_last_batch or self.trainer.global_step == self.trainer.max_steps:
            for optimizer in self.trainer.optimizers:
                if isinstance(optimizer, Lookahead):
                    optimizer.sync_lookahead()
        self._seed(self.current_epoch, batch_idx + 1)  # which is read next

    def on_validation_end(self) -> None:
        # within an epoch: loaders of validation draw random numbers, and a run that goes on there has not validated
        if self._is_real_fit and not self.trainer.sanity_checking:
            self._seed(self.current_epoch, self.trainer.fit_loop.epoch_loop.batch_progress.current.ready)

    def _seed(self, epoch: int, batch: int) -> None:
        """Have all that is drawn from here on, for this batch, depend on seed, epoch, batch and process alone."""
        self._epoch_seeded = epoch
        if (seed := run_seed()) is not None:
            seed_all(seed, epoch, self.global_rank, batch)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # FSDP marks the weights that it gathers, and a marked tensor is written as one that runs code when it is read
        for weight in checkpoint["state_dict"].values():
            if type(weight) is Tensor:  # others keep what they are made of there
                vars(weight).clear()
        # what a folded copy needs to know of the images
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        checkpoint[PREPROCESSING] = getattr(data, "preprocessing", None)
        checkpoint[LABEL_NAMES] = None if names is None else [str(name) for name in names]
        # the weights are here: loading them must not fetch the ANN's again, nor set thresholds
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["pretrained"] = False
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["initial_rate"] = None
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["timesteps"] = self.network.timesteps  # may have been set since

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp = self.hparams
        self._planned_lr = hp["lr"]
        optimizer = create_optimizer(self.network, OptimizerOptions(**options_of(OptimizerOptions, dict(hp))))
        if hp["sched"] == "none":
            return optimizer
        schedule: Any = create_schedule(self.trainer, optimizer, hp["sched"], warmup_epochs=hp["warmup_epochs"])
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        if not isinstance(scheduler, Scheduler):  # torch's: of a subclass, of a callback
            super().lr_scheduler_step(scheduler, metric)
        elif scheduler.t_in_epochs:  # timm's are functions of the epoch or the step to come
            scheduler.step(self.current_epoch + 1, metric)
        else:
            scheduler.step_update(self.trainer.global_step, metric)


def _build(backbone: str | nn.Module, shape: dict[str, Any], pretrained: bool | str) -> SpikingNetwork:
    """The network: built by name, or the user's own, made spiking if it is not yet."""
    if isinstance(backbone, str):
        shape["backbone_kwargs"] = shape.get("backbone_kwargs") or {}
        return create_network(NetworkConfig(backbone, **shape))
    if pretrained:
        raise ValueError("pretrained= is for backbones by name: load the weights into your network before you give it")
    return own_network(backbone, shape)
