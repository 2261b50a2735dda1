"""What one forward pass does, written down, on networks of which every operation is known."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from MLILib.errors import BadInput
from MLILib.explanation.tracing import WRITTEN, trace

IMAGE = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)


class Branches(nn.Module):
    """A layer, a functional call, an in-place one and something that the image has no part in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 2, 3, padding=1)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        bias = torch.ones(1, 2, 1, 1).exp()
        y = self.act(self.first(x))
        return functional.gelu(y) + y + bias


class Pasted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(1, 1, 6, 6)
        out[:, :, 1:5, 1:5] = x
        return out.sin()


class Two(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class TestTrace:
    def test_every_operation_is_in_it_in_its_order(self) -> None:
        steps = trace(Branches().eval(), IMAGE).steps
        assert [s.operation for s in steps] == ["convolution", "relu", "gelu", "add", "add"]

    def test_each_operation_knows_its_module(self) -> None:
        steps = trace(Branches().eval(), IMAGE).steps
        assert [(s.module, s.kind) for s in steps[:3]] == [("first", "Conv2d"), ("act", "ReLU"), ("", "Branches")]

    def test_arguments_have_names(self) -> None:
        first = trace(Branches().eval(), IMAGE).steps[0]
        assert (list(first.arguments["padding"]), first.arguments["weight"]) == ([1, 1], (2, 1, 3, 3))

    def test_values_lead_from_the_output_to_the_image(self) -> None:
        found = trace(Branches().eval(), IMAGE)
        last, first = found.towards(found.output)[0], found.towards(found.output)[-1]
        assert last.outputs == (found.output,)
        assert first.inputs == (found.image,)
        assert found.output.shape == (1, 2, 4, 4)

    def test_a_tensor_written_in_parts_depends_on_what_was_written(self) -> None:
        found = trace(Pasted().eval(), IMAGE)
        assert [s.operation for s in found.towards(found.output)] == ["sin", WRITTEN, "copy"]

    def test_calls_have_shapes(self) -> None:
        calls = trace(Branches().eval(), IMAGE).calls
        assert [(c.module, c.shape) for c in calls] == [
            ("first", (1, 2, 4, 4)), ("act", (1, 2, 4, 4)), ("", (1, 2, 4, 4)),
        ]  # fmt: skip

    def test_the_network_is_as_it_was(self) -> None:
        network = Branches().eval()
        expected = network(IMAGE)
        before = {name: dict(m.__dict__) for name, m in copy.deepcopy(network).named_modules()}
        trace(network, IMAGE)
        assert {name: list(m.__dict__) for name, m in network.named_modules()} == {
            n: list(d) for n, d in before.items()
        }
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
        assert torch.equal(network(IMAGE), expected)

    def test_hooks_are_gone_after_an_error(self) -> None:
        network = Branches().eval()
        with pytest.raises(RuntimeError):
            trace(network, torch.zeros(1, 3, 4, 4))
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


class TestErrors:
    def test_two_outputs_are_refused(self) -> None:
        with pytest.raises(BadInput, match="gives 2 outputs"):
            trace(Two().eval(), IMAGE)

    def test_an_output_of_its_own_is_refused(self) -> None:
        class Constant(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.ones(1, 2)

        with pytest.raises(BadInput, match="does not depend on the image"):
            trace(Constant().eval(), IMAGE)
