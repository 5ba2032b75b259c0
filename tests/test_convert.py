"""`convert`: the packed network gives the float model's outputs, bit for bit."""

from __future__ import annotations

import copy
import functools
import warnings
from collections import OrderedDict

import numpy as np
import pytest
import torch
from own_sums import with_own_sums
from random_models import RandomModel
from small_models import MAP, two_convs, two_linears, with_statistics
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext import quantizers, reference
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.fused import FusedConv2d
from bnn_ext.nn.packed import PackedConv2d, PackedLinear, PackedMaxPool2d
from bnn_ext.nn.real_inputs import BinaryWeightConv2d, RealInputConv2d, RealInputLinear

SEEDS = range(100)
BINARY_KINDS = ("BinaryConv2d", "BinaryLinear")
KERNELS = (PackedLinear, PackedConv2d, RealInputLinear, RealInputConv2d)  # ours

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's remark on even kernels with padding="same", which the random models draw on purpose.
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]


Traced = dict[str, tuple[Tensor, Tensor]]


@torch.no_grad()
def trace(layers: dict[str, nn.Module], x: Tensor) -> Traced:
    """Runs layers in a row; input and output of each."""
    seen = {}
    for name, layer in layers.items():
        output = layer(x.clone())  # a clone, for layers that work in place
        seen[name] = (x, output)
        x = output
    return seen


def steps(fast: PackedNetwork) -> dict[str, nn.Module]:
    return {node.name: step for node, step in zip(fast.nodes, fast.steps, strict=True)}


def statuses(fast: PackedNetwork) -> list[str]:
    return [layer.status for layer in fast.report.layers]


@torch.no_grad()
def assert_same_outputs(model: nn.Module, fast: nn.Module, x: Tensor) -> None:
    expected, found = model(x.clone()), fast(x.clone())
    assert found.dtype == expected.dtype
    assert torch.equal(found.nan_to_num(7), expected.nan_to_num(7))


def assert_report_holds(fast: PackedNetwork) -> None:
    """Names, statuses and reasons of the report."""
    for line in fast.report.layers:
        assert line.status in ("fused", "packed", "left"), line
        assert line.reason, line


def check(model: nn.Module, x: Tensor, *expected: str, **options: str) -> PackedNetwork:
    """Converts, compares everything, and checks the statuses if there are any."""
    fast = bnn_ext.convert(model, x, verify=False, **options)
    same = model if options.get("real_layers") == "torch" else with_own_sums(model)
    assert_same_outputs(same, fast, x)
    assert_report_holds(fast)
    if expected:
        assert statuses(fast) == list(expected), fast.report
    return fast


# --- random models --------------------------------------------------------------------------------


@functools.cache
def drawn_and_converted(seed: int) -> tuple[RandomModel, PackedNetwork]:
    drawn = RandomModel(seed)
    return drawn, bnn_ext.convert(drawn.model, drawn.input, verify=False)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model(seed):
    drawn, fast = drawn_and_converted(seed)
    assert_same_outputs(with_own_sums(drawn.model), fast, drawn.input)
    assert_report_holds(fast)


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model_with_real_layers_as_they_were(seed):
    drawn, _ = drawn_and_converted(seed)
    fast = check(drawn.model, drawn.input, real_layers="torch")
    found = bnn_ext.verify(drawn.model, fast, drawn.input, layers=True)
    assert found.layers
    assert found.first_difference is None, found.first_difference  # of the bits, too


@pytest.mark.parametrize("seed", SEEDS)
def test_random_model_on_other_inputs(seed):
    """Another batch size, the other memory format, and what no example showed."""
    drawn, fast = drawn_and_converted(seed)
    model = with_own_sums(drawn.model)
    x = 3 * torch.randn(4, *drawn.input.shape[1:])
    assert_same_outputs(model, fast, x)
    if x.dim() == 4:
        assert_same_outputs(model, fast, x.to(memory_format=torch.channels_last))


# --- layers that stay as they were ----------------------------------------------------------------


