"""Models as graphs: what runs is written down, whatever way it is written, or refused in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bnn_ext
from bnn_ext.convert import ir
from bnn_ext.convert.capture import CaptureError, capture

pytestmark = pytest.mark.usefixtures("one_thread")


class Call(nn.Module):
    def __init__(self, function: Callable[..., Any], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


@torch.no_grad()
def assert_captured(model: nn.Module, *shapes: tuple[int, ...], notes: int = 0) -> list[ir.Node]:
    """The graph gives what the model gives, for any batch; the nodes that call something."""
    found = capture(model, [torch.randn(3, *shape) for shape in shapes])
    assert len(found.notes) == notes
    for batch in (1, 2, 3, 5):
        inputs = [torch.randn(batch, *shape) for shape in shapes]
        expected, spec = pytree.tree_flatten(model(*(x.clone() for x in inputs)))
        outputs = ir.run(found.graph, inputs)
        assert spec == found.spec
        assert len(outputs) == len(expected)
        assert all(torch.equal(x, y) for x, y in zip(outputs, expected, strict=True))
    return [node for node in found.graph.nodes if node.op == "call_function"]


def in_place(m: nn.Module, x: Tensor) -> Tensor:
    x.mul_(2).add_(1)
    x[:, 1] = 0
    x[:, 2:4].clamp_(-1, 1)
    return x


def indexed(m: nn.Module, x: Tensor) -> Tensor:
    y = torch.zeros_like(x)
    y.copy_(x)
    return y.t().contiguous().t() + x


def out_of_data(m: nn.Module, x: Tensor) -> Tensor:
    m.w.data = m.w.sign()
    y = x.clone()
    y.data = y.data.sign()
    return F.linear(y, m.w)


def by_shape(m: nn.Module, x: Tensor) -> Tensor:
    if x.dim() == 4 and x.shape[2] > 4:
        x = F.avg_pool2d(x, 2)
    return x.view(x.size(0), -1)


def rows_of_maps(m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.permute(0, 2, 3, 1).reshape(n * h * w, c).view(n, h, w, c)


def shuffled(m: nn.Module, x: Tensor) -> Tensor:
    n, c, h, w = x.size()
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, -1, h, w)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda m, x: x.relu_() + 1, (6,)),
        (lambda m, x: F.relu(x, inplace=True).neg_(), (6,)),
        (lambda m, x: x + x.detach().clone(), (6,)),
        (lambda m, x: x.new_ones(x.shape[1]) + x, (6,)),
        (lambda m, x: x.expand(2, -1, -1).sum(0), (6,)),
        (lambda m, x: torch.cat([x, x.flip(1)], 1).chunk(3, dim=1)[2], (6,)),
        (lambda m, x: x.unbind(1)[3], (6,)),
        (lambda m, x: F.normalize(x), (6,)),
        (lambda m, x: x.softmax(1).log(), (6,)),
        (lambda m, x: torch.einsum("nc,oc->no", x, m.w), (6,)),
        (lambda m, x: x.view(-1, 2, 3).transpose(1, 2).flatten(1), (6,)),
        (out_of_data, (6,)),
        (by_shape, (4, 6, 6)),
        (by_shape, (4, 3, 3)),
        (rows_of_maps, (4, 3, 2)),
        (shuffled, (4, 3, 2)),
        (lambda m, x: F.interpolate(x, scale_factor=2.0), (4, 3, 2)),
        (lambda m, x: F.adaptive_avg_pool2d(x, 1).flatten(1), (4, 3, 2)),
        (lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0], (4, 4, 4)),
        (lambda m, x: x.mean(dim=(2, 3)), (4, 3, 2)),
        (lambda m, x: F.pad(x, (1, 2, 0, 1), value=-1.0), (4, 3, 2)),
    ],
)
def test_what_people_write(function, shape):
    assert_captured(Call(function, w=torch.randn(5, 6)), shape)


def test_writing_into_parts():
    """Parts of a value that was written are what nobody can follow: refused, or right."""
    for function in (in_place, indexed):
        model = Call(function)
        try:
            assert_captured(model, (6,))
        except CaptureError:
            x = torch.randn(3, 6)
            fast = bnn_ext.convert(model, x)
            assert fast.report.verification.equal
            assert fast.report.layers[0].status == "left"


def test_a_view_that_was_written_through_another():
    def through(m: nn.Module, x: Tensor) -> Tensor:
        y = x * 1
        part = y[:, :2]
        y.neg_()
        return part

    model = Call(through)
    with pytest.raises(CaptureError, match="Call uses a tensor that was written through another"):
        capture(model, [torch.randn(3, 6)])
    fast = bnn_ext.convert(model, torch.randn(3, 6))
    assert "written through another view" in fast.report.layers[0].reason
    x = torch.randn(2, 6)
    assert torch.equal(fast(x.clone()), model(x.clone()))


def test_values_in_python_are_noted():
    def scaled(m: nn.Module, x: Tensor) -> Tensor:
        return x * (2.0 if m.w.sum().item() > 0 else 3.0)

    assert_captured(Call(scaled, w=torch.ones(2)), (6,))  # of a constant: nothing to say
    found = capture(Call(lambda m, x: x if x.sum().item() > 1e9 else -x), [torch.randn(3, 6)])
    assert len(found.notes) >= 1
    assert "reads a value in Python" in found.notes[0]
    fast = bnn_ext.convert(Call(lambda m, x: x if x.sum() > 1e9 else -x), torch.randn(3, 6))
    assert "reads a value in Python" in str(fast.report)


@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (lambda m, x: x * x.shape[0], "number that follows the batch"),
        (lambda m, x: x + torch.randn(x.shape[0], 1), "constant whose size follows the batch"),
        (lambda m, x: x if x.shape[0] < 4 else -x, "something else for another batch size"),
        (lambda m, x: (x, 3), "must return tensors, found int"),
    ],
)
def test_what_cannot_be_written_down(function, sentence):
    with pytest.raises(CaptureError, match=sentence):
        capture(Call(function), [torch.randn(3, 6)])


def test_models_that_take_one_batch_size_only():
    def fixed(m: nn.Module, x: Tensor) -> Tensor:
        assert x.shape[0] == 3, "three images, please"
        return x * 2

    x = torch.randn(3, 6)
    with pytest.raises(AssertionError, match="three images"):
        bnn_ext.convert(Call(fixed), x)


def test_inputs_and_outputs_of_any_structure():
    model = Call(lambda m, x, y: {"sum": x + y, "parts": [x * 2, (y, {"x": x})]})
    assert_captured(model, (6,), (6,))
    x, y = torch.randn(2, 6), torch.randn(2, 6)
    fast = bnn_ext.convert(model, (x, y))
    found = fast(x, y)
    assert torch.equal(found["parts"][1][1]["x"], x)
    assert torch.equal(found["sum"], x + y)
    with pytest.raises(TypeError, match="takes 2 inputs, found 1"):
        fast(x)


def test_shared_modules_are_called_twice():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    conv.weight.data.sign_()
    model = nn.Sequential(conv, nn.BatchNorm2d(4), conv, nn.ReLU(), conv).eval()
    nodes = assert_captured(model, (4, 5, 5))
    layers = [node.meta["layer"] for node in nodes if "convolution" in str(node.target)]
    assert layers == ["0", "0", "0"]


class Overwriting(nn.Linear):
    """Keeps its real weight aside and computes with the signs in its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self.weight, "org"):
            self.weight.org = self.weight.data.clone()
        self.weight.data = self.weight.org.sign()
        x.data = x.data.sign()
        return F.linear(x, self.weight, self.bias)


