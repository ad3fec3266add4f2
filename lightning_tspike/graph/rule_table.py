"""All rules as a table in Markdown: ``python -m lightning_tspike.graph.rule_table`` prints what docs/fold.md has."""

from __future__ import annotations

from .layer_rules import LAYER_RULES, LayerRule
from .rules import RULES, Rule

__all__ = ["rule_table"]


def rule_table() -> str:
    """The table: layers first, then the other operations, then what has no rule."""
    rules: list[LayerRule | Rule] = [*LAYER_RULES, *RULES]
    rows = [
        ("operation", "gauge", "do spikes stay spikes?"),
        ("---", "---", "---"),
        *((rule.covers, rule.gauges, rule.spikes) for rule in rules),
        ("anything else", "1 on both sides", "no"),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


if __name__ == "__main__":
    print(rule_table(), end="")