class Negate(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return -x


class NegatedReLU(nn.ReLU):
    """A subclass that is not what its base class is."""

    def forward(self, x: Tensor) -> Tensor:
        return -super().forward(x)


class ShiftedConv2d(bnn.BinaryConv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + 0.5)


class MostlyZero(nn.Dropout):
    """Dropout that stays active in eval mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x * (x > 1)


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (MostlyZero(), "MostlyZero 2 takes real values"),
        (nn.BatchNorm2d(33, track_running_stats=False), "BatchNorm2d 2 takes real values"),
        (nn.LeakyReLU(-0.5), ""),
        (nn.AvgPool2d(2), "AvgPool2d 2 takes real values"),
        (nn.Conv2d(33, 33, 3), "Conv2d 2 takes real values"),
        (nn.Softmax(1), "Softmax 2 takes real values"),
        (nn.GELU(), "GELU 2 takes real values"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_breaks_a_chain_of_maps(between, reason):
    """The bits end at the convolution, which gives floats to what breaks the chain."""
    model = two_convs(nn.BatchNorm2d(33), between, nn.Hardtanh())
    fast = check(model, torch.randn(MAP), real_layers="torch")
    first, _, left, _, last = fast.report.layers
    assert last.status == "packed"
    if isinstance(between, nn.LeakyReLU):  # the convolution's kernel does it in front of the sign
        assert (first.status, left.status) == ("fused", "fused")
        assert any(isinstance(step, FusedConv2d) and step.operations for step in fast.steps)
    else:
        assert (first.status, left.status) == ("packed", "left")
        assert reason in first.reason


@pytest.mark.parametrize("between", [nn.Tanh(), Negate(), NegatedReLU(), nn.Sigmoid()])
def test_chains_of_any_monotone_calls(between):
    """Whatever class makes them."""
    model = two_convs(nn.BatchNorm2d(33), between, nn.Hardtanh())
    check(model, torch.randn(MAP), *["fused"] * 4, "packed", real_layers="torch")


def test_prelu_with_one_negative_slope():
    slopes = nn.PReLU(33)
    nn.init.uniform_(slopes.weight, 0, 1)
    check(two_convs(slopes), torch.randn(MAP), "fused", "fused", "packed")
    nn.init.constant_(slopes.weight[7:8], -0.25)
    fast = check(two_convs(slopes), torch.randn(MAP), "fused", "fused", "packed")
    assert fast.steps[1].operations == ("add", "prelu")  # not a threshold of sums


def test_pool_that_returns_indices():
    """Nobody takes them, so that they cost nothing."""

    class Values(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0]

    model = two_convs(nn.MaxPool2d(2, return_indices=True), Values())
    fast = check(model, torch.randn(MAP), "fused", "fused", "packed")
    assert any(isinstance(step, PackedMaxPool2d) for step in fast.steps)


def test_pool_whose_indices_are_taken():
    class Indices(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
            return pair[0] + pair[1]

    model = two_convs(nn.MaxPool2d(2, return_indices=True), Indices())
    check(model, torch.randn(MAP))


def test_batch_norm_of_a_flattened_map():
    """One parameter for each position is more than one threshold for each channel."""
    model = with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(3, 5, 3), nn.Flatten(), nn.BatchNorm1d(20), bnn.BinaryLinear(20, 4)
        )
    )
    check(model, torch.randn(3, 3, 4, 4), "packed", "left", "fused", "packed", real_layers="torch")
    shared = nn.Sequential(
        bnn.BinaryConv2d(3, 5, 3), nn.Flatten(), nn.BatchNorm1d(5), bnn.BinaryLinear(5, 4)
    )
    check(with_statistics(shared), torch.randn(3, 3, 3, 3), "packed", "left", "fused", "packed")


def test_real_linear_in_between():
    model = two_linears(nn.BatchNorm1d(33), nn.Linear(33, 33), nn.BatchNorm1d(33), nn.Hardtanh())
    x = torch.randn(3, 20)
    fast = check(
        model, x, "packed", "fused", "left", "fused", "fused", "packed", real_layers="torch"
    )
    assert "Linear 2 takes real values" in fast.report.layers[0].reason
    # With BatchNorm in its weight the real layer rounds otherwise.
    fast = bnn_ext.convert(model, x)
    torch.testing.assert_close(fast(x), model(x))
    assert statuses(fast) == ["packed", "fused", "left", "fused", "fused", "packed"]


@pytest.mark.parametrize(
    ("layer", "kernel_size"), [(bnn.BinaryConv1d, 3), (bnn.BinaryConv3d, (3, 1, 2))]
)
def test_convolutions_without_packed_kernels(layer, kernel_size):
    spatial = (6,) * (1 if layer is bnn.BinaryConv1d else 3)
    model = with_statistics(nn.Sequential(layer(4, 5, kernel_size), layer(5, 6, kernel_size)))
    fast = check(model, torch.randn(2, 4, *spatial), "left", "left")
    assert "only linear layers and 2-d convolutions" in fast.report.layers[0].reason


def test_padding_that_differs_between_the_sides():
    model = two_convs()
    model[1] = bnn.BinaryConv2d(33, 5, (2, 3), padding="same").eval()
    fast = check(model, torch.randn(MAP), "packed", "packed", real_layers="torch")
    assert "its input is real" in fast.report.layers[1].reason


def test_double_precision():
    fast = check(two_convs().double(), torch.randn(MAP).double(), "left", "left")
    assert "float64" in fast.report.layers[0].reason


def test_class_with_a_forward_of_its_own():
    model = nn.Sequential(
        ShiftedConv2d(3, 33, 3, input_quantizer=None),
        ShiftedConv2d(33, 33, 3),
        bnn.BinaryConv2d(33, 5, 1),
    ).eval()
    check(model, torch.randn(MAP), "packed", "fused", "packed", real_layers="torch")


def test_subclass_without_a_forward_of_its_own():
    class Conv3x3(bnn.BinaryConv2d):
        def __init__(self, in_channels: int, out_channels: int) -> None:
            super().__init__(in_channels, out_channels, 3, padding=1, bias=False)

    check(nn.Sequential(Conv3x3(3, 33), Conv3x3(33, 5)).eval(), torch.randn(MAP), "fused", "packed")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = bnn.BinaryConv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def test_binary_layers_behind_a_foreign_forward():
    for model in (Residual(), nn.Sequential(nn.Sequential(Residual()))):
        check(model.eval(), torch.randn(MAP), "packed", "fused")


def test_foreign_model_may_return_anything():
    class Pair(Residual):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, super().forward(x)

    x = torch.randn(MAP)
    model = Pair().eval()
    assert torch.equal(bnn_ext.convert(model)(x)[1], model(x)[1])


# --- quantizers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ste_sign", "approx_sign", "swish_sign", "stochastic_sign"])
def test_every_sign_takes_bits(name):
    model = nn.Sequential(
        bnn.BinaryLinear(20, 33, input_quantizer=name),
        bnn.BinaryLinear(33, 5, input_quantizer=name, weight_quantizer=name),
    )
    check(model.eval(), torch.randn(3, 20), "fused", "packed")
    partial = functools.partial(quantizers.swish_sign, beta=2.0)
    model[1].input_quantizer = partial
    check(model, torch.randn(3, 20), "fused", "packed")


def test_input_quantizer_of_the_users():
    model = two_linears(nn.BatchNorm1d(33))
    model[2].input_quantizer = torch.sign  # 0 for 0
    fast = check(model, torch.randn(3, 20), "fused", "fused", "packed", real_layers="torch")
    assert "the sign of 0 is 0 in the model" in str(fast.report)
    # Sums of an even number of signs are often 0.
    model = two_linears()
    model[0].bias = None
    model[1].input_quantizer = torch.sign
    fast = check(model, torch.randn(3, 20), "packed", "packed", real_layers="torch")
    assert "its input is real" in fast.report.layers[1].reason


@pytest.mark.parametrize("quantizer", [None, lambda w: w / 2, lambda w: w.sign() * (w.abs() > 0.1)])
def test_weights_that_are_not_two_values(quantizer):
    model = two_linears()
    model[0].weight_quantizer = quantizer
    check(model, torch.randn(3, 20), "left", "packed", real_layers="torch")


def test_weight_quantizer_of_the_users():
    """Any ±s will do; with a power of two for s the float sums are exact, so they are equal."""
    model = two_linears(nn.BatchNorm1d(33))
    for layer in (model[0], model[2]):
        layer.weight_quantizer = lambda w: torch.where(w > 0.01, 0.25, -0.25)
    check(model, torch.randn(3, 20), "fused", "fused", "packed")


# --- fused after all ------------------------------------------------------------------------------


def test_max_pools_and_batch_norms_in_every_order():
    """A decreasing BatchNorm behind a max-pool turns its maximum of bits into a minimum."""
    for order in ("pn", "np", "pnp", "npn", "nppn", "pnnp", "phn"):
        modules = {"p": lambda: nn.MaxPool2d(2, 1), "n": lambda: nn.BatchNorm2d(33)}
        modules["h"] = lambda: nn.Hardtanh(-5, 4)
        model = two_convs(*(modules[letter]() for letter in order))
        fast = check(model, torch.randn(MAP), *["fused"] * (1 + len(order)), "packed")
        pools = [step for step in fast.steps if isinstance(step, PackedMaxPool2d)]
        assert (pools[-1].minimum is None) == (order.rindex("p") > order.rindex("n")), order


def test_two_flattens():
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 5, 3), nn.Flatten(), nn.Dropout(), nn.Flatten(), bnn.BinaryLinear(20, 4)
    )
    check(model.eval(), torch.randn(2, 3, 4, 4), "fused", "fused", "packed")


def test_flatten_of_rows():
    model = two_linears(nn.Flatten(), nn.BatchNorm1d(33))
    check(model, torch.randn(3, 20), "fused", "fused", "packed")


def test_linear_layers_on_more_dimensions():
    """The last dimension holds the features; BatchNorm1d of [N, C, L] acts on another one."""
    model = two_linears(nn.Hardtanh(-3, 2))
    check(model, torch.randn(3, 4, 20), real_layers="torch")
    check(model, torch.randn(2, 3, 4, 20), real_layers="torch")
    check(two_linears(nn.BatchNorm1d(33)), torch.randn(3, 33, 20), real_layers="torch")
    model = two_linears()
    model.insert(1, nn.Flatten())
    model[2] = bnn.BinaryLinear(4 * 33, 5)
    check(model.eval(), torch.randn(3, 4, 20), real_layers="torch")


def test_linear_layer_on_a_map():
    """Without a Flatten a linear layer acts on the columns."""
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 5, 3), bnn.BinaryLinear(11, 7), bnn.BinaryConv2d(5, 2, 3)
    )
    check(model.eval(), torch.randn(MAP), "packed", "packed", "packed")


def test_module_used_twice():
    conv, norm = bnn.BinaryConv2d(33, 33, 3, padding=1), nn.BatchNorm2d(33)
    block = nn.Sequential(conv, norm)
    model = with_statistics(nn.Sequential(block, block, conv, norm, norm, conv))
    fast = check(model, torch.randn(2, 33, 5, 6), "fused", "fused")  # a row for each module
    assert [layer.name for layer in fast.report.layers] == ["0.0", "0.1"]
    assert sum(isinstance(step, (PackedConv2d, FusedConv2d)) for step in fast.steps) == 4


def test_single_layer():
    check(bnn.BinaryLinear(20, 3).eval(), torch.randn(2, 20), "packed")
    real = bnn.BinaryLinear(20, 3, input_quantizer=None).eval()
    check(real, torch.randn(2, 20), "packed")
    check(real, torch.randn(2, 20), "packed", real_layers="torch")
    check(bnn.BinaryConv2d(3, 2, 3).eval(), torch.randn(MAP), "packed")


def test_empty_model():
    x = torch.randn(2, 3)
    for model in (
        nn.Sequential(),
        nn.Sequential(nn.Identity(), nn.Dropout()),
        nn.Sequential(nn.Sequential()),
    ):
        assert torch.equal(bnn_ext.convert(model.eval(), x)(x), x)


def test_model_without_binary_layers():
    model = with_statistics(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    check(model, torch.randn(MAP), "left", "fused", "left", real_layers="torch")
    x = torch.randn(MAP)
    torch.testing.assert_close(bnn_ext.convert(model, x)(x), model(x))


@pytest.mark.parametrize("name", ["input", "model", "pack", "output", "layer"])
def test_layers_may_have_any_name(name):
    model = nn.Sequential(
        OrderedDict([(name, bnn.BinaryLinear(20, 33)), ("b", bnn.BinaryLinear(33, 2))])
    )
    check(model.eval(), torch.randn(2, 20), "fused", "packed")


def test_sizes_from_numpy():
    three, eight = np.int64(3), np.int64(8)
    model = nn.Sequential(
        bnn.BinaryConv2d(three, eight, three, stride=np.int64(1), groups=np.int64(1)),
        nn.Flatten(),
        bnn.BinaryLinear(np.int64(880), eight),
    )
    check(model.eval(), torch.randn(2, 3, 12, 13), "fused", "fused", "packed")


# --- real layers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("real_layers", ["fused", "torch"])
@pytest.mark.parametrize("quantizer", ["ste_sign", "magnitude_aware_sign", None])
def test_first_layer(real_layers, quantizer):
    first = bnn.BinaryConv2d(
        3, 33, 3, padding=1, pad_value=1, input_quantizer=None, weight_quantizer=quantizer
    )
    model = with_statistics(
        nn.Sequential(first, nn.BatchNorm2d(33), nn.MaxPool2d(2), bnn.BinaryConv2d(33, 5, 3))
    )
    binary = quantizer is not None
    fast = check(
        model,
        torch.randn(MAP),
        ("fused" if real_layers == "fused" else "packed") if binary else "left",
        *["fused"] * 2,
        "packed",
        # Folded into a real layer, BatchNorm rounds otherwise.
        real_layers=real_layers if binary else "torch",
    )
    if binary:
        kind = RealInputConv2d if real_layers == "fused" else BinaryWeightConv2d
        assert any(isinstance(step, kind) for step in fast.steps)
    assert any(isinstance(step, PackedMaxPool2d) for step in fast.steps)  # pools bits


def test_real_layers_see_the_memory_format_of_the_float_model():
    """torch sums in another order for another memory format, so that it must be the same."""
    model = with_statistics(
        nn.Sequential(
            nn.Conv2d(33, 64, 3),
            nn.BatchNorm2d(64),
            bnn.BinaryConv2d(64, 65, 3),
            nn.BatchNorm2d(65),
            nn.Conv2d(65, 40, 3),
            bnn.BinaryConv2d(40, 33, 1, input_quantizer=None),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(33, 7),
        )
    )
    x = torch.randn(2, 33, 14, 15)
    last = x.to(memory_format=torch.channels_last)
    with torch.no_grad():  # if this is equal on some machine, the test says nothing there
        assert not torch.equal(model(x), model(last))
    for input in (x, last):
        check(model, input, real_layers="torch")
    model = model.to(memory_format=torch.channels_last)
    check(model, x, real_layers="torch")
    check(model, last, real_layers="torch")


def test_binary_weights_keep_their_memory_format():
    """The weight's format decides as well."""
    layer = bnn.BinaryConv2d(33, 64, 3, input_quantizer=None).eval()
    x = torch.randn(2, 33, 14, 15)
    last = copy.deepcopy(layer).to(memory_format=torch.channels_last)
    with torch.no_grad():  # if this is equal on some machine, the test says nothing there
        assert not torch.equal(layer(x), last(x))
    check(layer, x, "packed", real_layers="torch")
    check(last, x, "packed", real_layers="torch")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_real_inputs_in_half_precision(dtype):
    """torch sums them, since our kernels compare float32 only."""
    model = with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(5, 33, 3, input_quantizer=None), nn.BatchNorm2d(33), nn.Hardtanh()
        )
    )
    model.append(bnn.BinaryConv2d(33, 5, 3).eval())
    x = torch.randn(2, 5, 12, 13).to(dtype)
    check(model.to(dtype), x, real_layers="torch")
    assert bnn_ext.convert(model, x).report.verification.equal


