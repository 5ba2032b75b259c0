"""Each pass alone: the graph gives the same before and after it, and has become what it should."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, randomize
from small_models import with_statistics
from torch import Tensor, nn
from torch.fx import Graph, Node

from bnn_ext import nn as bnn
from bnn_ext.convert import ir
from bnn_ext.convert.capture import capture
from bnn_ext.convert.ir import aten
from bnn_ext.convert.lower import lower
from bnn_ext.convert.passes import (
    compare_at_sources,
    find_products,
    fold_batch_norms,
    join_finishes,
    name_moves,
)
from bnn_ext.nn.torch_calls import TorchCall

pytestmark = pytest.mark.usefixtures("one_thread")


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def called(graph: Graph, *targets: object) -> list[Node]:
    return [node for node in graph.nodes if ir.calls(node, *targets)]


def compare(graph: Graph) -> None:
    compare_at_sources(graph, real_products=True)


def prepared(model: nn.Module, shape: tuple[int, ...], *passes: Callable[[Graph], None]) -> Graph:
    """The graph after the passes, the last of which changes no result."""
    torch.manual_seed(1)
    graph = capture(model, [torch.randn(3, *shape)]).graph
    x = torch.randn(2, *shape)
    for run in passes:
        before = ir.run(graph, [x])
        run(graph)
        graph.lint()
        after = ir.run(graph, [x])
        assert all(torch.equal(a, b) for a, b in zip(after, before, strict=True)), run.__name__
    return graph


# --- moves ----------------------------------------------------------------------------------------


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("function", "index"),
    [
        (shuffle, [0, 2, 4, 1, 3, 5]),
        (lambda x: F.channel_shuffle(x, 2), [0, 3, 1, 4, 2, 5]),
        (lambda x: x.chunk(2, 1)[1], [3, 4, 5]),
        (lambda x: torch.split(x, [1, 5], 1)[1], [1, 2, 3, 4, 5]),
        (lambda x: x[:, ::2], [0, 2, 4]),
        (lambda x: x[:, 1:][:, :-1], [1, 2, 3, 4]),
        (lambda x: x.narrow(1, 2, 3), [2, 3, 4]),
        (lambda x: x.flip(1), [5, 4, 3, 2, 1, 0]),
        (lambda x: x.roll(1, 1), [5, 0, 1, 2, 3, 4]),
        (lambda x: x.index_select(1, torch.tensor([3, 3, 1])), [3, 3, 1]),
        (lambda x: x.unsqueeze(0).squeeze(0).unflatten(1, (2, 3)).flatten(1, 2)[:, :2], [0, 1]),
        (lambda x: shuffle(shuffle(x)), [0, 4, 3, 2, 1, 5]),
    ],
)
@pytest.mark.parametrize("shape", [(6, 4, 3), (6, 1, 1)])
def test_moves_of_channels(function, index, shape):
    graph = prepared(Call(lambda x: function(x) * 2), shape, name_moves)
    (select,) = called(graph, ir.select)
    assert select.args[0].op == "placeholder"
    assert select.args[1].meta["tensor"].tolist() == index
    assert len([node for node in graph.nodes if node.op == "call_function"]) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(-1, 6 * 4 * 3),
        lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2).flatten(1),
        lambda x: torch.flatten(x.flatten(2), 1),
    ],
)
def test_moves_of_maps_to_rows(function):
    graph = prepared(Call(lambda x: function(x) * 2), (6, 4, 3), name_moves)
    assert len(called(graph, ir.flatten)) == 1
    assert len([node for node in graph.nodes if node.op == "call_function"]) == 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.transpose(2, 3),
        lambda x: x.flip(2),
        lambda x: x[:, :, 1:],
        lambda x: x.reshape(-1, 3),
        lambda x: x.roll(1, 0),
        lambda x: x.flip(0),
    ],
)
def test_other_moves_stay_what_they_are(function):
    graph = prepared(Call(lambda x: function(x) * 2), (6, 4, 3), name_moves)
    assert not called(graph, ir.flatten, ir.select)


def test_rows_of_a_permuted_map():
    """They are not those of the map."""
    model = Call(lambda x: x.permute(0, 2, 3, 1).flatten(1) * 2)
    (flatten,) = called(prepared(model, (6, 4, 3), name_moves), ir.flatten)
    assert ir.calls(flatten.args[0], aten.permute.default)


def test_moves_that_cancel_out():
    graph = prepared(Call(lambda x: x.transpose(1, 2).transpose(1, 2) + 1), (6, 4, 3), name_moves)
    assert len([node for node in graph.nodes if node.op == "call_function"]) == 1


# --- products -------------------------------------------------------------------------------------


def blocks() -> nn.Sequential:
    """Sums, a pool and both kinds of layers."""
    return with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(5, 12, 3, padding=1),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(12),
            nn.Hardtanh(),
            bnn.BinaryConv2d(12, 8, 3, pad_value=-1, padding=1, groups=2),
            nn.BatchNorm2d(8),
            nn.PReLU(8),
            nn.Flatten(),
            bnn.BinaryLinear(8 * 9, 7, bias=False),
            nn.BatchNorm1d(7),
        )
    )


def test_products():
    graph = prepared(blocks(), (5, 6, 6), name_moves, find_products)
    products = called(graph, ir.product)
    assert [ir.calls(node.args[0], ir.sign) for node in products] == [True] * 3
    assert all(bool((ir.tensor_of(node.args[1]).abs() == 1).all()) for node in products)
    assert products[1].args[2:] == ((1, 1), (1, 1), (1, 1), 2, -1)
    assert not called(graph, aten.convolution.default, aten.linear.default, aten.ge.Scalar)


def test_products_of_real_values():
    model = nn.Sequential(bnn.BinaryConv2d(5, 4, 3, input_quantizer=None), nn.Conv2d(4, 3, 1))
    graph = prepared(model.eval(), (5, 6, 6), find_products)
    (product,) = called(graph, ir.product)
    assert product.args[0].op == "placeholder"
    assert len(called(graph, aten.convolution.default)) == 1


def test_signs_of_what_is_moved():
    """A sign in front of a pool, a selection or a concatenation is taken behind it."""

    def forward(x: Tensor) -> Tensor:
        left, right = torch.sign(x + 1).chunk(2, 1)
        signs = torch.cat([F.max_pool2d(right, 2), F.max_pool2d(left, 2)], 1)
        return F.conv2d(signs, weight)

    weight = torch.randn(4, 6, 3, 3).sign()
    graph = prepared(Call(forward), (6, 8, 8), name_moves, find_products)
    (product,) = called(graph, ir.product)
    assert ir.calls(product.args[0], ir.sign)
    assert ir.calls(product.args[0].args[0], aten.cat.default)


# --- folds ----------------------------------------------------------------------------------------


def test_folds():
    model = with_statistics(
        nn.Sequential(
            nn.Conv2d(5, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 4, 3),
            nn.BatchNorm2d(4, affine=False),
            nn.Flatten(),
            nn.Linear(16, 6),
            nn.BatchNorm1d(6),
        )
    )
    torch.manual_seed(1)
    graph = capture(model, [torch.randn(3, 5, 6, 6)]).graph
    x = torch.randn(2, 5, 6, 6)
    (before,) = ir.run(graph, [x])
    fold_batch_norms(graph)
    (after,) = ir.run(graph, [x])
    # Each new weight is rounded once, so that sums of a few hundred products round elsewhere.
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4)
    assert not called(graph, aten.batch_norm.default)
    layers = called(graph, aten.convolution.default, aten.linear.default)
    assert len(layers) == 3
    assert all(node.meta["rounds"] for node in layers)


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [nn.BatchNorm2d(5), nn.Conv2d(5, 4, 3)],
        lambda: [nn.Conv2d(5, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)],
        lambda: [nn.ConvTranspose2d(5, 4, 3), nn.BatchNorm2d(4)],
        lambda: [nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)],
        lambda: [bnn.Residual(nn.Conv2d(5, 5, 1)), nn.BatchNorm2d(5)],
    ],
)
def test_what_does_not_fold(layers):
    model = with_statistics(nn.Sequential(*layers()))
    graph = prepared(model, (5, 6, 6), fold_batch_norms)
    assert len(called(graph, aten.batch_norm.default)) == 1


def test_a_layer_that_others_see_does_not_fold():
    conv, norm = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4).eval()

    def forward(x: Tensor) -> Tensor:
        y = conv(x)
        return norm(y) + y

    graph = prepared(Call(forward), (5, 6, 6), fold_batch_norms)
    assert len(called(graph, aten.batch_norm.default)) == 1


# --- thresholds -----------------------------------------------------------------------------------


def test_comparisons_of_integers():
    graph = prepared(blocks(), (5, 6, 6), name_moves, find_products, compare)
    first, second = called(graph, ir.compare)
    for node in (first, second):
        assert ir.calls(node.args[0], ir.product)
        assert node.args[1].meta["tensor"].dtype == torch.int32
    (pool,) = called(graph, ir.pool)
    assert pool.args[0] is first
    assert bool(pool.args[1].meta["tensor"].any())  # BatchNorm falls in some channels
    assert not called(graph, aten.prelu.default, aten.hardtanh.default)
    assert len(called(graph, aten.batch_norm.default)) == 1  # the last one, of the output


def test_comparisons_of_real_values():
    model = with_statistics(
        nn.Sequential(
            nn.Conv2d(5, 12, 3), nn.BatchNorm2d(12), nn.Hardtanh(), bnn.BinaryConv2d(12, 4, 3)
        )
    )
    graph = prepared(model, (5, 8, 8), find_products, compare)
    (node,) = called(graph, ir.compare)
    assert ir.calls(node.args[0], aten.convolution.default)
    assert node.args[1].meta["tensor"].dtype == torch.float32


def test_comparisons_before_a_concatenation():
    """Each part is compared where it is made."""
    first, second = bnn.BinaryConv2d(6, 5, 3), bnn.BinaryConv2d(6, 4, 3)
    norm, last = nn.BatchNorm2d(9).eval(), bnn.BinaryConv2d(9, 3, 1)
    nn.init.normal_(norm.weight)

    def forward(x: Tensor) -> Tensor:
        return last(shuffle(norm(torch.cat([first(x), second(x)], 1))))

    graph = prepared(Call(forward), (6, 8, 8), name_moves, find_products, compare)
    compares = called(graph, ir.compare)
    assert [node.meta["shape"][1] for node in compares] == [5, 4]
    assert all(ir.calls(node.args[0], ir.product) for node in compares)
    assert not called(graph, aten.batch_norm.default)


def test_signs_stay_where_nothing_is_to_be_gained():
    model = nn.Sequential(nn.GELU(), bnn.BinaryConv2d(6, 4, 3)).eval()
    graph = prepared(model, (6, 8, 8), find_products, compare)
    (node,) = called(graph, ir.sign)
    assert ir.calls(node.args[0], aten.gelu.default)
    assert not called(graph, ir.compare)


# --- finishes -------------------------------------------------------------------------------------


def finishes(layers: list[nn.Module], shape: tuple[int, ...] = (6, 7, 5)) -> list[tuple[str, ...]]:
    model = with_statistics(nn.Sequential(*layers))
    graph = prepared(model, shape, name_moves, find_products, compare, join_finishes)
    return [node.args[1] for node in called(graph, ir.finish)]


@pytest.mark.parametrize(
    ("layer", "steps"),
    [
        (lambda: nn.BatchNorm2d(9), ("multiply_add",)),
        (lambda: nn.ReLU(), ("maximum",)),
        (lambda: nn.ReLU6(), ("maximum", "minimum")),
        (lambda: nn.Hardtanh(-2, 3), ("maximum", "minimum")),
        (lambda: nn.PReLU(9), ("prelu",)),
        (lambda: nn.PReLU(), ("prelu",)),
        (lambda: nn.LeakyReLU(0.1), ("prelu",)),
        (lambda: bnn.LearnableBias(9), ("add",)),
        (lambda: bnn.LearnableScale(9), ("multiply",)),
        (lambda: bnn.RPReLU(9), ("add", "prelu", "add")),
        (lambda: Call(lambda x: x - 3), ("add",)),
        (lambda: Call(lambda x: -x), ("multiply",)),
        (lambda: Call(lambda x: 0.5 * x), ("multiply",)),
    ],
)
def test_what_joins_a_layer(layer, steps):
    conv = bnn.BinaryConv2d(6, 9, 3, bias=False)
    assert finishes([conv, layer(), nn.GELU()]) == [steps]


@pytest.mark.parametrize(
    "layer", [nn.GELU, nn.Tanh, nn.Sigmoid, lambda: nn.Softmax(1), lambda: nn.AvgPool2d(2)]
)
def test_what_does_not(layer):
    assert finishes([bnn.BinaryConv2d(6, 9, 3, bias=False), layer()]) == []


def test_residuals_join_the_branch():
    block = bnn.Residual(
        nn.Sequential(bnn.BinaryConv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
        activation=nn.PReLU(6),
    )
    assert finishes([block]) == [("multiply_add", "add", "prelu")]


def test_residuals_join_the_branch_behind_them():
    """Also where the shortcut is a layer of real values, which might take the sum itself."""
    real, binary = nn.Conv2d(6, 6, 1), bnn.BinaryConv2d(6, 6, 3, padding=1, bias=False)
    graph = prepared(
        Call(lambda x: real(x).relu() + binary(x)),
        (6, 7, 5),
        name_moves,
        find_products,
        compare,
        join_finishes,
    )
    steps = {str(node.args[0].target): node.args[1] for node in called(graph, ir.finish)}
    assert steps == {str(aten.convolution.default): ("maximum",), str(ir.product): ("add",)}


def test_rows_have_steps_too():
    layers = [bnn.BinaryLinear(6, 9), nn.BatchNorm1d(9), nn.PReLU(9), nn.Linear(9, 2)]
    assert finishes(layers, (6,)) == [("add", "multiply_add", "prelu")]


# --- all passes, and what they become -------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["binarynet_new_vgg", "bnew", "densenet", "shufflenet", "reactnet"]
)
@torch.no_grad()
def test_every_pass_on_whole_networks(name):
    network = NETWORKS[name]
    model = randomize(network.make(), network.inputs(8), seed=1)
    graph = capture(model, network.inputs(2)).graph
    x = network.inputs(2, seed=3)
    (expected,) = ir.run(graph, x)
    assert torch.equal(expected, model(*x))
    for run in (name_moves, find_products, compare, join_finishes):
        run(graph)
        graph.lint()
        (found,) = ir.run(graph, x)
        # A weight of ±s becomes one of ±1 and a factor, which rounds once instead of many times;
        # real values in front of a comparison keep their sums.
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_lowering_leaves_the_graph_alone():
    graph = prepared(blocks(), (5, 6, 6), name_moves, find_products, compare, join_finishes)
    text = str(graph)
    lowered = lower(graph, exact=True)
    assert str(graph) == text
    names = [name for node in lowered.nodes for name in node.outputs]
    assert len(names) == len(set(names))
    known = set(lowered.inputs)
    for node in lowered.nodes:  # in running order
        assert set(node.inputs) <= known
        known |= set(node.outputs)
    assert set(lowered.outputs) <= known
    assert not any(isinstance(node.module, TorchCall) for node in lowered.nodes)


def test_a_shuffle_costs_nothing_in_front_of_a_layer():
    """The weight behind it is shuffled instead."""
    first, last = bnn.BinaryConv2d(6, 6, 3), bnn.BinaryConv2d(6, 4, 3)
    model = Call(lambda x: last(shuffle(first(x))))
    graph = prepared(model, (6, 8, 8), name_moves, find_products, compare, join_finishes)
    kinds = [type(node.module).__name__ for node in lower(graph, exact=True).nodes]
    assert "SelectChannels" not in kinds
    assert kinds.count("PackedConv2d") + kinds.count("FusedConv2d") == 2
