"""The paper's claims on real data: a module for each, its runs and its section of docs/results.md.

    python -m benchmarks.reproduce CLAIM DATASET --data.root=FOLDER   # trains what is missing; goes on where it stopped
    python -m benchmarks.reproduce page                               # only writes docs/results.md and results.csv

Trainings are those of narrow_runs.py, minutes each, and their lines are in benchmarks/results/narrow_runs_*.jsonl;
claims that ask for the same run share it. ``python -m benchmarks.reproduce CLAIM DATASET --list`` says which runs a
claim takes.
"""
