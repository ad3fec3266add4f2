"""What a callback has measured since the first step of a run, also where the run was resumed in another folder."""

from __future__ import annotations

import math
from array import array
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from ..analysis.run_logs import RunLogs, Series
from .run_files import write_json

__all__ = ["History", "RemembersLayers"]

_MOST_STEPS = 128


class RemembersLayers(Callback):
    """A callback whose history of the layers is part of checkpoints.

    Args:
        file: Of the run's folder, for what came before a run.
    """

    def __init__(self, file: str) -> None:
        self._history = History(file)

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._history = History(self._history.file)  # before a checkpoint's is loaded, where a run is resumed

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": self._history.values}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._history.values = dict(state_dict["history"])


class History:
    """A number for each layer at each step, in few enough steps for a checkpoint.

    The log of a run that was resumed may begin where it was resumed. What came before is in the checkpoint, and from
    there goes to a file of the run's folder, for the report.

    Args:
        file: Name of that file.

    Attributes:
        values: Step -> layer in the order of depth -> number.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.values: dict[int, dict[str, float]] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add the numbers of a step."""
        self.values[step] = values
        if len(self.values) > _MOST_STEPS:  # a long run keeps every other step, again and again
            self.values = {s: known for i, (s, known) in enumerate(self.values.items()) if i % 2 == 0 or s == step}

    def write(self, run: Path) -> None:
        """Leave what came before a run in its folder, where there is anything."""
        if self.values:
            layers = dict.fromkeys(name for values in self.values.values() for name in values)
            series = {name: [values.get(name, math.nan) for values in self.values.values()] for name in layers}
            write_json(run / self.file, {"steps": list(self.values), "layers": series})

    def before(self, logs: RunLogs, series: Series) -> Series:
        """The series of a run's log, with what came before it in front.

        Raises:
            LookupError, TypeError, ValueError: The file is not as :meth:`write` leaves it.
        """
        content: Any = logs.json(self.file)
        if content is None:
            return series
        steps = [float(step) for step in content["steps"]]
        whole: Series = {}
        for name, (logged, values) in series.items():
            earlier = zip(steps, map(float, content["layers"].get(name, [math.nan] * len(steps))), strict=True)
            points = [(step, value) for step, value in earlier if step < logged[0] and not math.isnan(value)]
            whole[name] = (
                array("d", [step for step, _ in points]) + logged,
                array("d", [value for _, value in points]) + values,
            )
        return whole
