"""An N-MNIST recording as a live stream: a decision after every frame, as it firms up.

    python docs/examples/live_stream.py PATH/NMNIST/Test/7/00001.bin [--network tspike-nmnist] [--frame-ms 20]

Events are read with tonic (pip install 'lightning-tspike[events]') and handed on one by one in the order in which the
sensor saw them, at its pace. Whoever receives them knows nothing of what is to come: when a frame's time is over, its
events are counted, the network takes one step, and the decision so far is printed. A frame is as long as those that the
network was trained on, a part in T of the recording; a camera that never stops has no such length: say --frame-ms.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tonic.datasets import NMNIST
from tonic.io import read_mnist_file

import lightning_tspike as lt


def main(arguments: list[str] | None = None) -> int:
    """Play a recording and print the decision after every frame; gives the last one."""
    parser = argparse.ArgumentParser(description="Watch a decision firm up while a recording of N-MNIST is played.")
    parser.add_argument("recording", type=Path, help="a file .bin of N-MNIST")
    parser.add_argument("--network", default="tspike-nmnist", help="entry, folder or checkpoint; default: %(default)s")
    parser.add_argument("--frame-ms", type=float, help="duration of a frame; default: the recording's, divided by T")
    options = parser.parse_args(arguments)
    if not options.recording.is_file():
        parser.error(f"there is no file {options.recording}")
    if options.frame_ms is not None and not options.frame_ms > 0:
        parser.error(f"--frame-ms must be a positive number of milliseconds, got {options.frame_ms}")
    network = lt.zoo.load(options.network)
    known = network.pretrained_cfg
    frames = known.get("frames") or {}
    sensor = tuple(frames.get("sensor_size", ()))
    if frames.get("slice_by") != "time" or tuple(known["input_size"]) != (sensor[2], sensor[1], sensor[0]):
        parser.error(f"{options.network} is not for frames of equal duration in the sensor's size")
    names = known.get("label_names") or [str(k) for k in range(known["num_classes"])]

    events = read_mnist_file(str(options.recording), dtype=NMNIST.dtype)
    duration = int(events["t"][-1] - events["t"][0])
    window = duration // network.timesteps if options.frame_ms is None else max(1, round(1000 * options.frame_ms))
    print(f"{options.recording}: {len(events)} events in {duration / 1e3:.0f} ms, frames of {window / 1e3:.0f} ms")

    stream = lt.inference.stream(network)
    best = -1
    for frame in frames_of(as_they_arrive(events), sensor, window):
        probabilities = stream(frame).softmax(1)[0]
        first, second = probabilities.topk(2).indices.tolist()
        best = first
        print(
            f"{stream.steps * window / 1e3:5.0f} ms, {int(frame.sum()):5} events: {names[first]} "
            f"({probabilities[first]:.0%}), then {names[second]} ({probabilities[second]:.0%})"
        )
    return best


def as_they_arrive(events: Any) -> Iterator[Any]:
    """Events one by one, none earlier than the sensor saw it."""
    start = time.perf_counter() - events["t"][0] * 1e-6
    for event in events:
        wait = start + event["t"] * 1e-6 - time.perf_counter()
        if wait > 1e-3:
            time.sleep(wait)
        yield event


def frames_of(events: Iterable[Any], sensor: tuple[int, int, int], window: int) -> Iterator[torch.Tensor]:
    """Counts of events [1, P, H, W], each frame as soon as an event shows that its time is over.

    Args:
        events: With fields x, y, t (microseconds) and p, by time.
        sensor: Width W, height H and polarities P.
        window: Duration of a frame in microseconds.
    """
    width, height, polarities = sensor
    counts = np.zeros((polarities, height, width), dtype=np.float32)
    end = None
    for event in events:
        if end is None:
            end = int(event["t"]) + window
        while event["t"] >= end:  # several, where nothing happened for longer than a frame
            yield torch.from_numpy(counts)[None]
            counts = np.zeros_like(counts)
            end += window
        counts[event["p"], event["y"], event["x"]] += 1
    # what has begun after the last full frame is not a frame


if __name__ == "__main__":
    main()
