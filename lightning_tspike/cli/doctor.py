"""``tspike doctor``: a run's first questions, answered from one batch and a few training steps."""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._waiting import waiting
from .commands import Commands, check_device, check_json, completes, takes_json, write_json

if TYPE_CHECKING:
    from ..data.base import ClassificationDataModule
    from ..training.module import TernarySNNModule

__all__ = ["add_commands"]

_SECTIONS = ("trainer", "model", "data")


def add_commands(commands: Commands) -> None:
    """Add the command of this file."""
    doctor = commands.add(
        "doctor",
        _doctor,
        "what a run will be like: layers, memory, speed, hours",
        "Builds what a recipe trains, runs a batch and a few training steps on one device, and says how its layers of "
        "neurons fire, which amplitudes learn, how it folds, how many operations it takes, which batch fits into "
        "memory, and how long the run will take. Of a run's folder or checkpoint, with its weights. Options such as "
        "--data.root=PATH or --model.timesteps=2 change the recipe.",
        takes_more=True,
    )
    source = doctor.add_argument(
        "source", metavar="RECIPE|PATH", help="name of a recipe, YAML file, run folder or checkpoint"
    )
    completes("recipes", source)
    doctor.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    takes_json(doctor)


def _doctor(options: argparse.Namespace) -> None:
    check_json(options)
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch reads it when it is imported: no word of its profiler
    check_device(options)

    import torch

    from ..training.checkup import check_up

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # which accelerators there are is no answer to a question
    recipe, checkpoint = _recipe_of(options.source)
    module, data, trainer = _built(recipe, options.more)
    if checkpoint is not None:
        from ..store.checkpoint import read_checkpoint

        module.network.load_state_dict(read_checkpoint(checkpoint).network.state_dict())
    with waiting(f"trying {options.source}"):
        report = check_up(
            module, data, device=device, precision=trainer.precision or "32-true", epochs=trainer.max_epochs
        )
    print(f"{options.source}: {report}")
    write_json(options, {"source": options.source, **report.to_dict()})


def _recipe_of(source: str) -> tuple[Path, Path | None]:
    """The file with the options, and the checkpoint, where there is one."""
    from ..zoo import recipe_path

    path = Path(source)
    if path.is_dir():
        last = path / "checkpoints" / "last.ckpt"
        recipe, checkpoint = path / "config.yaml", last if last.is_file() else None
    elif path.suffix == ".ckpt":
        if not path.is_file():
            raise FileNotFoundError(f"there is no checkpoint {path.resolve()}")
        recipe, checkpoint = path.resolve().parents[1] / "config.yaml", path
    else:
        return (path if path.is_file() else recipe_path(source)), None
    if not recipe.is_file():
        raise FileNotFoundError(
            f"{source} has no config.yaml of a run ({recipe}): give a recipe, or the folder of a run that "
            "`tspike fit` has begun"
        )
    return recipe, checkpoint


def _built(recipe: Path, words: Sequence[str]) -> tuple[TernarySNNModule, ClassificationDataModule, Any]:
    """Module, datamodule and the trainer's options of a recipe; no trainer is made, whose devices may not be here."""
    import yaml
    from lightning import LightningDataModule, Trainer
    from lightning.pytorch.cli import LightningArgumentParser

    from ..training.module import TernarySNNModule

    sections = yaml.safe_load(recipe.read_text()) or {}
    parser = LightningArgumentParser(prog="tspike doctor RECIPE")
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.add_lightning_class_args(TernarySNNModule, "model")
    parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
    defaults = parser.parse_object({name: sections[name] for name in _SECTIONS if name in sections})
    config = parser.parse_args(list(words), namespace=defaults)
    made = parser.instantiate_classes(config)
    return made.model, made.data, config.trainer
