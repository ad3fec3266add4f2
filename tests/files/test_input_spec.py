"""What a network's input is: one typed form of what datamodules, checkpoints and folders say."""

from __future__ import annotations

import json
from typing import Any

import pytest

from lightning_tspike.data import DigitsDataModule, EventDataModule, ImageDataModule
from lightning_tspike.files.input_spec import FrameSlicing, InputSpec

IMAGES = {
    "input_size": [3, 32, 32], "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 1], "interpolation": "bicubic",
    "crop_pct": 0.875,
}  # fmt: skip
FRAMES = {
    "input_size": [2, 34, 34], "mean": [0.0, 0.0], "std": [1.0, 1.0],
    "frames": {"timesteps": 4, "slice_by": "events", "sensor_size": [34, 34, 2]},
}  # fmt: skip


@pytest.mark.parametrize("facts", [IMAGES, FRAMES, {}, {"mean": [0.5]}, {**IMAGES, "crop_mode": "center"}])
def test_what_is_read_is_written_again(facts: dict[str, Any]) -> None:
    """To the letter, as config.json has a checksum; what a datamodule of one's own adds stays."""
    assert json.dumps(InputSpec.of(facts).to_dict()) == json.dumps(facts)
    assert InputSpec.of(InputSpec.of(facts)) == InputSpec.of(facts)


def test_fields() -> None:
    spec = InputSpec.of(FRAMES)
    assert spec == InputSpec((2, 34, 34), (0.0, 0.0), (1.0, 1.0), frames=FrameSlicing(4, "events", (34, 34, 2)))
    assert spec.complete() == ((2, 34, 34), (0.0, 0.0), (1.0, 1.0))
    assert InputSpec.of({"crop_mode": "center"}).others == {"crop_mode": "center"}
    with pytest.raises(ValueError, match=r"\['input_size', 'std'\] are not known"):
        InputSpec(mean=(0.5,)).complete()


def test_datamodules_say_it_as_a_plain_dict() -> None:
    """As it is saved in checkpoints, which hold nothing but plain values."""
    assert DigitsDataModule().preprocessing == {"input_size": [1, 8, 8], "mean": [0.3053], "std": [0.376]}
    pytest.importorskip("tonic")
    assert EventDataModule(dataset="NMNIST").preprocessing == FRAMES | {
        "frames": {"timesteps": 4, "slice_by": "time", "sensor_size": [34, 34, 2]}
    }


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ("text", "'preprocessing' must have names and values, got 'text'"),
        ({"input_size": [3, 32]}, r"'input_size' must be \[C, H, W\] in pixels"),
        ({"input_size": [3, 32, True]}, r"'input_size' must be \[C, H, W\] in pixels"),
        ({"crop_pct": 1e-30}, "asks for inputs of"),
        ({"mean": None}, "'mean' must be left out where it is not known"),
        ({"mean": 0.5}, "'mean' must be a list of numbers, got 0.5"),
        ({"std": [float("inf")]}, "'std' must be a list of numbers"),
        ({**FRAMES, "input_size": [1, 34, 34], "mean": [0.0], "std": [1.0]}, "'sensor_size' must end with the 1"),
        ({"frames": {"timesteps": 10**6, "slice_by": "time", "sensor_size": [8, 8, 1]}}, "1000000 timesteps"),
    ],
)
def test_what_makes_no_sense_is_named(facts: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputSpec.of(facts)


def test_options_of_a_datamodule_are_checked_before_a_run() -> None:
    """Not when its checkpoint is to be loaded."""
    with pytest.raises(ValueError, match=r"'crop_pct' must be a number in \(0, 1\], got 1.5"):
        ImageDataModule(dataset="fashion_mnist", crop_pct=1.5)
