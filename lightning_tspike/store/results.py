"""What was measured of a published network: in ``config.json``, on its card, and what ``tspike zoo info`` says."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from ..analysis.measure import Measured
from ..files.weights import PRECISIONS, Precision

__all__ = ["Results", "read_times"]


@dataclass(frozen=True)
class Results:
    """What was measured of a network on a test set; accuracies lie in [0, 1], of the folded weights.

    Attributes:
        dataset: Name of the data.
        samples: How many test samples there are.
        command: What measures it again.
        top1: Top-1 accuracy by precision of the weights.
        top5: Top-5 accuracy by precision.
        macs: Multiply-accumulates per sample.
        synops: Synaptic operations per sample.
        microjoules: Energy per sample by the accounting ``"horowitz"``.
        milliseconds: Median time of a call by runtime, ``"ANN, ..."`` for the ANN of the same architecture; empty where
            that was not measured.
        timed: How: samples in a call, processor, threads; None where it was not.
        seeds: Top-1 accuracies of further trainings by the same recipe, with other seeds.
        twins: Top-1 accuracy of trainings by the same recipe with other neurons, by their names: ``"ANN"``.
        training_seconds: How long it was trained; None where that is not known.
    """

    dataset: str
    samples: int
    command: str
    top1: Mapping[Precision, float]
    top5: Mapping[Precision, float]
    macs: float
    synops: float
    microjoules: float
    milliseconds: Mapping[str, float] = field(default_factory=dict)
    timed: str | None = None
    seeds: tuple[float, ...] = ()
    twins: Mapping[str, float] = field(default_factory=dict)
    training_seconds: float | None = None

    @classmethod
    def of(
        cls,
        measured: Measured,
        *,
        times: tuple[Mapping[str, float], str] | None = None,
        seeds: tuple[float, ...] = (),
        twins: Mapping[str, float] | None = None,
        training_seconds: float | None = None,
    ) -> Results:
        """From a measurement on the test set and what was measured beside it; ``times`` as :func:`read_times` gives."""
        milliseconds, timed = times or ({}, None)
        return cls(
            measured.dataset,
            measured.samples,
            measured.command,
            dict(measured.accuracies),
            dict(measured.top5),
            measured.energy.macs,
            measured.energy.synops,
            measured.energy.total_picojoules / 1e6,
            dict(milliseconds),
            timed,
            tuple(seeds),
            dict(twins or {}),
            training_seconds,
        )

    def or_else(self, before: Results) -> Results:
        """With what ``before`` knows of the same weights beyond it: speed, training, on the same data seeds, twins."""
        kept = ["milliseconds", "timed"] if not self.milliseconds else []
        if before.dataset == self.dataset:
            kept += [name for name in ("seeds", "twins") if not getattr(self, name)]
        if self.training_seconds is None:
            kept.append("training_seconds")
        return replace(self, **{name: getattr(before, name) for name in kept})

    def of_precisions(self, precisions: Collection[Precision]) -> Results | None:
        """What is left of it where only the weights at some precisions are those that were measured."""
        top1, top5 = ({p: share for p, share in shares.items() if p in precisions} for shares in (self.top1, self.top5))
        return replace(self, top1=top1, top5=top5) if top1 else None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Results:
        """From what stands in a file.

        Raises:
            ValueError: It has other entries, or one of them cannot be what was measured.
        """
        known = {entry.name for entry in fields(cls)}
        if values.keys() != known:
            raise ValueError(f"has 'results' with the entries {sorted(values)}, expected {sorted(known)}")
        for name in ("dataset", "command"):
            _check(name, values[name], isinstance(values[name], str))
        _check("timed", values["timed"], values["timed"] is None or isinstance(values["timed"], str))
        _check("samples", values["samples"], type(values["samples"]) is int and values["samples"] > 0)
        for name in ("macs", "synops", "microjoules"):
            _check(name, values[name], _is_amount(values[name]))
        for name in ("top1", "top5"):
            shares = values[name]
            _check(name, shares, isinstance(shares, Mapping) and all(map(_is_share, shares.values())))
            _check(name, shares, set(shares) <= set(PRECISIONS))
        for name, is_one in (("milliseconds", _is_amount), ("twins", _is_share)):
            found = values[name]
            _check(name, found, isinstance(found, Mapping) and all(map(is_one, found.values())))
        _check("seeds", values["seeds"], isinstance(values["seeds"], (list, tuple)))
        _check("seeds", values["seeds"], all(map(_is_share, values["seeds"])))
        seconds = values["training_seconds"]
        _check("training_seconds", seconds, seconds is None or _is_amount(seconds))
        return cls(**{**values, "seeds": tuple(values["seeds"])})

    def to_dict(self) -> dict[str, Any]:
        """What stands in the file."""
        return asdict(self) | {"seeds": list(self.seeds)}


def read_times(file: str | os.PathLike[str]) -> tuple[dict[str, float], str]:
    """Milliseconds by runtime, and how they were measured, from what ``tspike bench NETWORK --json FILE`` has written.

    Raises:
        ValueError: The file holds something else.
        OSError: It cannot be read.
    """
    try:
        speed = json.loads(Path(file).read_text(encoding="utf-8"))
        runs = {**speed["runtimes"], **{f"ANN, {name}": times for name, times in speed["ann"].items()}}
        times = {name: 1e3 * figures["median_seconds"] for name, figures in runs.items()}
        machine, size = speed["machine"], speed["batch_size"]
        is_cpu = machine["device"] == "CPU"
        place = f"{machine['processor']}, {machine['threads']} threads" if is_cpu else machine["device"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{file} is not what `tspike bench NETWORK --json FILE` writes: {error!r}") from error
    return times, f"{size} {'sample' if size == 1 else 'samples'} a call, {place}"


def _check(name: str, value: Any, is_right: bool) -> None:
    if not is_right:
        raise ValueError(f"has 'results' whose {name!r} cannot have been measured, got {value!r}")


def _is_amount(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_share(value: Any) -> bool:
    return _is_amount(value) and value <= 1
