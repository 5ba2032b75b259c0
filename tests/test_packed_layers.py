"""Packed layers and networks as torch modules: copied, moved, loaded, compiled, called at once."""

from __future__ import annotations

import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from own_sums import with_own_sums
from packed_inputs import random_packed
from random_models import RandomModel
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext import ops, reference
from bnn_ext.convert import PackedNetwork
from bnn_ext.nn.packed import (
    Pack,
    PackedConv2d,
    PackedFlatten,
    PackedLayer,
    PackedLinear,
    PackedMaxPool2d,
)
from bnn_ext.nn.real_inputs import (
    BinaryWeightConv2d,
    BinaryWeightLinear,
    RealInputConv2d,
    RealInputLinear,
)

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (2, 3, 12, 11)


def network(seed: int = 0, first: str | None = None) -> PackedNetwork:
    """Convolutions with everything that a packed layer can hold, down to 10 logits."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 33, 3, padding=1, input_quantizer=first),
        nn.BatchNorm2d(33),
        nn.MaxPool2d(2),
        bnn.BinaryConv2d(33, 18, 3, groups=3, pad_value=-1, padding=1),
        nn.MaxPool2d(2),
        nn.BatchNorm2d(18),
        nn.Flatten(),
        bnn.BinaryLinear(18 * 6, 40),
        nn.BatchNorm1d(40),
        bnn.BinaryLinear(40, 10, weight_quantizer="magnitude_aware_sign"),
    )
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_(0, 2)
    return bnn_ext.convert(model.eval(), torch.randn(SHAPE), verify=False)


def outputs(fast: nn.Module, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return fast(torch.randn(SHAPE, generator=generator))


# --- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [None, "ste_sign"])
def test_copies(first):
    fast = network(first=first)
    expected = outputs(fast)
    buffer = io.BytesIO()
    torch.save(fast, buffer)
    buffer.seek(0)
    for other in (
        copy.deepcopy(fast),
        pickle.loads(pickle.dumps(fast)),
        torch.load(buffer, weights_only=False),
    ):
        assert torch.equal(outputs(other), expected)
        assert str(other.report) == str(fast.report)
        assert all(node.module is step for node, step in zip(other.nodes, other.steps, strict=True))
        other.load_state_dict(network(seed=5, first=first).state_dict())
        assert not torch.equal(outputs(other), expected)
        assert torch.equal(outputs(fast), expected), "a copy shares no tensors"


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("first", [None, "ste_sign"])
def test_state_dict(first, assign):
    """What a layer derives from its weight follows the loaded weight."""
    one, other = network(1, first), network(2, first)
    expected = outputs(one)
    assert not torch.equal(outputs(other), expected)
    state = one.state_dict()
    assert not any("tiles" in key or "signs" in key for key in state)
    assert not other.load_state_dict(state, assign=assign).missing_keys
    assert torch.equal(outputs(other), expected)
    *_, key = (key for key in state if key.endswith("weight"))
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict({**state, key: torch.zeros(1, 1).int()})
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({})
    assert torch.equal(outputs(other), expected)


def test_state_dict_holds_packed_bits():
    """The weights take 1/32 of their float bytes, apart from tail bits."""
    layer = bnn.BinaryConv2d(64, 48, 3, bias=False).eval()
    state = bnn_ext.convert(layer).state_dict()
    assert {key: (tuple(t.shape), t.dtype) for key, t in state.items()} == {
        "steps.1.weight": ((48, 3, 3, 2), torch.int32)
    }


# --- devices and dtypes ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.to(torch.device("cpu")),
        lambda module: module.cpu(),
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.double(),
        lambda module: module.to(torch.float16),
        lambda module: module.type(torch.float64),
        lambda module: module.float(),
    ],
    ids="to_cpu cpu half bfloat16 double to_float16 type_float64 float".split(),  # noqa: SIM905
)
@pytest.mark.parametrize("first", [None, "ste_sign"])
def test_moves_keep_dtypes(move, first):
    """Thresholds of 5000.3 or 70001 would not survive in half precision."""
    fast = network(first=first)
    expected = outputs(fast)
    before = {key: tensor.clone() for key, tensor in fast.named_buffers()}
    assert move(fast) is fast
    after = dict(fast.named_buffers())
    assert list(after) == list(before)
    assert all(after[key].dtype == before[key].dtype for key in before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert torch.equal(outputs(fast), expected)


def test_meta_device():
    """Shapes without data, as for planning; the network before is a copy."""
    fast = network()
    meta = copy.deepcopy(fast).to("meta")
    assert all(buffer.is_meta for buffer in meta.buffers())
    out = meta(torch.empty(SHAPE, device="meta"))
    assert (out.shape, out.dtype, out.device.type) == ((2, 10), torch.float32, "meta")


# --- how networks are called ----------------------------------------------------------------------


@pytest.mark.parametrize("first", [None, "ste_sign"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(first, dynamic):
    """One graph without breaks; traced by torch.compile, run by the eager kernels."""
    torch._dynamo.reset()
    fast = network(first=first)
    compiled = torch.compile(fast, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3, 5):
        x = torch.randn(batch, *SHAPE[1:])
        with torch.no_grad():
            assert torch.equal(compiled(x), fast(x))


def test_compile_with_the_default_backend():
    fast = network(first="ste_sign")
    compiled = torch.compile(fast, fullgraph=True)
    assert torch.equal(outputs(compiled), outputs(fast))


def test_compile_random_models():
    for seed in (0, 3, 20, 59):
        drawn = RandomModel(seed)
        fast = bnn_ext.convert(drawn.model, drawn.input, verify=False)
        torch._dynamo.reset()
        compiled = torch.compile(fast, fullgraph=True, backend="aot_eager")
        with torch.no_grad():
            assert torch.equal(compiled(drawn.input.clone()), fast(drawn.input.clone())), seed


def test_inference_mode():
    fast = network(first=None)
    expected = outputs(fast)
    with torch.inference_mode():
        x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        assert torch.equal(fast(x), expected)
    assert torch.equal(fast(x), expected), "inference tensors are fine outside, too"


def test_two_threads_at_once(two_threads):
    fast = network(first=None)
    expected = [outputs(fast, seed) for seed in range(8)]
    with ThreadPoolExecutor(2) as pool:
        for _ in range(20):
            found = pool.map(lambda seed: outputs(fast, seed), range(8))
            assert all(map(torch.equal, found, expected))


def test_other_sizes_after_conversion():
    """Nothing remembers the size of the example: not the batch, not the image."""
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 33, 3, stride=2, padding=1, input_quantizer=None),
        nn.BatchNorm2d(33),
        nn.MaxPool2d(2, ceil_mode=True),
        bnn.BinaryConv2d(33, 9, (3, 2), padding=1),
    ).eval()
    fast = bnn_ext.convert(model, torch.randn(1, 3, 9, 9))
    for shape in ((1, 3, 5, 5), (4, 3, 9, 14), (0, 3, 8, 8), (1, 3, 40, 3)):
        x = torch.randn(shape)
        with torch.no_grad():
            assert torch.equal(fast(x), with_own_sums(model)(x))


def test_inputs_in_any_memory_order():
    fast = network()
    x = torch.randn(SHAPE)
    expected = fast(x)
    assert torch.equal(fast(x.to(memory_format=torch.channels_last)), expected)
    assert torch.equal(fast(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)), expected)
    assert torch.equal(fast(torch.randn(4, *SHAPE)[2].copy_(x)), expected)


def test_unbatched_map_is_refused():
    with pytest.raises(
        ValueError, match=r"input must have 4 dimensions, found shape \(3, 12, 11\)"
    ):
        network(first="ste_sign")(torch.randn(SHAPE[1:]))


def test_every_cpu_level(level):
    drawn = [RandomModel(seed) for seed in range(8)]
    for model in drawn:
        fast = bnn_ext.convert(model.model, model.input, verify=False)
        assert bnn_ext.verify(with_own_sums(model.model), fast, model.input).equal


# --- the layers one by one ------------------------------------------------------------------------


def test_attributes_and_tensors_make_the_layer_again():
    torch.manual_seed(0)
    threshold = torch.randint(-9, 9, (33,), dtype=torch.int32)
    scale, bias, flip = torch.rand(33), torch.randn(33), random_packed(33)
    layers: list[tuple[PackedLayer, Tensor]] = [
        (Pack(True), torch.randn(SHAPE)),
        (Pack(True, bias, flip), torch.randn(2, 33, 5, 6)),
        (Pack(False, bias), torch.randn(4, 2, 33)),
        (
            PackedLinear(random_packed(33, 70), 70, scale, bias, dtype="bfloat16"),
            random_packed(2, 70),
        ),
        (PackedLinear(random_packed(33, 70), 70, None, None, threshold), random_packed(2, 70)),
        (
            PackedConv2d(
                random_packed(33, 3, 2, 5), 15, (1, 2), (2, 0), (1, 2), 3, 1, True, scale, None
            ),
            random_packed(2, 6, 7, 15),
        ),
        (
            PackedConv2d(random_packed(33, 1, 1, 70), 70, threshold=threshold, flip=flip),
            random_packed(2, 6, 7, 70),
        ),
        (PackedMaxPool2d((2, 3), (1, 2), (1, 0), (1, 2), True, flip), random_packed(2, 6, 7, 33)),
        (PackedFlatten(33), random_packed(2, 3, 2, 33)),
        (BinaryWeightLinear(random_packed(33, 70), 70, scale, bias), torch.randn(2, 70)),
        (
            BinaryWeightConv2d(
                random_packed(33, 3, 2, 5), 5, (1, 2), (2, 0), (1, 2), 3, -1, True, scale, bias
            ),
            torch.randn(2, 15, 6, 7),
        ),
        (RealInputLinear(random_packed(33, 70), 70, scale, bias), torch.randn(2, 70)),
        (RealInputLinear(random_packed(33, 70), 70, None, None, bias, flip), torch.randn(2, 70)),
        (
            RealInputConv2d(
                random_packed(33, 3, 2, 5), 15, (1, 2), (2, 0), (1, 2), 3, -1, True, scale, bias
            ),
            torch.randn(2, 15, 6, 7),
        ),
        (
            RealInputConv2d(random_packed(33, 3, 2, 15), 15, threshold=bias, flip=flip),
            torch.randn(2, 15, 6, 7),
        ),
    ]
    for layer, x in layers:
        again = type(layer)(**layer.attributes(), **layer.tensors())
        assert torch.equal(again(x), layer(x)), layer
        assert set(layer.attributes()) == set(layer.attribute_names)
        assert repr(again) == repr(layer)


def test_pack():
    x = torch.randn(SHAPE)
    assert torch.equal(Pack(True)(x), reference.pack(x.permute(0, 2, 3, 1)))
    assert torch.equal(Pack(False)(x), reference.pack(x))
    threshold = torch.randn(3)
    flip = torch.tensor([0b010], dtype=torch.int32)
    expected = reference.pack(x.permute(0, 2, 3, 1), threshold, flip)
    assert torch.equal(Pack(True, threshold, flip)(x), expected)


@pytest.mark.parametrize("channels_last", [False, True])
def test_memory_format_of_float_maps(channels_last):
    weight = random_packed(18, 3, 3, 33)
    x = random_packed(2, 6, 7, 33)
    out = PackedConv2d(weight, 33, channels_last=channels_last)(x)
    expected = ops.conv2d_float(x, weight, 33).permute(0, 3, 1, 2)
    real = torch.randn(2, 33, 6, 7)
    memory = torch.channels_last if channels_last else torch.contiguous_format
    for found, same in (
        (out, expected),
        (
            RealInputConv2d(weight, 33, channels_last=channels_last)(real),
            ops.binary_weight_conv2d(real, weight, 33),
        ),
    ):
        assert torch.equal(found, same)
        assert found.stride() == torch.empty(found.shape, memory_format=memory).stride()


WEIGHT, KERNELS = random_packed(33, 70), random_packed(33, 3, 3, 70)
FLIP, WORDS = random_packed(33), torch.zeros(33, dtype=torch.int32)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Pack(1), TypeError, "is_map must be a bool, found int"),
        (lambda: Pack(True, WORDS), TypeError, "threshold must be torch.float32"),
        (lambda: Pack(True, torch.zeros(33), WORDS[:1].float()), TypeError, "flip"),
        (lambda: Pack(True, torch.zeros(33), WORDS[:1]), ValueError, "flip must have 2 words"),
        (lambda: Pack(False, None, FLIP), ValueError, "flip needs a threshold"),
        (lambda: PackedLinear(WEIGHT, 64), ValueError, "weight must have 2 words"),
        (lambda: PackedLinear(WEIGHT.float(), 70), TypeError, "weight must be torch.int32"),
        (lambda: PackedLinear(WEIGHT, -1), ValueError, "in_features must be at least 0"),
        (lambda: PackedLinear(WEIGHT, 70, dtype="int8"), ValueError, "dtype must be one of"),
        (lambda: PackedLinear(WEIGHT, 70, torch.ones(32)), ValueError, "scale must have 33"),
        (lambda: PackedLinear(WEIGHT, 70, None, WORDS), TypeError, "bias must be torch.float32"),
        (lambda: PackedLinear(WEIGHT, 70, None, None, WORDS[1:]), ValueError, "threshold must"),
        (lambda: PackedLinear(WEIGHT, 70, flip=FLIP), ValueError, "flip needs a threshold"),
        (
            lambda: PackedLinear(WEIGHT, 70, torch.ones(33), threshold=WORDS),
            ValueError,
            "threshold must stand alone",
        ),
        (lambda: PackedConv2d(KERNELS, 64), ValueError, "weight must have 2 words"),
        (lambda: PackedConv2d(KERNELS, 70, (1, 0)), ValueError, "stride must be at least 1"),
        (
            lambda: PackedConv2d(KERNELS, 70, (1, 1), (-1, 0)),
            ValueError,
            "padding must be at least",
        ),
        (
            lambda: PackedConv2d(KERNELS, 70, dilation=(0, 1)),
            ValueError,
            "dilation must be at least",
        ),
        (lambda: PackedConv2d(KERNELS, 70, groups=3), ValueError, "groups must divide"),
        (
            lambda: PackedConv2d(KERNELS, 70, pad_value=2),
            ValueError,
            "pad_value must be -1, 0 or 1",
        ),
        (lambda: PackedConv2d(KERNELS, 70, channels_last=1), TypeError, "channels_last must be"),
        (lambda: PackedMaxPool2d((2, 0), (1, 1)), ValueError, "kernel_size must be at least 1"),
        (lambda: PackedMaxPool2d((2, 2), (1, 1), (2, 0)), ValueError, "padding must be at most"),
        (lambda: PackedMaxPool2d((2, 2), (1, 1), minimum=FLIP.float()), TypeError, "minimum"),
        (lambda: PackedFlatten(-1), ValueError, "channels must be at least 0"),
        (lambda: BinaryWeightLinear(WEIGHT, 64), ValueError, "packed must have 2 words"),
        (lambda: BinaryWeightLinear(KERNELS, 70), (ValueError, RuntimeError), ""),
        (
            lambda: BinaryWeightLinear(WEIGHT, 70, torch.ones(1)),
            ValueError,
            "scale must be a float",
        ),
        (lambda: BinaryWeightLinear(WEIGHT, 70, bias=WORDS), ValueError, "bias must be a float"),
        (
            lambda: BinaryWeightConv2d(KERNELS, 70, stride=(0, 1)),
            ValueError,
            "stride must be at least",
        ),
        (
            lambda: BinaryWeightConv2d(KERNELS, 70, groups=2),
            ValueError,
            "groups must divide the 33",
        ),
        (lambda: BinaryWeightConv2d(KERNELS, 70, pad_value=7), ValueError, "pad_value must be -1"),
        (lambda: RealInputLinear(WEIGHT, 64), ValueError, "weight must have 2 words"),
        (lambda: RealInputLinear(WEIGHT, 70, threshold=WORDS), TypeError, "threshold must be"),
        (
            lambda: RealInputLinear(WEIGHT, 70, torch.ones(33), threshold=torch.ones(33)),
            ValueError,
            "threshold must stand alone",
        ),
        (lambda: RealInputConv2d(KERNELS, 64), ValueError, "weight must have 2 words"),
        (lambda: RealInputConv2d(KERNELS, 70, groups=3), ValueError, "groups must divide the 70"),
        (lambda: RealInputConv2d(KERNELS, 70, (0, 1)), ValueError, "stride must be at least 1"),
        (lambda: RealInputConv2d(KERNELS, 70, pad_value=7), ValueError, "pad_value must be -1"),
        (lambda: RealInputConv2d(KERNELS, 70, bias=torch.ones(3)), ValueError, "bias must have"),
    ],
)
def test_wrong_arguments(make, error, message):
    """Found when the layer is made, not when it runs."""
    with pytest.raises(error, match=message or None):
        make()


def test_checks_need_no_memory():
    """Layers are checked on tensors without data: a map of this size would take a terabyte."""
    PackedConv2d(KERNELS, 70, padding=(10**5, 10**5))
    BinaryWeightConv2d(KERNELS, 70, padding=(10**5, 10**5))
    RealInputConv2d(KERNELS, 70, padding=(10**5, 10**5))
    PackedMaxPool2d((10**5, 10**5), (1, 1))
    PackedFlatten(10**12)


def test_tiles_follow_the_kind_of_device():
    layer = PackedConv2d(random_packed(40, 3, 3, 70), 70)
    shape = layer.tiles.shape
    layer.tiles = torch.zeros(1, dtype=torch.int32)  # as if of another kind of device
    assert layer.to(torch.float16).tiles.shape == (1,)
    assert layer.to("meta").tiles.shape == shape
