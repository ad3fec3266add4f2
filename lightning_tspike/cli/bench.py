"""``tspike bench``: how fast a network is in every runtime, beside the ANN of the same architecture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .commands import Commands, check_device, check_json, completes, takes_json, takes_network, write_json
from .data import recipe_changes, recipe_data

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["add_commands"]

_SAMPLES = 32  # of a test set, at least, to count spikes on
_OWN_DATA = "digits"  # the recipe whose data is installed with the package


def add_commands(commands: Commands) -> None:
    """Add the command of this file."""
    bench = commands.add(
        "bench",
        _bench,
        "time a network in every runtime, beside its ANN",
        "Latency and throughput of a folded network in every runtime that is there, beside the ANN of the same "
        "architecture, all measured in turn; firing rates and synaptic operations. Spikes depend on the input: with a "
        "recipe that is its test set, otherwise noise, and the digits for a network that was trained on them.",
        takes_more=True,
    )
    takes_network(bench)
    bench.add_argument("--batch-size", type=int, default=1, help="images in a call; default: 1")
    bench.add_argument("--timesteps", type=int, help="time steps T; default: those of its training")
    bench.add_argument("--threads", type=int, help="of the CPU; default: torch's")
    bench.add_argument("--rounds", type=int, default=20, help="calls of each runtime that count; default: 20")
    bench.add_argument("--runtimes", metavar="NAME,...", help="only these, such as eager,integer; default: all")
    bench.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: cpu")
    recipe = bench.add_argument(
        "--recipe", help="whose test set is the input; options such as --data.root=PATH change it"
    )
    completes("recipes", recipe)
    takes_json(bench)


def _bench(options: argparse.Namespace) -> None:
    changes = recipe_changes(options)
    for name in ("batch_size", "timesteps", "threads", "rounds"):
        number = getattr(options, name)
        if number is not None and number < 1:
            options.command.parser.error(f"--{name.replace('_', '-')} must be at least 1, got {number}")
    check_json(options)
    check_device(options)

    from ..analysis import measure_speed
    from ..analysis.runtimes import RUNTIMES
    from ..store.catalog import find_entry
    from ..store.loading import load

    network = load(options.network, device=options.device, timesteps=options.timesteps)
    entry = find_entry(options.network)
    recipe = options.recipe or (_OWN_DATA if entry is not None and entry.recipe == _OWN_DATA else None)
    samples, words = None, ""
    if recipe is not None:
        if "frames" in network.pretrained_cfg:
            changes = [*changes, f"--data.timesteps={network.timesteps}"]
        samples = _test_samples(recipe, changes, max(options.batch_size, _SAMPLES)).to(options.device)
        words = f"test samples of {recipe}"
    report = measure_speed(
        network,
        samples,
        batch_size=options.batch_size,
        rounds=options.rounds,
        threads=options.threads,
        runtimes=list(RUNTIMES) if options.runtimes is None else options.runtimes.split(","),
        input=words,
    )
    print(f"{options.network}: {report}")
    write_json(options, {"network": options.network, **report.to_dict()})


def _test_samples(recipe: str, changes: Sequence[str], count: int) -> Tensor:
    """The first test samples of a recipe, as the network gets them; some of them again where there are fewer."""
    import torch

    from .._batches import first_images

    data = recipe_data(recipe, changes)
    data.prepare_data()
    data.setup("test")
    first = first_images(data.test_dataloader(), count, torch.float32)
    if first is None:
        raise ValueError(f"the recipe {recipe} has no test samples: leave it out to measure on noise")
    return first[torch.arange(count) % len(first)]
