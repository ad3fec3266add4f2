"""How the recordings of known datasets lie on disk, and how one of them is read; the readers are tonic's."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LAYOUTS", "Layout", "read_recording"]


@dataclass(frozen=True)
class Layout:
    """Files of a dataset, in the folder that tonic unpacks them into.

    Attributes:
        splits: Folders of the training and of the test recordings; one alone where the dataset has no such split.
        pattern: Recordings in such a folder.
        label: Label of a recording, by its path.
        read: A file to events, an array with fields x, y, t (microseconds) and p.
        expected: The same in words, for messages.
    """

    splits: tuple[str, ...]
    pattern: str
    label: Callable[[Path], int | str]
    read: Callable[[Path], Any]
    expected: str


def _read_nmnist(file: Path) -> Any:
    from tonic.datasets import NMNIST
    from tonic.io import read_mnist_file

    # a file is nothing but events of 5 bytes, so one that is cut off in the midst of an event is told by its size
    if (length := os.path.getsize(file)) % 5:
        raise ValueError(f"{length} bytes are not a whole number of events of 5 bytes: the file is cut off")
    return read_mnist_file(str(file), dtype=NMNIST.dtype)


def _read_aedat4(file: Path) -> Any:
    from tonic.io import read_aedat4

    events = read_aedat4(str(file))
    events.dtype.names = ["t", "x", "y", "p"]
    return events


def _read_gesture(file: Path) -> Any:
    from tonic.datasets import DVSGesture
    from tonic.io import make_structured_array

    x, y, p, milliseconds = np.load(file).T
    return make_structured_array(x, y, p, milliseconds * 1000, dtype=DVSGesture.dtype)


LAYOUTS = {
    "NMNIST": Layout(
        ("Train", "Test"), "*/*.bin", lambda file: int(file.parent.name), _read_nmnist,
        "NMNIST/Train/DIGIT/*.bin and NMNIST/Test/DIGIT/*.bin",
    ),
    "CIFAR10DVS": Layout(
        ("",), "*/*.aedat4", lambda file: file.parent.name, _read_aedat4, "CIFAR10DVS/CLASS/*.aedat4"
    ),
    "DVSGesture": Layout(
        ("ibmGestureTrain", "ibmGestureTest"), "*/*.npy", lambda file: int(file.stem), _read_gesture,
        "DVSGesture/ibmGestureTrain/USER_LIGHTING/LABEL.npy and DVSGesture/ibmGestureTest/...",
    ),
}  # fmt: skip
"""By the name of tonic's class. Another dataset with files of its own is one more line here."""


def read_recording(file: Path) -> Any:
    """Events of a file of one of these datasets, which its suffix tells: an array with fields x, y, t and p.

    Raises:
        ValueError: No dataset here has such files, or it is damaged.
        FileNotFoundError: There is no such file.
    """
    readers = {Path(layout.pattern).suffix: layout.read for layout in LAYOUTS.values()}
    if file.suffix not in readers:
        raise ValueError(f"{file} is no recording that can be read here: expected a file {', '.join(sorted(readers))}")
    if not file.is_file():
        raise FileNotFoundError(f"there is no recording {file}")
    try:
        return readers[file.suffix](file)
    except Exception as error:  # event files raise anything, from OSError to struct.error
        raise ValueError(f"{file} cannot be read as a recording: {type(error).__name__}: {error}") from error
