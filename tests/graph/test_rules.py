"""What the rules say of spikes is so."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_tspike.graph import rules, trace
from lightning_tspike.graph.layer_rules import LAYER_RULES, layer_of

SPIKES = torch.randint(-1, 2, (2, 8, 8, 8), generator=torch.Generator().manual_seed(0)).float()

# by rule: operations that keep spikes, that make whole numbers of them, and that make others
EXAMPLES: dict[str, tuple[list[Callable[[Tensor], Tensor]], ...]] = {
    "Move": ([torch.flatten, lambda x: torch.cat([x, x], 1), lambda x: x.roll(1), nn.PixelShuffle(2)], [], []),
    "Pointwise": ([F.relu, torch.abs, nn.Identity()], [], [nn.LeakyReLU(), nn.PReLU()]),
    "Local": (
        [nn.MaxPool2d(2), nn.ZeroPad2d(1), nn.Upsample(scale_factor=2)],
        [],
        [nn.AvgPool2d(3), nn.AdaptiveAvgPool2d(3), nn.Upsample(scale_factor=2, mode="bilinear")],
    ),
    "Reduce": ([lambda x: x.amax((2, 3))], [lambda x: x.sum((2, 3))], [lambda x: x.mean((2, 3))]),
    "Join": ([], [lambda x: x + x.flip(3), lambda x: x - x.flip(3)], []),
    "Product": ([], [], [lambda x: 0.3 * x, lambda x: x / 3]),
}


class Applied(nn.Module):
    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


def test_every_rule_has_examples() -> None:
    assert [type(rule).__name__ for rule in rules.RULES] == list(EXAMPLES)


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_have_that_rule_and_do_that_to_spikes(name: str) -> None:
    for wanted, operations in enumerate(EXAMPLES[name]):
        for run in operations:
            result = run(SPIKES)
            is_whole = torch.equal(result, result.round())
            found = 2 if not is_whole else 1 if result.abs().max() > 1 else 0
            assert found == wanted, run
            graph = trace(Applied(run), SPIKES[:1])
            modules = dict(Applied(run).named_modules())
            nodes = [n for n in graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
            applied = [rules.rule_of(n, modules, lambda n: n.op == "get_attr") for n in nodes]
            assert name in [type(rule).__name__ for rule in applied], run


def test_layers_are_known_by_their_type() -> None:
    for rule, layer in zip(LAYER_RULES[1:], (nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8)), strict=True):
        model = Applied(layer).eval()
        (node,) = [n for n in trace(model, SPIKES[:1]).nodes if n.op == "call_module"]
        found = layer_of(node, dict(model.named_modules()))
        assert found is not None
        assert isinstance(found[0], rule.modules)
        assert rule.is_odd(nn.Conv2d(8, 8, 3, bias=False)) if isinstance(layer, nn.Conv2d) else not rule.is_odd(layer)
