"""``python -m benchmarks.reproduce``: see the package's docstring."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..narrow_runs import EPOCHS, results_file
from ..run_options import run_parser, split_arguments, train
from .page import CLAIMS, write_page

ROOT = Path(__file__).resolve().parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what a claim needs and write the page."""
    parser = run_parser("python -m benchmarks.reproduce")
    parser.add_argument("claim", choices=[*CLAIMS, "page"])
    parser.add_argument("dataset", nargs="?", help="which runs; left out for the page alone")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"of each training (default: {EPOCHS})")
    parser.add_argument("--list", action="store_true", help="say which runs the claim takes, and train nothing")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "results.md")
    options, data = split_arguments(parser, arguments)
    if options.claim != "page":
        claim = CLAIMS[options.claim]
        if options.dataset not in claim.DATASETS:
            parser.error(f"{options.claim} is tested on {', '.join(claim.DATASETS)}; got {options.dataset!r}")
        runs = claim.runs(options.dataset, options.epochs, data)
        if options.list:
            print("\n".join(run.name for run in runs))
            return
        train(parser, options, results_file(options.output, options.dataset), runs)
    write_page(options.output, options.page)


if __name__ == "__main__":
    main()