def test_real_input_that_follows_a_chain():
    """Between packed layers: what comes before gives floats."""
    middle = bnn.BinaryConv2d(33, 33, 3, input_quantizer=None, weight_quantizer="ste_sign")
    model = two_convs(nn.BatchNorm2d(33), middle, nn.MaxPool2d(2), nn.BatchNorm2d(33))
    check(model, torch.randn(MAP), "packed", *["fused"] * 4, "packed")
    model = two_linears(nn.GELU(), bnn.BinaryLinear(33, 33, input_quantizer=None))
    check(model, torch.randn(2, 20), "packed", "left", "fused", "packed")


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_flips_are_few_and_close_to_their_threshold(seed):
    """Against torch's own sums: only activations within rounding of the threshold can flip."""
    torch.manual_seed(seed)
    first = bnn.BinaryConv2d(16, 64, 3, padding=1, bias=False, input_quantizer=None)
    x = torch.randn(8, 16, 20, 20)
    norm = nn.BatchNorm2d(64)
    sums = first.eval()(x)
    # Half of the thresholds right on a sum that occurs: flips do happen in this test.
    norm.running_mean.copy_(sums[seed, :, 7, 8])
    norm.running_mean[::2] += torch.randn(32)
    model = nn.Sequential(first, norm, bnn.BinaryConv2d(64, 9, 3)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fast = bnn_ext.convert(model, x)
    verification = fast.report.verification
    assert verification.activations == 8 * 64 * 20 * 20

    signs = model[1](sums).permute(0, 2, 3, 1) >= 0
    different = reference.unpack_bits(fast.steps[0](x), 64) != signs
    assert verification.flips == int(different.sum())
    # torch's sums and ours are each off by at most 144 roundings of the sum of magnitudes.
    magnitudes = nn.functional.conv2d(x.abs(), torch.ones_like(first.weight), padding=1)
    bound = 2 * 144 * 2.0**-24 * magnitudes.permute(0, 2, 3, 1)
    distance = (sums.permute(0, 2, 3, 1) - fast.steps[0].threshold).abs()
    assert (distance <= bound)[different].all()
    assert 0 < different.sum() < 1e-4 * different.numel()


def test_layers_that_work_in_place():
    x = torch.randn(3, 20)
    before = x.clone()
    model = nn.Sequential(
        nn.LeakyReLU(0.5, inplace=True), bnn.BinaryLinear(20, 5, input_quantizer=None)
    )
    fast = bnn_ext.convert(model.eval(), x, real_layers="torch")
    assert fast.report.verification.equal
    assert torch.equal(x, before)
    check(model, x)
    assert torch.equal(x, before)
    bnn_ext.summary(model, x)
    assert torch.equal(x, before)


def test_nan_in_a_channel():
    """Its bits are -1, in a convolution that gives floats."""
    model = two_convs(nn.BatchNorm2d(33), nn.MaxPool2d(2))
    model[1].weight.data[7] = float("nan")
    fast = check(model, torch.randn(MAP))
    first, *_, last = fast.report.layers
    assert (first.status, last.status) == ("packed", "packed")


def test_threshold_where_floats_overflow():
    """0 * inf is NaN: behind an overflow even a constant channel is not constant."""
    x = torch.randn(3, 20)
    zero = nn.BatchNorm1d(33)
    nn.init.zeros_(zero.weight)
    stretch = nn.BatchNorm1d(33)
    nn.init.constant_(stretch.weight, 100)
    first = bnn.BinaryLinear(20, 33, input_quantizer=None)
    last = bnn.BinaryLinear(33, 5)
    model = nn.Sequential(first, stretch, zero, last).eval()
    check(model, x, "fused", "fused", "fused", "packed")
    nn.init.constant_(stretch.weight, 3e38)
    check(model, x, "packed", "fused", "fused", "packed")
    nn.init.constant_(stretch.weight, 1e38)
    model[0] = bnn.BinaryLinear(20, 33).eval()
    fast = check(model, x, "fused", "fused", "fused", "packed")
    assert steps(fast)["0"].operations == ("add", "multiply_add", "multiply_add")  # no threshold
    assert model(x).isnan().sum() == 0


# --- dtypes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("seed", range(30))
def test_half_precision(dtype, seed):
    """Sums stay below 256, so they are exact in both dtypes, and so are all bits and outputs."""
    torch.manual_seed(seed)
    model = with_statistics(
        nn.Sequential(
            bnn.BinaryConv2d(5, 21, 3, weight_quantizer="magnitude_aware_sign"),
            nn.MaxPool2d(2),
            nn.BatchNorm2d(21),
            nn.Hardtanh(),
            bnn.BinaryConv2d(21, 17, 3, bias=False),
            nn.BatchNorm2d(17),
            nn.Flatten(),
            bnn.BinaryLinear(17 * 4, 10, weight_quantizer="magnitude_aware_sign"),
            nn.LogSoftmax(1),
        )
    ).to(dtype)
    x = torch.randn(3, 5, 10, 10).to(dtype)
    check(model, x, *["fused"] * 7, "packed", "left")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_where_sums_round(dtype):
    """Sums of 5000 signs round to the dtype: before scale and bias.

    The network rounds where the float layer does, and the bits of a threshold follow it.
    """
    layer = bnn.BinaryLinear(5000, 33, weight_quantizer="magnitude_aware_sign").to(dtype)
    following = bnn.BinaryLinear(33, 5).to(dtype)
    x = torch.randn(20, 5000).to(dtype)
    flips = torch.where(torch.rand(10, 5000) < 0.02, -1, 1)
    x[:10] = layer.weight[:10].detach() * flips  # large sums
    packed, weight = reference.pack(x), reference.pack(layer.weight.detach())
    sums = reference.linear(packed, weight, 5000)
    assert not torch.equal(sums.to(dtype).int(), sums), "some sums must round in this test"

    layer.eval()
    _, scale = layer.signs_and_scale()
    expected = reference.finish_float(sums, scale, layer.bias.detach().float(), dtype)
    found = bnn_ext.convert(layer)(x)
    assert torch.equal(found, layer(x))
    # What rounds only once is close to it.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=4 * eps, atol=4 * eps)

    norm = nn.BatchNorm1d(33)
    norm.running_mean.copy_(scale * sums.float().mean(0) + layer.bias.detach().float())
    norm.running_var.fill_(float(scale.mean()) ** 2 * 5000)
    model = nn.Sequential(layer, norm.to(dtype), following).eval()
    fast = bnn_ext.convert(model, verify=False)
    rounded = model[1](layer.finish(sums.to(dtype), scale)) >= 0
    assert torch.equal(trace(steps(fast), x)["0"][1], reference.pack_bits(rounded))


# --- the original stays as it was -----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_model_is_not_changed(seed):
    drawn = RandomModel(seed)
    model, x = drawn.model, drawn.input
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    x_before = x.clone()
    modules = list(model.modules())
    fast = bnn_ext.convert(model, x)
    bnn_ext.verify(model, fast, x)
    bnn_ext.summary(model, x)
    after = model.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(x, x_before)
    assert list(model.modules()) == modules
    assert not any(module.training for module in modules)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks for module in modules)

    shared = {p.data_ptr() for p in model.parameters()} | {b.data_ptr() for b in model.buffers()}
    assert not shared & {tensor.data_ptr() for tensor in fast.state_dict().values()} - {0}
    with torch.no_grad():
        expected = fast(x.clone())
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
        assert torch.equal(fast(x.clone()), expected)


