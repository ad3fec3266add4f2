"""``tspike show``: what a network does with one image or recording, as an HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from .._waiting import waiting
from .commands import Commands, takes_network

__all__ = ["add_commands"]


def add_commands(commands: Commands) -> None:
    """Add the command of this file."""
    show = commands.add(
        "show",
        _show,
        "show a network's spikes for an image or recording, as HTML",
        "Show what a network does with one image or event recording, as one HTML file that needs nothing else: spike "
        "maps of every layer by time step, membrane potentials of neurons that you click on, how the decision firms "
        "up, and operations by layer.",
    )
    takes_network(show)
    show.add_argument("input", metavar="FILE", type=Path, help="image, or recording (.bin, .aedat4, .npy)")
    show.add_argument("-o", "--output", type=Path, help="file to write; default: FILE's name, ending in .html")
    show.add_argument(
        "--timesteps", type=int, help="run a network of images for another number of time steps than its own"
    )
    show.add_argument("--channels", type=int, default=16, help="channels of a layer to show at most; default: 16")


def _show(options: argparse.Namespace) -> None:
    if options.channels < 1:
        options.command.parser.error(f"--channels must be at least 1, got {options.channels}")

    from ..analysis.spike_view import record_spikes, write_spike_page
    from ..data.event_layouts import read_recording
    from ..data.image_files import read_image
    from ..store.loading import load_with_config, transform_of

    network, manifest = load_with_config(options.network)
    spec = manifest.preprocessing
    transform = transform_of(spec, options.network)
    has_frames = spec is not None and spec.frames is not None
    if options.timesteps is not None:
        if has_frames:
            options.command.parser.error("--timesteps is for images: of a recording, every frame is a time step")
        network.timesteps = options.timesteps
    x = transform(read_recording(options.input)) if has_frames else read_image(options.input, transform)
    with waiting("recording spikes"):
        record = record_spikes(network, x, channels=options.channels)
    output = options.output or Path(f"{options.input.stem}.html")
    title = f"{options.network} sees {options.input.name}"
    print(write_spike_page(record, output, title=title, class_names=manifest.label_names, spec=spec))
