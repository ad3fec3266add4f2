"""Options that do not go together, or not with the machine: refused, or said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..kernels.native import has_instructions
from .objective import Objective

__all__ = ["check_start", "check_together", "slow_precision"]

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "avx_ne_convert")


def check_together(objective: Objective, calibration_images: int, memory: str, compile: bool) -> None:
    """Refuse what does not go together, or is out of range.

    Raises:
        ValueError: It says what to leave out.
    """
    if calibration_images < 2:
        raise ValueError(f"calibration_images must be at least 2, got {calibration_images!r}")
    if compile and memory != "full":
        raise ValueError(
            f"compile=True decides by itself what is kept for the backward pass: leave memory at 'full' (it is "
            f"{memory!r}), or compile=False"
        )
    if objective.tmpr_weight and (compile or memory == "lean"):
        raise ValueError(
            f"tmpr_weight={objective.tmpr_weight!r} needs the membrane potentials of every layer, which compile=True "
            "and memory='lean' do not keep: use memory='packed' and compile=False"
        )


def check_start(initial_rate: float | None, pretrained: bool | str) -> None:
    """Refuse a firing rate that is none, or what would undo it.

    Raises:
        ValueError: It says what was expected.
    """
    if initial_rate is None:
        return
    if not 0 < initial_rate < 1:
        raise ValueError(f"initial_rate must be a firing rate in (0, 1), or None; got {initial_rate!r}")
    if pretrained:
        raise ValueError(
            f"initial_rate={initial_rate!r} would replace the thresholds that pretrained={pretrained!r} fits to the "
            "ANN: leave one of them out"
        )


def slow_precision(precision: Any, device: str, has: Callable[[str], bool] = has_instructions) -> str | None:
    """What to say of a trainer's precision that makes training slower on this machine, or None.

    That is bfloat16 on an x86 processor without instructions for it; nothing is known here of others.

    Args:
        precision: Of the trainer.
        device: ``"cpu"`` or another type of device.
        has: Whether the processor has some instructions, by their name.
    """
    if device != "cpu" or "bf16" not in str(precision) or not has("avx2") or any(map(has, _BFLOAT16)):
        return None
    return (
        f"this processor has no instructions for bfloat16, so that precision={precision!r} is many times slower here "
        "than float32: --trainer.precision=32-true, or Trainer(precision='32-true')"
    )