def test_the_model_stays_as_it_was():
    model = nn.Sequential(Overwriting(6, 5), nn.BatchNorm1d(5), Overwriting(5, 2)).eval()
    x = torch.randn(3, 6)
    before = copy.deepcopy(model.state_dict())
    capture(model, [x])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not hasattr(model[0].weight, "org")
    assert not model[0]._forward_pre_hooks
    assert not torch.equal(x, x.sign())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_contexts(context):
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
    with context():
        x = torch.randn(2, 4, 5, 5)
        graph = capture(model, [x]).graph
        assert torch.equal(ir.run(graph, [x])[0], model(x))


def test_memory_formats_are_written_down():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU()).eval()
    x = torch.randn(2, 4, 5, 5).to(memory_format=torch.channels_last)
    graph = capture(model, [x]).graph
    conv, relu = (node for node in graph.nodes if node.op == "call_function")
    assert conv.meta["reads"] is relu.meta["reads"] is torch.channels_last
    assert conv.meta["channels_last"]
    part = capture(Call(lambda m, x: x[:, 1:].exp()), [torch.randn(2, 4, 5, 5)]).graph
    *_, exp = (node for node in part.nodes if node.op == "call_function")
    assert exp.meta["reads"] is torch.preserve_format


def test_values_are_kept_if_asked_for():
    model, x = nn.Sequential(nn.Linear(6, 5), nn.ReLU()).eval(), torch.randn(3, 6)
    graph = capture(model, [x], keep_values=True).graph
    linear, relu = (node for node in graph.nodes if node.op == "call_function")
    assert torch.equal(linear.meta["value"], model[0](x))
    assert torch.equal(relu.meta["value"], model(x))
    assert relu.meta["zeros"] == float((model(x) == 0).double().mean())


@pytest.mark.parametrize("shape", [(), (0, 6)])
def test_inputs_must_be_batches(shape):
    with pytest.raises(CaptureError, match="inputs must be batches of at least one sample"):
        capture(Call(lambda m, x: x), [torch.randn(shape)])