def test_result_has_no_gradients():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), bnn.BinaryConv2d(8, 5, 3), nn.Conv2d(5, 2, 1)).eval()
    fast = bnn_ext.convert(model, torch.randn(MAP))
    assert not fast(torch.randn(MAP)).requires_grad
    assert not fast.training


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_contexts(context):
    model = two_convs(nn.BatchNorm2d(33))
    x = torch.randn(MAP)
    with context():
        fast = bnn_ext.convert(model, x)
        assert fast.report.verification.equal
    assert_same_outputs(model, fast, x)


def test_converted_in_inference_mode():
    """The same network as outside of it, of ordinary tensors."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), bnn.BinaryConv2d(8, 5, 3)).eval()
    x = torch.randn(MAP)
    expected = bnn_ext.convert(model, x)
    with torch.inference_mode():
        fast = bnn_ext.convert(copy.deepcopy(model), x.clone())
    kinds, others = ([type(step).__name__ for step in n.steps] for n in (fast, expected))
    assert kinds == others
    assert torch.equal(fast(x), expected(x))
    assert not any(buffer.is_inference() for buffer in fast.buffers())
    fast.load_state_dict(expected.state_dict())


# --- arguments ------------------------------------------------------------------------------------


def test_wrong_arguments():
    model = two_linears()
    x = torch.randn(3, 20)
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, found builtin"):
        bnn_ext.convert(torch.sign, x)
    with pytest.raises(TypeError, match="example_inputs must be a tensor or .*, found str"):
        bnn_ext.convert(model, "x")
    with pytest.raises(TypeError, match="found Tensor, int"):
        bnn_ext.convert(model, (x, 3))
    with pytest.raises(ValueError, match='real_layers must be "fused" or "torch", found \'fast\''):
        bnn_ext.convert(model, x, real_layers="fast")
    with pytest.raises(ValueError, match="real_layers must be"):
        bnn_ext.convert(model, x, real_layers=None)
    with pytest.raises(TypeError):
        bnn_ext.convert(model, x, False)


def test_training_mode():
    model = two_linears(nn.BatchNorm1d(33))
    with pytest.raises(ValueError, match="model must be in eval mode, found .* in the model"):
        bnn_ext.convert(model.train())
    model.eval()[1].train()
    with pytest.raises(ValueError, match="found training mode in 1; call model.eval"):
        bnn_ext.convert(model)


def test_inputs_that_do_not_fit_are_the_models_error():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        bnn_ext.convert(two_linears(), torch.randn(3, 21))
