"""The table of layers, and what a layer gives, on networks whose sizes are counted by hand."""

import pytest
import torch
from torch import nn

from MLILib.errors import BadInput
from MLILib.explanation.layers import activations, find_layer, layers, observed

IMAGE = torch.linspace(-1, 1, 200).reshape(2, 1, 10, 10)


class Network(nn.Module):
    """A block, a rectifier in place that runs twice, a head, and a layer that never runs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.block = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 4, 3, stride=2))
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)
        self.idle = nn.Linear(2, 2)
        self.both = Both()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(self.block(x))
        self.both(x)
        return self.act(self.head(x.mean((2, 3))))


class Both(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class TestTable:
    def test_rows_have_names_kinds_parameters_sizes_and_calls(self) -> None:
        rows = [(r.name, r.kind, r.parameters, r.shape, r.calls) for r in layers(Network().eval(), IMAGE)]
        assert rows == [
            ("block", "Sequential", 30 + 112, (2, 4, 3, 3), 1),
            ("block.0", "Conv2d", 3 * 9 + 3, (2, 3, 8, 8), 1),
            ("block.1", "Conv2d", 4 * 3 * 9 + 4, (2, 4, 3, 3), 1),
            ("act", "ReLU", 0, (2, 2), 2),
            ("head", "Linear", 10, (2, 2), 1),
            ("both", "Both", 0, None, 1),
        ]


class TestActivations:
    def test_a_layer_gives_what_it_computes_alone(self) -> None:
        network = Network().eval()
        with torch.no_grad():
            expected = network.block(IMAGE)
        # the rectifier after it works in place, and must not be seen here
        assert float(expected.min()) < 0
        assert torch.equal(activations(network, IMAGE, "block.1"), expected)

    def test_the_network_gives_the_same_while_it_is_observed_and_after(self) -> None:
        network = Network().eval()
        expected = network(IMAGE)
        with observed(network, "block.1"):
            assert torch.equal(network(IMAGE), expected)
        assert not any(m._forward_hooks for m in network.modules())

    def test_a_layer_that_runs_twice_has_no_single_output(self) -> None:
        with pytest.raises(BadInput, match="runs 2 times"):
            activations(Network().eval(), IMAGE, "act")

    def test_a_layer_that_does_not_run_is_an_error(self) -> None:
        with pytest.raises(BadInput, match="'idle' does not run"):
            activations(Network().eval(), IMAGE, "idle")

    def test_a_layer_that_gives_two_tensors_is_an_error(self) -> None:
        with pytest.raises(BadInput, match="no single tensor, but tuple"):
            activations(Network().eval(), IMAGE, "both")


class TestNames:
    def test_a_layer_is_found_by_its_name(self) -> None:
        network = Network()
        assert find_layer(network, "block.1") is network.block[1]

    @pytest.mark.parametrize("name", ["blok.1", ""])
    def test_an_unknown_layer_lists_those_that_exist(self, name: str) -> None:
        with pytest.raises(BadInput) as caught:
            find_layer(Network(), name)
        assert all(known in str(caught.value) for known in ("block.0", "act", "head"))

    def test_the_likeliest_is_listed_first(self) -> None:
        with pytest.raises(BadInput) as caught:
            find_layer(Network(), "haed")
        assert caught.value.cause.startswith("Its layers are head, ")
