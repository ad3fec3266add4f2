"""The LightningModule: training, validation, test and prediction of a ternary-spike network."""

from __future__ import annotations

import difflib
import os
import random
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from timm.optim import create_optimizer_v2, list_optimizers
from timm.scheduler.scheduler import Scheduler
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from .. import functional
from .._batches import images_of, targets_of
from .._seeding import epoch_seed, epoch_to_come, run_seed
from ..conversion.ann import load_ann
from ..conversion.calibration import copy_weights
from ..conversion.start import start_from
from ..kernels import can_compile
from ..memory import MemoryMode
from ..models import create_network
from ..network.config import NetworkConfig
from ..store.checkpoint import LABEL_NAMES, PREPROCESSING, reshape_scalars
from ..store.loading import load_with_config
from .losses import distillation_loss, membrane_regularization, tet_loss
from .schedules import create_schedule

__all__ = ["TernarySNNModule"]


class TernarySNNModule(L.LightningModule):
    """A backbone with spiking neurons, trained on the cross-entropy of the time-averaged logits or another loss.

    Batches are pairs of images [B, C, H, W] or frames [B, T, C, H, W] and labels [B]. Labels may also be one-hot rows
    or, as mixup makes them, probabilities [B, K] (their accuracy is that of the likeliest class). Batches may also be
    dicts, such as ``{"image": ..., "label": ...}``, or triples whose third part is left alone. Logged: ``train/loss``,
    ``train/acc1``, ``val/loss``, ``val/acc1``, ``val/acc5`` and the same for ``test``; accuracies lie in [0, 1].

    Args:
        backbone: A timm model whose activations are modules, e.g. ``"resnet34"``, ``"vgg16_bn"``,
            ``"tspike_resnet_small"``.
        num_classes: Number of classes K.
        timesteps: Number of time steps T.
        in_chans: Channels C of an image or a frame; the length F of the vectors [B, F] or [B, T, F] of a backbone whose
            ``pretrained_cfg`` has ``input_size=(F,)``.
        neuron: Kind of neuron: ``"ternary_lif"``, ``"ternary_if"``, ``"binary_lif"`` (the baseline), ``"ctsn"`` or
            ``"ctsn_events"`` (:data:`lightning_tspike.neurons.NEURONS`).
        amplitude: ``"layer"`` learns one spike amplitude per neuron layer, ``"channel"`` one per channel, ``"fixed"``
            keeps it at 1 (the vanilla ternary spike).
        decay: Membrane decay tau in [0, 1].
        threshold: Firing threshold theta > 0.
        learn_decay: Learn tau, one per neuron layer.
        learn_threshold: Learn theta, one per neuron layer.
        reset: ``"hard"`` or ``"soft"``, as in :class:`lightning_tspike.neurons.SpikingNeuron`.
        detach_reset: Cut the gradient through the reset.
        surrogate: ``"rectangular"``, ``"triangular"`` or ``"arctan"`` (:mod:`lightning_tspike.surrogate`).
        freeze_cancelled: Keep amplitudes at 1 that a norm divides out wherever they go; see
            :func:`lightning_tspike.ternarize`.
        backbone_kwargs: Further arguments of the backbone.
        pretrained: Start from a trained ANN: True for timm's pretrained weights of the backbone (a tag may follow its
            name, ``"resnet50.a1_in1k"``), or the path of a file with a state_dict. When the fit begins, the neurons
            are fitted to it on training images (:func:`lightning_tspike.conversion.calibrate`); until then the
            network has the ANN's weights alone. A checkpoint never asks for the ANN again.
        calibration_images: How many training images that takes.
        loss: What training minimises: ``"ce"``, the cross-entropy of the time-averaged logits, or ``"tet"``
            (:func:`lightning_tspike.training.tet_loss`). Validation and test log the cross-entropy.
        label_smoothing: Share of the target probability that is spread over all classes, in [0, 1]; in training alone.
        tet_weight: Weight of the regularising term of ``"tet"``, in [0, 1].
        tmpr_weight: Weight of :func:`lightning_tspike.training.membrane_regularization`, added in training; 0 for none.
        teacher: A trained ANN to learn from (:func:`lightning_tspike.training.distillation_loss`): a timm model, e.g.
            ``"resnet50.a1_in1k"``, that knows the same classes and takes the same images. It is loaded when the fit
            begins and is part of no checkpoint.
        teacher_weights: File with the teacher's state_dict; None for timm's pretrained weights.
        teacher_weight: Share of the distillation in the loss, in [0, 1].
        teacher_temperature: Its temperature.
        memory: What a training step keeps for its backward pass: ``"full"``, ``"packed"`` (spikes at 2 bits each) or
            ``"lean"`` (blocks by their inputs alone, computed again); see :mod:`lightning_tspike.memory`. Gradients are
            the same.
        compile: Compile the network (``torch.compile``) for every run of a Trainer. The first steps then take up to a
            minute, the others less time; where no compiler is found, a warning says so and the network runs as it is.
            On batches that a callback looks into, it runs as it is, too. What is kept for the backward pass is up to
            torch, so ``memory`` must be ``"full"``.
        opt: Optimizer, a name that timm.optim knows.
        lr: Learning rate at its peak.
        momentum: Momentum, for the optimizers that have one.
        weight_decay: Weight decay; amplitudes, biases and batch norms are exempt.
        sched: Learning-rate schedule, a name that timm.scheduler knows; ``"none"`` for none. It is updated after every
            epoch, or after every step where the trainer has ``max_steps`` or ``max_time`` alone.
        warmup_epochs: Epochs over which the learning rate rises linearly to its peak.

    Raises:
        ValueError: Unknown backbone (the message has close names), or a number out of range.

    With ``seed_everything`` called (or ``seed_everything:`` in a recipe), every epoch draws its random numbers from a
    stream of its own, so that a run resumed from a checkpoint at the end of an epoch goes on as if it had not stopped.

    Example:
        Trainer(max_epochs=90).fit(TernarySNNModule("resnet34", num_classes=1000, timesteps=4), datamodule)
    """

    def __init__(
        self,
        backbone: str = "resnet34",
        num_classes: int = 1000,
        timesteps: int = 4,
        in_chans: int = 3,
        neuron: str = "ternary_lif",
        amplitude: Literal["layer", "channel", "fixed"] = "layer",
        decay: float = functional.DECAY,
        threshold: float = functional.THRESHOLD,
        learn_decay: bool = False,
        learn_threshold: bool = False,
        reset: Literal["hard", "soft"] = "hard",
        detach_reset: bool = False,
        surrogate: Literal["rectangular", "triangular", "arctan"] = "rectangular",
        freeze_cancelled: bool = True,
        backbone_kwargs: dict[str, Any] | None = None,
        pretrained: bool | str = False,
        calibration_images: int = 512,
        loss: Literal["ce", "tet"] = "ce",
        label_smoothing: float = 0.0,
        tet_weight: float = 1e-3,
        tmpr_weight: float = 0.0,
        teacher: str | None = None,
        teacher_weights: str | None = None,
        teacher_weight: float = 0.5,
        teacher_temperature: float = 4.0,
        memory: MemoryMode = "full",
        compile: bool = False,
        opt: str = "sgd",
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        sched: str = "cosine",
        warmup_epochs: int = 0,
    ) -> None:
        super().__init__()
        if loss not in ("ce", "tet"):
            raise ValueError(f"loss must be 'ce' or 'tet', got {loss!r}")
        shares = {"tet_weight": tet_weight, "teacher_weight": teacher_weight, "label_smoothing": label_smoothing}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {share!r}")
        if tmpr_weight < 0:
            raise ValueError(f"tmpr_weight must not be negative, got {tmpr_weight!r}")
        if teacher_temperature <= 0:
            raise ValueError(f"teacher_temperature must be positive, got {teacher_temperature!r}")
        if calibration_images < 2:
            raise ValueError(f"calibration_images must be at least 2, got {calibration_images!r}")
        if compile and memory != "full":
            raise ValueError(
                f"compile=True decides by itself what is kept for the backward pass: leave memory at 'full' (it is "
                f"{memory!r}), or compile=False"
            )
        if tmpr_weight and (compile or memory == "lean"):
            raise ValueError(
                f"tmpr_weight={tmpr_weight!r} needs the membrane potentials of every layer, which compile=True and "
                "memory='lean' do not keep: use memory='packed' and compile=False"
            )
        optimizers = [str(name) for name in list_optimizers()]
        if opt.lower().removeprefix("lookahead_") not in optimizers:
            close = difflib.get_close_matches(opt, optimizers, n=3) or optimizers
            raise ValueError(f"timm has no optimizer {opt!r}; it has {', '.join(close)}")
        self.save_hyperparameters()
        self.network = create_network(
            NetworkConfig(
                backbone,
                num_classes=num_classes,
                in_chans=in_chans,
                timesteps=timesteps,
                neuron=neuron,
                amplitude=amplitude,
                decay=decay,
                threshold=threshold,
                learn_decay=learn_decay,
                learn_threshold=learn_threshold,
                reset=reset,
                detach_reset=detach_reset,
                surrogate=surrogate,
                freeze_cancelled=freeze_cancelled,
                backbone_kwargs=backbone_kwargs or {},
            )
        )
        self.network.memory = memory
        self._is_compiled = False
        self._is_real_fit = False  # a tuner (learning rate, batch size) tries steps before on_fit_start
        self._planned_lr: float | None = None  # what the optimizer was made with
        self._epoch_resumed, self._epoch_seeded = 0, -1
        # ANNs that the network starts from ("start") or learns from ("teacher"); in a dict, where they are no part of
        # the module: not of its parameters, its checkpoints or what DDP looks after
        self._anns: dict[str, torch.nn.Module] = {}
        if pretrained:
            weights = None if pretrained is True else pretrained
            self._anns["start"] = load_ann(
                backbone,
                weights,
                num_classes=num_classes,
                in_chans=in_chans,
                fresh_classifier=True,
                **(backbone_kwargs or {}),
            )
            copy_weights(self.network, self._anns["start"])
        top = {"acc1": 1, "acc5": 5} if num_classes > 5 else {"acc1": 1}
        accuracies: dict[str, Any] = {
            name: MulticlassAccuracy(num_classes, top_k=k, average="micro") for name, k in top.items()
        }
        self.train_metrics = MetricCollection({"acc1": accuracies["acc1"].clone()}, prefix="train/")
        self.val_metrics = MetricCollection(accuracies, prefix="val/")
        self.test_metrics = self.val_metrics.clone(prefix="test/")

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

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self._step(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Class probabilities [B, K]; labels, where the batch has any, are not looked at."""
        return self(images_of(batch, self._network_dtype)).softmax(-1)

    @property
    def _network_dtype(self) -> torch.dtype:
        return next(self.network.parameters()).dtype

    def _step(self, batch: Any, stage: Literal["train", "val", "test"]) -> Tensor:
        x = images_of(batch, self._network_dtype)
        y = targets_of(batch, self.hparams["num_classes"])
        is_train = stage == "train"
        if is_train:
            loss, logits = self._training_loss(x, y)
        else:
            logits = self(x)
            loss = F.cross_entropy(logits, y)
        self.log(
            f"{stage}/loss", loss, on_step=is_train, on_epoch=not is_train, sync_dist=not is_train, batch_size=len(y)
        )
        metrics = getattr(self, f"{stage}_metrics")
        metrics.update(logits.detach(), y if y.ndim == 1 else y.argmax(-1))
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        return loss

    def _training_loss(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The loss, shape [], and the logits [B, K] averaged over time."""
        hp = self.hparams
        listening: Any = membrane_regularization(self.network) if hp["tmpr_weight"] else nullcontext([])
        with listening as terms:
            per_step = self.network(x, per_step=True)  # [T, B, K]
        logits = per_step.mean(0)
        smoothing = hp["label_smoothing"]
        if hp["loss"] == "tet":
            loss = tet_loss(per_step, y, weight=hp["tet_weight"], label_smoothing=smoothing)
        else:
            loss = F.cross_entropy(logits, y, label_smoothing=smoothing)
        if teacher := self._anns.get("teacher"):
            if x.ndim != 4:
                raise ValueError(f"a teacher looks at still images [B, C, H, W], got shape {tuple(x.shape)}")
            with torch.no_grad():
                taught = teacher(x)
            distillation = distillation_loss(logits, taught, temperature=hp["teacher_temperature"])
            loss = (1 - hp["teacher_weight"]) * loss + hp["teacher_weight"] * distillation
        if terms:
            loss = loss + hp["tmpr_weight"] * torch.stack(terms).mean()
        return loss, logits

    def setup(self, stage: str) -> None:
        if not self.hparams["compile"] or self._is_compiled:
            return
        device = self.trainer.strategy.root_device.type
        if not can_compile(device):
            rank_zero_warn(f"compile=True: no compiler for the {device} was found, so the network runs as it is")
            return
        self.network.model.compile()
        self._is_compiled = True

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._epoch_resumed = epoch_to_come(checkpoint)

    def on_fit_start(self) -> None:
        hp = self.hparams
        self._is_real_fit = True
        if self._planned_lr not in (None, hp["lr"]):  # Lightning's LearningRateFinder has just set another
            self.trainer.strategy.setup_optimizers(self.trainer)
        if hp["teacher"]:
            teacher = load_ann(
                hp["teacher"], hp["teacher_weights"], num_classes=hp["num_classes"], in_chans=hp["in_chans"]
            )
            self._anns["teacher"] = teacher.requires_grad_(False).to(self.device)
        # last: no other random numbers may be drawn before Lightning makes the loader's iterator
        progress: Any = self.trainer.fit_loop.epoch_progress
        self._seed(progress.current.processed if self.trainer.ckpt_path is None else self._epoch_resumed)

    def on_train_start(self) -> None:
        ann = self._anns.get("start")
        if ann is not None and self.trainer.ckpt_path is None:  # a run that is resumed has begun already
            start_from(self, ann, images=self.hparams["calibration_images"])
        if self._is_real_fit:  # after the trial of a tuner, Lightning takes the weights back
            self._anns.pop("start", None)

    def teardown(self, stage: str) -> None:
        self._anns.pop("teacher", None)
        self._is_real_fit = False

    def on_train_epoch_start(self) -> None:
        # Lightning makes the iterator of a loader, which draws random numbers, right after this; but that of a fit's
        # first epoch long before, after on_fit_start, where that epoch has been seeded.
        if self._epoch_seeded != self.current_epoch:
            self._seed(self.current_epoch)

    def _seed(self, epoch: int) -> None:
        self._epoch_seeded = epoch
        if (seed := run_seed()) is not None:
            stream = epoch_seed(seed, epoch, self.global_rank)
            random.seed(stream)
            np.random.seed(stream)
            torch.manual_seed(stream)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # what a folded copy needs to know of the images
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        checkpoint[PREPROCESSING] = getattr(data, "preprocessing", None)
        checkpoint[LABEL_NAMES] = None if names is None else [str(name) for name in names]
        # the weights are here: who loads them must not fetch the ANN's again
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["pretrained"] = False
        checkpoint[self.CHECKPOINT_HYPER_PARAMS_KEY]["timesteps"] = self.network.timesteps  # may have been set since

    def configure_optimizers(self) -> OptimizerLRScheduler:
        hp = self.hparams
        self._planned_lr = hp["lr"]
        optimizer = create_optimizer_v2(
            self.network, hp["opt"], lr=hp["lr"], weight_decay=hp["weight_decay"], momentum=hp["momentum"]
        )
        loads: Any = getattr(optimizer, "_base_optimizer", optimizer)  # timm's Lookahead leaves it to another
        loads.register_load_state_dict_pre_hook(reshape_scalars)
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
