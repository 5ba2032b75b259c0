"""`save` and `load`: nothing is lost, nothing damaged gets in, and nothing is half written."""

from __future__ import annotations

import builtins
import contextlib
import copy
import io
import json
import os
import pickle
import random
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from networks import NETWORKS, randomize
from packed_inputs import random_packed, random_thresholds
from random_models import RandomModel
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import bnn_ext
from bnn_ext import models
from bnn_ext import nn as bnn
from bnn_ext.convert import PackedNetwork, files
from bnn_ext.convert.network import Node
from bnn_ext.convert.report import LayerReport, Report
from bnn_ext.nn import packed, real_inputs
from bnn_ext.nn.fused import Elementwise, FusedConv2d, FusedLinear
from bnn_ext.nn.pointwise import PointwiseConv2d
from bnn_ext.nn.pooling import RealAvgPool2d, RealGlobalAvgPool2d, RealMaxPool2d
from bnn_ext.nn.torch_calls import ToFormat, TorchCall, to_json

Header = dict[str, Any]
Change = Callable[[Header, dict[str, Tensor]], None]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's remark on even kernels with padding="same", which the random models draw on purpose
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
]

IMAGE = (2, 3, 8, 8)


@pytest.fixture(scope="module")
def network() -> PackedNetwork:
    """A small network with every kind of node, two inputs, and outputs in every container."""
    torch.manual_seed(0)
    weight = random_packed(33, 3, 3, 1)
    both = {"threshold": torch.randn(20), "flip": random_packed(20)}
    bits = dict(zip(("threshold", "flip"), random_thresholds(20, 33 * 9), strict=True))
    geometry = ((1, 1), (0, 0), (1, 1), 1, 0)
    real = torch.randn(20, 3, 1, 1).to(memory_format=torch.channels_last)
    nodes = [
        Node("last", ToFormat(True), ("image",), ("last",)),
        Node(
            "0", real_inputs.RealInputConv2d(weight, 3, padding=(1, 1), groups=3), ("last",), ("0",)
        ),
        Node(
            "1",
            real_inputs.BinaryWeightConv2d(weight, 1, padding=(1, 1), groups=3),
            ("image",),
            ("1",),
        ),
        Node(
            "2",
            Elementwise(
                True,
                ["residual", "multiply_add"],
                threshold=torch.randn(33),
                flip=random_packed(33),
                operand_0=torch.randn(33),
                operand_1=torch.randn(33),
            ),
            ("0", "1"),
            ("2", "2.bits"),
        ),
        Node(
            "pool",
            packed.PackedMaxPool2d((2, 2), (2, 2), minimum=random_packed(33)),
            ("2.bits",),
            ("pool",),
        ),
        Node("3", packed.PackedConv2d(random_packed(20, 3, 3, 33), 33, **bits), ("pool",), ("3",)),
        Node(
            "3.real", packed.PackedConv2d(random_packed(20, 3, 3, 33), 33), ("pool",), ("3.real",)
        ),
        Node(
            "4",
            FusedConv2d(
                random_packed(20, 3, 3, 33),
                33,
                *geometry,
                ["residual", "prelu"],
                operand_0=torch.rand(20),
                **both,
            ),
            ("pool", "3.real"),
            ("4", "4.bits"),
        ),
        Node("max", RealMaxPool2d((2, 2), (1, 2), (1, 0), ceil_mode=True), ("4",), ("max",)),
        Node("mean", RealAvgPool2d((2, 1), (2, 1), divisor_override=3), ("max",), ("mean",)),
        Node("1x1", PointwiseConv2d(torch.randn(7, 20), torch.randn(7)), ("mean",), ("1x1",)),
        Node("all", RealGlobalAvgPool2d(), ("1x1",), ("all",)),
        Node(
            "select",
            packed.SelectChannels([20, 20], torch.randperm(40)[:35].int()),
            ("3", "4.bits"),
            ("select",),
        ),
        Node("flat", packed.PackedFlatten(35), ("select",), ("flat",)),
        Node(
            "5", packed.PackedLinear(random_packed(20, 140), 140, torch.rand(20)), ("flat",), ("5",)
        ),
        Node(
            "6",
            FusedLinear(
                random_packed(20, 140),
                140,
                ["residual", "maximum"],
                operand_0=torch.zeros(20),
                **both,
            ),
            ("flat", "5"),
            ("6", "6.bits"),
        ),
        Node("7", packed.PackedLinear(random_packed(7, 20), 20), ("6.bits",), ("7",)),
        Node("pack", packed.Pack(False, torch.randn(9)), ("row",), ("pack",)),
        Node("8", packed.PackedLinear(random_packed(20, 9), 9), ("pack",), ("8",)),
        Node("9", real_inputs.RealInputLinear(random_packed(7, 20), 20), ("8",), ("9",)),
        Node(
            "10",
            real_inputs.BinaryWeightLinear(random_packed(7, 20), 20, bias=torch.ones(7)),
            ("8",),
            ("10",),
        ),
        Node(
            "11",
            TorchCall(
                "linear.default",
                [{"input": 0}, {"tensor": "tensor_0"}],
                tensor_0=torch.randn(20, 7).t(),
            ),
            ("6",),
            ("11",),
        ),
        Node(
            "12", TorchCall("cat.default", [[{"input": 0}, {"input": 1}], 1]), ("9", "11"), ("12",)
        ),
        Node(
            "13",
            TorchCall("clamp.default", [{"input": 0}, to_json(float("-inf")), 1.5]),
            ("12",),
            ("13",),
        ),
        Node(
            "14",
            TorchCall("_to_copy.default", [{"input": 0}], {"dtype": to_json(torch.float64)}),
            ("7",),
            ("14",),
        ),
        Node(
            "15",
            TorchCall(
                "convolution.default",
                [{"input": 0}, {"tensor": "w"}, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1],
                w=real,
            ),
            ("last",),
            ("15",),
        ),
        Node("16", TorchCall("split.Tensor", [{"input": 0}, 6, 1]), ("15",), ("16",)),
        Node("17", TorchCall("getitem", [{"input": 0}, 3]), ("16",), ("17",)),
    ]
    structure = {
        "scores": "13",
        "both": ("10", ["14", "image"]),
        7: OrderedDict(b="2", a="17", c="mean", d="all"),
    }
    report = Report([LayerReport("0", "Conv2d", "fused", "why", 10, 1, 5)], ["a note"])
    fast = PackedNetwork(nodes, ["image", "row"], structure, report, rounds=True)
    assert {type(step).__name__ for step in fast.steps} == set(files._KINDS)
    return fast


def images(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(IMAGE, generator=generator), torch.randn(2, 9, generator=generator)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bnn"


@pytest.fixture
def saved(network: PackedNetwork, path: Path) -> Path:
    bnn_ext.save(network, path)
    return path


def content(data: bytes) -> tuple[Header, dict[str, Tensor]]:
    """Our header and the tensors of a model file."""
    length = int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    return json.loads(metadata["bnn_ext"]), safetensors.torch.load(data)


def write(path: Path, header: Header, tensors: dict[str, Tensor]) -> None:
    """A model file with a correct checksum, whatever is in it."""
    header.pop("sha256", None)
    header["sha256"] = files._digest(header, tensors)
    text = json.dumps(header, separators=(",", ":"))
    path.write_bytes(safetensors.torch.save(tensors, {"bnn_ext": text}))


def rewrite(path: Path, change: Change) -> None:
    header, tensors = content(path.read_bytes())
    change(header, tensors)
    write(path, header, tensors)


def node(header: Header, name: str) -> dict[str, Any]:
    return next(node for node in header["nodes"] if node["name"] == name)


@torch.no_grad()
def assert_same(first: PackedNetwork, second: PackedNetwork, *inputs: Tensor) -> None:
    """The same nodes, tensors, report and outputs."""
    assert [(n.name, n.inputs, n.outputs) for n in first.nodes] == [
        (n.name, n.inputs, n.outputs) for n in second.nodes
    ]
    expected, found = first.state_dict(), second.state_dict()
    assert list(expected) == list(found)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].stride() == tensor.stride(), key
        assert torch.equal(found[key], tensor), key
    assert first.inputs == second.inputs
    assert pytree.tree_structure(first.structure) == pytree.tree_structure(second.structure)
    assert (first.structure, first.rounds) == (second.structure, second.rounds)
    assert first.report.to_dict() == second.report.to_dict()
    ours, theirs = first(*[x.clone() for x in inputs]), second(*[x.clone() for x in inputs])
    assert pytree.tree_structure(ours) == pytree.tree_structure(theirs)
    for one, other in zip(pytree.tree_leaves(ours), pytree.tree_leaves(theirs), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


def round_trip(model: nn.Module, x: Tensor, path: Path, **options: Any) -> PackedNetwork:
    fast = bnn_ext.convert(model.eval(), x, verify=False, **options)
    bnn_ext.save(fast, path)
    loaded = bnn_ext.load(path)
    assert_same(fast, loaded, x)
    return loaded


def small() -> PackedNetwork:
    """Two nodes."""
    return bnn_ext.convert(nn.Sequential(bnn.BinaryLinear(6, 5)).eval())


# --- there and back -------------------------------------------------------------------------------


def test_every_kind(network, saved):
    assert_same(network, bnn_ext.load(saved), *images())


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("real_layers", ["fused", "torch"])
def test_random_model(seed, real_layers, path):
    drawn = RandomModel(seed)
    round_trip(drawn.model, drawn.input, path, real_layers=real_layers)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_as_people_write_them(name, path, tmp_path):
    network = NETWORKS[name]
    model = randomize(network.make(), network.inputs(2), 0)
    fast = bnn_ext.convert(model, network.inputs(2), verify=False)
    bnn_ext.save(fast, path)
    loaded = bnn_ext.load(path)
    assert_same(fast, loaded, *network.inputs(3, seed=1))
    bnn_ext.save(loaded, tmp_path / "again")
    assert path.read_bytes() == (tmp_path / "again").read_bytes()


ROWS, SIGNAL, MAP, VOLUME = (2, 6), (2, 6, 9), (2, 6, 9, 8), (2, 6, 7, 8, 5)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (bnn.BinaryLinear(6, 5, input_quantizer=None, weight_quantizer=None), ROWS),
        (bnn.BinaryConv1d(6, 4, 3, 2, 1, 2, 2, False, pad_value=-1), SIGNAL),
        (bnn.BinaryConv2d(6, 4, (2, 3), padding="same", weight_quantizer="stochastic_sign"), MAP),
        (bnn.BinaryConv3d(6, 4, (1, 2, 3), input_quantizer="swish_sign"), VOLUME),
        (nn.Linear(6, 5, bias=False), ROWS),
        (nn.Conv1d(6, 4, 3, padding=2), SIGNAL),
        (nn.Conv2d(6, 4, (2, 3), (1, 2), "valid", groups=2), MAP),
        (nn.Conv2d(6, 4, 3, padding=(2, 1), padding_mode="reflect"), MAP),
        (nn.Conv3d(6, 4, (1, 2, 3), dilation=(1, 1, 2), bias=False), VOLUME),
        (nn.BatchNorm1d(6), ROWS),
        (nn.BatchNorm2d(6, eps=1e-5, momentum=None), MAP),
        (nn.BatchNorm2d(6, affine=False), MAP),
        (nn.BatchNorm3d(6, eps=0.1), VOLUME),
        (nn.LayerNorm((9, 8), eps=1e-3), MAP),
        (nn.LayerNorm(6, elementwise_affine=False), ROWS),
        (nn.MaxPool1d(2), SIGNAL),
        (nn.MaxPool2d((3, 2), (2, 1), (1, 0), 2, ceil_mode=True), MAP),
        (nn.MaxPool3d(2, ceil_mode=True), VOLUME),
        (nn.AvgPool1d(3, 2, 1, count_include_pad=False), SIGNAL),
        (nn.AvgPool2d(3, 2, (1, 0), ceil_mode=True, divisor_override=4), MAP),
        (nn.AdaptiveAvgPool2d((None, 3)), MAP),
        (nn.Flatten(2), MAP),
        (nn.Unflatten(1, (2, 3)), ROWS),
        (nn.ZeroPad2d((1, 2, 0, 3)), MAP),
        (nn.PixelShuffle(1), MAP),
        (nn.ReLU(), MAP),
        (nn.ReLU6(), MAP),
        (nn.LeakyReLU(-0.3), MAP),
        (nn.PReLU(6, init=0.3), MAP),
        (nn.Hardtanh(float("-inf"), 0.3), MAP),
        (nn.Hardsigmoid(), MAP),
        (nn.Hardswish(), MAP),
        (nn.Tanh(), MAP),
        (nn.Sigmoid(), MAP),
        (nn.GELU("tanh"), MAP),
        (nn.SiLU(), MAP),
        (nn.Softmax(1), MAP),
        (nn.LogSoftmax(-1), MAP),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_stay_with_torch(layer, shape, path):
    x = torch.randn(shape)
    layer(x)  # running statistics of this batch
    round_trip(nn.Sequential(layer), x, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, path):
    model = nn.Sequential(
        bnn.BinaryConv2d(6, 9, 3, input_quantizer=None, weight_quantizer="magnitude_aware_sign"),
        nn.BatchNorm2d(9),
        bnn.BinaryConv2d(9, 5, 3),
        nn.Flatten(),
        nn.Linear(100, 3),
    )
    model[4] = nn.Linear(5 * 5 * 4, 3)
    round_trip(model.to(dtype), torch.randn(MAP).to(dtype), path)


@pytest.mark.parametrize("kernel_size", [1, 3])
@pytest.mark.parametrize("real_layers", ["fused", "torch"])
def test_memory_format_of_real_weights(kernel_size, real_layers, path):
    model = nn.Sequential(
        nn.Conv2d(6, 64, kernel_size),
        nn.Conv2d(64, 1, kernel_size),
        nn.Conv2d(1, 6, 1),
        bnn.BinaryConv2d(6, 33, kernel_size, input_quantizer=None),
        bnn.BinaryConv2d(33, 33, 1),
        nn.AdaptiveAvgPool2d(1),
    )
    round_trip(model, torch.randn(MAP), path, real_layers=real_layers)
    model = model.to(memory_format=torch.channels_last)
    round_trip(model, torch.randn(MAP), path, real_layers=real_layers)
    x = torch.randn(MAP).to(memory_format=torch.channels_last)
    round_trip(model, x, path, real_layers=real_layers)


def test_any_order_in_memory():
    """Strides come back as they were, those of dimensions of size 1 included."""
    draw = random.Random(0)
    for _ in range(200):
        shape = [draw.choice((1, 1, 2, 3, 5)) for _ in range(draw.randint(0, 5))]
        order = draw.sample(range(len(shape)), len(shape))
        tensor = torch.randn([shape[dim] for dim in order])
        tensor = tensor.permute([order.index(dim) for dim in range(len(shape))])
        written = tensor.clone(memory_format=torch.contiguous_format)
        dims = files._orders({"x": tensor}).get("x", list(range(len(shape))))
        assert files._in_order(written, dims).stride() == tensor.stride()


def test_tensors_that_are_views_of_one_another(path):
    """A shared weight, a transposed one and an expanded one, which are written in full."""
    shared = torch.randn(6, 6)
    kinds = (shared, shared, shared.t(), torch.randn(1, 6).expand(6, 6))
    nodes = [
        Node(
            str(i),
            TorchCall("linear.default", [{"input": 0}, {"tensor": "weight"}], weight=weight),
            (str(i - 1),),
            (str(i),),
        )
        for i, weight in enumerate(kinds)
    ]
    fast = PackedNetwork(nodes, ["-1"], "3", Report())
    bnn_ext.save(fast, path)
    loaded, x = bnn_ext.load(path), torch.randn(ROWS)
    assert loaded.steps[2].weight.stride() == (1, 6)
    assert torch.equal(loaded(x), fast(x))


def test_empty_network(path):
    round_trip(nn.Sequential(), torch.randn(2, 3), path)


def test_module_used_twice(path):
    layer = bnn.BinaryLinear(6, 6)
    real = nn.Linear(6, 6)
    round_trip(nn.Sequential(layer, layer, real, real), torch.randn(ROWS), path)


def test_files_are_reproducible(network, saved, tmp_path):
    again = tmp_path / "again.bnn"
    bnn_ext.save(bnn_ext.load(saved), again)
    assert saved.read_bytes() == again.read_bytes()


def test_format_as_documented(saved):
    """Version 2 stays readable by anyone: these names and shapes are a promise."""
    header, tensors = content(saved.read_bytes())
    fields = {"version", "inputs", "structure", "rounds", "nodes", "report", "sha256"}
    assert set(header) == fields
    assert (header["version"], header["inputs"]) == (2, ["image", "row"])
    assert header["structure"] == {
        "dict": [
            ["scores", "13"],
            ["both", {"tuple": ["10", {"list": ["14", "image"]}]}],
            [7, {"OrderedDict": [["b", "2"], ["a", "17"], ["c", "mean"], ["d", "all"]]}],
        ]
    }
    assert header["rounds"] is True
    assert node(header, "3.real") == {
        "name": "3.real",
        "kind": "PackedConv2d",
        "inputs": ["pool"],
        "outputs": ["3.real"],
        "attributes": {
            "in_channels": 33,
            "stride": [1, 1],
            "padding": [0, 0],
            "dilation": [1, 1],
            "groups": 1,
            "pad_value": 0,
            "channels_last": False,
            "dtype": "float32",
        },
        "orders": {},
    }
    assert node(header, "2")["outputs"] == ["2", "2.bits"]
    assert node(header, "13")["attributes"] == {
        "operator": "clamp.default",
        "arguments": [{"input": 0}, {"float": "-inf"}, 1.5],
        "keywords": {},
    }
    assert node(header, "14")["attributes"]["keywords"] == {"dtype": {"dtype": "float64"}}
    assert node(header, "11")["orders"] == {"tensor_0": [1, 0]}
    assert node(header, "15")["orders"] == {"w": [0, 2, 3, 1]}
    assert tensors["3.weight"].shape == (20, 3, 3, 2)
    assert tensors["3.weight"].dtype == tensors["3.threshold"].dtype == torch.int32
    assert not any("tiles" in name or "signs" in name for name in tensors), "derived, never saved"
    assert header["report"]["layers"][0]["status"] == "fused"
    assert header["report"]["notes"] == ["a note"]


@pytest.mark.parametrize("make", [models.vgg_small_binary, models.birealnet18])
def test_size(make, path):
    """Little more than a bit for every binary weight and 4 bytes for every other parameter."""
    model = make().eval()
    kinds = (bnn.BinaryLinear, bnn.BinaryConv2d)
    layers = [module for module in model.modules() if isinstance(module, kinds)]
    binary = sum(layer.weight.numel() for layer in layers)
    real = sum(parameter.numel() for parameter in model.parameters()) - binary
    bnn_ext.save(bnn_ext.convert(model), path)
    assert path.stat().st_size <= 1.05 * (binary / 8 + real * 4)


def test_loaded_network_is_ready(saved):
    loaded = bnn_ext.load(str(saved))
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.report.verification is None
    print(loaded, loaded.report)


def test_life_of_a_loaded_network(network, saved):
    """Copies, moves, other tensors: all as with the network that was saved."""
    loaded = bnn_ext.load(saved)
    assert_same(network, copy.deepcopy(loaded), *images())
    assert_same(network, pickle.loads(pickle.dumps(loaded)), *images())
    assert_same(network, bnn_ext.load(saved).to("cpu").double(), *images())

    state = {key: tensor.clone() for key, tensor in loaded.state_dict().items()}
    for tensor in loaded.state_dict().values():
        tensor.zero_()
    loaded.load_state_dict(state)
    assert_same(network, loaded, *images(1))


def test_other_default_dtype_and_device(network, saved, tmp_path):
    """Defaults of the program that loads and saves make no difference."""
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        loaded = bnn_ext.load(saved)
        bnn_ext.save(loaded, tmp_path / "again")
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same(network, loaded, *images())
    assert saved.read_bytes() == (tmp_path / "again").read_bytes()


# --- not a model file, or not a whole one ---------------------------------------------------------


def assert_refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        bnn_ext.load(path)
    assert str(path) in str(caught.value)


def test_truncated(saved):
    data = saved.read_bytes()
    for length in (*range(0, len(data), 1024), len(data) - 1):
        saved.write_bytes(data[:length])
        assert_refused(saved)


def test_truncated_at_every_byte(path):
    bnn_ext.save(small(), path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert_refused(path, "is not a complete bnn_ext model file")


def test_longer(saved):
    data = saved.read_bytes()
    saved.write_bytes(data + b"\0")
    assert_refused(saved)
    saved.write_bytes(data + data)
    assert_refused(saved)


def test_flipped_bits(saved):
    """One wrong bit: every bit of the first bytes, then one here and there to the end."""
    data = saved.read_bytes()
    draw = random.Random(0)
    positions = [*range(64), *(draw.randrange(len(data)) for _ in range(400))]
    for position in positions:
        for bit in range(8) if position < 16 else [draw.randrange(8)]:
            altered = bytearray(data)
            altered[position] ^= 1 << bit
            saved.write_bytes(altered)
            with pytest.raises(ValueError):
                bnn_ext.load(saved)
                pytest.fail(f"bit {bit} of byte {position} may be flipped")


def test_random_bytes(path):
    draw = random.Random(0)
    for _ in range(200):
        length = draw.randrange(200)
        header = draw.randrange(64).to_bytes(8, "little") if draw.random() < 0.5 else b""
        path.write_bytes(header + draw.randbytes(length))
        assert_refused(path, "not a complete bnn_ext model file")


def test_another_spelling_of_the_header(saved):
    """The same JSON in other words is an altered file too."""
    header, tensors = content(saved.read_bytes())
    texts = (
        json.dumps(header, indent=1),
        json.dumps(header),
        files._text(header).replace("1.5", "15e-1"),
    )
    for text in texts:
        saved.write_bytes(safetensors.torch.save(tensors, {"bnn_ext": text}))
        assert json.loads(text) == header
        assert_refused(saved, "checksum")


def zip_file() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("model", "x")
    return buffer.getvalue()


def torch_file() -> bytes:
    buffer = io.BytesIO()
    torch.save({"weight": torch.ones(3)}, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"\0" * 100,
        zip_file(),
        torch_file(),
        pickle.dumps({"weight": 1}),
        safetensors.torch.save({"weight": torch.ones(3)}),
        safetensors.torch.save({"weight": torch.ones(3)}, {"format": "pt"}),
        safetensors.torch.save({}, {"bnn_ext": "{"}),
        safetensors.torch.save({}, {"bnn_ext": "[1]"}),
        safetensors.torch.save({}, {"bnn_ext": "null"}),
        safetensors.torch.save({}, {"bnn_ext": '"version"'}),
        safetensors.torch.save({}, {"bnn_ext": "{}"}),
        safetensors.torch.save({}, {"bnn_ext": "[" * 100_000}),
        safetensors.torch.save({}, {"bnn_ext": '{"version": ' + "9" * 10_000 + "}"}),
        (2**62).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
    ],
    ids="empty text zeros zip torch pickle plain format brace list null string object deep huge long longer".split(),  # noqa: E501, SIM905
)
def test_foreign_file(data, path):
    path.write_bytes(data)
    assert_refused(path, "is not a complete bnn_ext model file")


class Bomb:
    """Unpickled, it would leave a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def test_pickles_are_not_opened(path, tmp_path):
    trace = tmp_path / "exploded"
    buffer = io.BytesIO()
    torch.save(Bomb(trace), buffer)
    for data in (pickle.dumps(Bomb(trace)), buffer.getvalue()):
        path.write_bytes(data)
        assert_refused(path)
        assert not trace.exists()


def test_paths_that_are_no_files(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.bnn"):
        bnn_ext.load(tmp_path / "nothing.bnn")
    with pytest.raises(IsADirectoryError):
        bnn_ext.load(tmp_path)
    with pytest.raises(NotADirectoryError):
        bnn_ext.load(saved / "model.bnn")
    (tmp_path / "dangling").symlink_to("nothing.bnn")
    with pytest.raises(FileNotFoundError):
        bnn_ext.load(tmp_path / "dangling")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OSError):
        bnn_ext.load(tmp_path / "loop")


def test_symlink(network, saved, tmp_path):
    """Reading follows a link; saving puts the new file in the place of the link."""
    link = tmp_path / "link"
    link.symlink_to(saved.name)
    assert_same(network, bnn_ext.load(link), *images())
    bnn_ext.save(small(), link)
    assert not link.is_symlink()
    assert_same(network, bnn_ext.load(saved), *images())


@pytest.mark.parametrize(
    "version",
    [3, 0, 2.0, True, "2", None, [2], {}, float("inf"), 10**400],
    ids=lambda v: str(v)[:9],
)
def test_other_version(saved, version):
    rewrite(saved, lambda header, _: header.update(version=version))
    assert_refused(saved, "must have format version 1 or 2, found")


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**62, 2**62]},
        {"shape": [2**32, 2**32]},
        {"shape": [2**64]},
        {"shape": [-1, 5]},
        {"shape": [10**12]},
        {"shape": "x"},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [2**63, 2**64 - 1]},
        {"data_offsets": [8, 0]},
        {"data_offsets": [-1, 4]},
        {"data_offsets": [0, 0]},
        {"data_offsets": [0]},
        {"dtype": "F128"},
        {"dtype": "object"},
        {"dtype": "F64"},
        {"dtype": None},
    ],
    ids=str,
)
def test_tensors_that_are_not_there(path, changes):
    """What safetensors itself must see, before memory is taken for it."""
    data = safetensors.torch.save({"a.x": torch.ones(5)}, {"bnn_ext": '{"version":2}'})
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["a.x"] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])
    assert_refused(path, "is not a complete bnn_ext model file")


# --- a correct checksum over nonsense -------------------------------------------------------------


def each(saved: Path, changes: list[Change]) -> Iterator[None]:
    """The file with each change in turn."""
    data = saved.read_bytes()
    for change in changes:
        rewrite(saved, change)
        yield
        saved.write_bytes(data)


def set_attribute(name: str, key: str, value: Any) -> Change:
    return lambda header, _: node(header, name)["attributes"].update({key: value})


def set_field(name: str, key: str, value: Any) -> Change:
    return lambda header, _: node(header, name).update({key: value})


def set_header(key: str, value: Any) -> Change:
    return lambda header, _: header.update({key: value})


NONSENSE = (None, True, -1, 0, 2, 10**6, 10**12, 10**18, 2**63, 10**30, 1.5, "x", {}, [])
NONSENSE_PAIRS = (
    *NONSENSE,
    [1],
    [1, 1, 1],
    [-1, -1],
    [[1], [1]],
    ["a", "b"],
    [1.5, 1],
    [None, None],
    [-(10**18), 1],
)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("0", "in_channels"),
        ("0", "groups"),
        ("1", "fan_in"),
        ("1", "groups"),
        ("3", "in_channels"),
        ("3", "groups"),
        ("4", "in_channels"),
        ("4", "groups"),
        ("5", "in_features"),
        ("6", "in_features"),
        ("9", "in_features"),
        ("10", "fan_in"),
        ("select", "channels"),
    ],
)
def test_wrong_sizes(saved, name, key):
    one_word = name in ("1", "9", "10")  # which 2 fits into like the right size
    values = [value for value in NONSENSE if value != 2 or not one_word]
    for _ in each(saved, [set_attribute(name, key, value) for value in values]):
        assert_refused(saved, f"node {name}")


@pytest.mark.parametrize(
    ("name", "key"),
    [(n, key) for n in "0134" for key in ("stride", "padding", "dilation")]
    + [("pool", key) for key in ("kernel_size", "stride", "padding", "dilation")],
)
def test_wrong_geometry(saved, name, key):
    for _ in each(saved, [set_attribute(name, key, value) for value in NONSENSE_PAIRS]):
        assert_refused(saved, f"node {name}")


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        *[(n, "pad_value", (2, -2, 0.5, "zero", None, [0])) for n in "0134"],
        *[(n, "dtype", ("float64", "int8", "x", "__class__", 32, None, [])) for n in "13456"],
        *[(n, "channels_last", (1, "no", None)) for n in ("0", "1", "3", "last")],
        *[(n, "is_map", (1, "yes", None)) for n in ("2", "pack")],
        *[(n, "floats", (1, "yes", None, False)) for n in "246"],
        ("pool", "ceil_mode", (1, "yes", None)),
        ("flat", "channels", (-1, "x", None, 1.5, 10**30)),
        ("select", "channels", ([20], [20, 20, 20], [20, 10**30], [-20, 60], [20, 19.5])),
        *[
            (
                n,
                "operations",
                (None, "add", [], ["residual"], ["x", "prelu"], [[]], [1, 2], ["add"] * 9),
            )
            for n in "246"
        ],
        (
            "13",
            "operator",
            ("system", "abs.out", "relu_.default", "__class__", "", None, [], "a.b.c"),
        ),
        ("13", "operator", ("set_.source_Tensor", "from_file.default", "resize_.default", "exec")),
        (
            "13",
            "arguments",
            (None, 1, "x", {}, [], [{"input": 1}], [{"input": -1}], [{"input": True}]),
        ),
        ("13", "arguments", ([{"input": 0}, {"input": 2}], [{"input": 10**30}], [{"input": "0"}])),
        ("13", "arguments", ([{"input": 0}, {}], [{"input": 0, "tensor": "x"}], [{"input": [0]}])),
        ("13", "arguments", ([{"input": 0}, {"eval": "1"}], [{"input": 0}, {"tensor": "x"}])),
        ("13", "arguments", ([{"input": 0}, {"dtype": "x"}], [{"input": 0}, {"dtype": []}])),
        ("13", "arguments", ([{"input": 0}, {"float": "1e400"}], [{"input": 0}, [[1]]])),
        ("13", "arguments", ([{"input": 0}, 2**63], [{"input": 0}, -(10**30)])),
        ("13", "keywords", (1, [], "x", {"min": {"x": 1}}, {"min": {"input": 1}}, {"min": [[]]})),
        ("11", "arguments", ([{"input": 0}], [{"input": 0}, {"tensor": "tensor_1"}])),
    ],
)
def test_wrong_choices(saved, name, key, values):
    for _ in each(saved, [set_attribute(name, key, value) for value in values]):
        assert_refused(saved, f"node {name}")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_has_not(saved, number):
    """Python's json writes and reads them; they are refused wherever they stand."""
    changes = [
        set_attribute("13", "arguments", [{"input": 0}, number]),
        lambda header, _: header["report"]["layers"][0].update(macs=number),
        set_header("rounds", number),
    ]
    for _ in each(saved, changes):
        assert_refused(saved, "not JSON compliant")


@pytest.mark.parametrize("depth", [2, 100, 10_000])
@pytest.mark.parametrize("where", ["arguments", "structure", "report"])
def test_nesting(saved, where, depth):
    """A checksum cannot be made of the deepest, which are refused all the same."""
    header, tensors = content(saved.read_bytes())
    nested: Any = []
    for _ in range(min(depth, 100) - 1):
        nested = [nested]
    if where == "arguments":
        node(header, "13")["attributes"]["arguments"] = nested
    else:
        header[where] = nested
    write(saved, header, tensors)
    if depth > 100:
        text = json.dumps(header, separators=(",", ":"))
        text = text.replace("[" * 100, "[" * depth).replace("]" * 100, "]" * depth)
        saved.write_bytes(safetensors.torch.save(tensors, {"bnn_ext": text}))
    assert_refused(saved)


def test_attributes_of_all_kinds(saved):
    """A missing one, an unknown one, and none at all, at every node."""

    def remove(name: str, key: str) -> Change:
        return lambda header, _: node(header, name)["attributes"].pop(key)

    for described in content(saved.read_bytes())[0]["nodes"]:
        name = described["name"]
        added = {"dtype"} if described["kind"] == "Elementwise" else set()  # see the test below
        changes = [remove(name, key) for key in described["attributes"] if key not in added]
        changes += [set_attribute(name, key, 1) for key in ("x", "weight", "self", "device")]
        values = (None, [], "x", 1, [["stride", 1]], *([{}] if described["attributes"] else []))
        changes += [set_field(name, "attributes", value) for value in values]
        for _ in each(saved, changes):
            assert_refused(saved, f"node {name}")


def test_files_from_before_steps_in_half_precision(network, saved):
    """Their elementwise steps say no dtype: it was float32."""

    def change(header: Header, tensors: dict[str, Tensor]) -> None:
        assert node(header, "2")["attributes"].pop("dtype") == "float32"

    for _ in each(saved, [change]):
        assert_same(bnn_ext.load(saved), network, *images())


def test_tensors(saved):
    """Each one missing, of another dtype, of another shape."""
    data = saved.read_bytes()
    any_length = ("select.index", "pack.threshold", "pool.minimum")  # the input has to fit
    for key, tensor in content(data)[1].items():
        if key in ("11.tensor_0", "15.w"):
            continue  # torch has no opinion before it is called
        wrong = [tensor.to(d) for d in (torch.int8, torch.int64, torch.bool, torch.complex64)]
        if tensor.dtype == torch.int32:
            wrong += [tensor.float(), tensor.view(torch.float32)]
        if "operand" not in key:  # which may have all dimensions of the output
            wrong.append(tensor[None])
        if key not in any_length:
            flat = tensor.reshape(-1)
            wrong += [flat[:-1], torch.cat([flat, flat])]
        if key == "select.index":
            wrong += [tensor - 40, tensor + 40]
        if key.split(".")[-1] not in ("flip", "scale", "bias", "minimum", "threshold"):
            wrong.append(None)  # those may be absent
        for other in wrong:
            header, tensors = content(data)
            del tensors[key]
            if other is not None:
                tensors[key] = other.clone()
            write(saved, header, tensors)
            assert_refused(saved, "is damaged")


def test_superfluous_tensors(saved):
    names = ("3.x", "3.weight.x", "x", "", ".", "3.", "99.weight", "3.tiles", "3.self", "12.weight")
    names += ("12.operator", "2.operand_2")
    changes: list[Change] = [
        lambda _, tensors, key=key: tensors.update({key: torch.ones(3)}) for key in names
    ]
    for _ in each(saved, changes):
        assert_refused(saved, "is damaged")


def test_scale_beside_a_threshold(saved):
    changes: list[Change] = [
        lambda _, tensors, key=key: tensors.update({key: torch.ones(20)})
        for key in ("3.scale", "3.bias")
    ]
    for _ in each(saved, changes):
        assert_refused(saved, "stand alone")


@pytest.mark.parametrize("name", ["2", "3", "4", "6"])
def test_missing_threshold(saved, name):
    for _ in each(saved, [lambda _, tensors: tensors.pop(f"{name}.threshold")]):
        assert_refused(saved, f"node {name}")


def test_orders(saved):
    values = (None, 1, "x", ["w"], {"x": [0]}, {"w": None}, {"w": 1}, {"w": []}, {"w": [0, 1, 2]})
    values += ({"w": [0, 0, 1, 2]}, {"w": [0, 1, 2, 4]}, {"w": [-1, 0, 1, 2]}, {"w": "0123"})
    values += ({"w": [10**30, 0, 1, 2]}, {"w": {"0": 1}}, {"w": [[0], 1, 2, 3]})
    for _ in each(saved, [set_field("15", "orders", value) for value in values]):
        assert_refused(saved, "node 15")


def test_wiring(saved):
    nonsense: tuple[Any, ...] = ("x", None, 2, [None], [1], [["2"]], {"2": "2"}, [])
    inputs = (["?"], ["6"], ["3"], ["4"], ["pool", "pool"], *nonsense)
    outputs = (["3", "x"], ["3", "3"], ["pool"], ["image"], ["12"], *nonsense)
    changes = [set_field("3", "inputs", value) for value in inputs]
    changes += [set_field("3", "outputs", value) for value in outputs]
    changes += [set_field("2", "inputs", value) for value in (["0"], ["0", "1", "1"])]
    changes += [set_field("2", "outputs", value) for value in (["2"], ["2", "2"], ["a", "b", "c"])]
    changes += [set_field("12", "inputs", value) for value in (["9"], ["9", "11", "10"])]
    changes += [set_field("select", "inputs", value) for value in (["3"], ["3", "4.bits", "3"])]
    changes += [set_header("inputs", value) for value in (["row"], ["image"], ["image", "image"])]
    changes += [set_header("inputs", value) for value in (["image", "row", "3"], *nonsense)]
    changes.append(lambda header, _: header["nodes"].reverse())
    changes.append(lambda header, _: header["nodes"].append(header["nodes"][-1]))
    for _ in each(saved, changes):
        assert_refused(saved, "is damaged")


def test_cycle(saved):
    def close(header: Header, _: Any) -> None:
        node(header, "3.real")["inputs"] = ["select"]

    for _ in each(saved, [close]):
        assert_refused(saved, "node 3.real takes select, which does not come before it")


def test_names(saved):
    """A name is no path: nothing outside of the file is ever touched."""
    values = ("", "2", None, 3, [], "../../x", "/etc/passwd", "3.real", "3.weight")
    for _ in each(saved, [set_field("3", "name", value) for value in values]):
        assert_refused(saved, "is damaged")

    for _ in each(saved, [set_field("13", "name", "12")]):
        assert_refused(saved, "two nodes are called 12")
    for _ in each(saved, [set_field("13", "outputs", ["12"])]):
        assert_refused(saved, "two values are called 12")

    for name in ("../../x", "/etc/passwd", "a.b.c", "", "12 ", "\0", "\n", "ü" * 1000):
        for _ in each(saved, [set_field("17", "name", name)]):
            loaded = bnn_ext.load(saved)
            assert loaded.nodes[-1].name == name
            bnn_ext.save(loaded, saved)
            assert bnn_ext.load(saved).nodes[-1].name == name
            assert list(saved.parent.iterdir()) == [saved]


def test_kinds(saved):
    values = ("Sequential", "PackedNetwork", "Linear", "PackedLayer", "_Fused", "__import__")
    more = ("os.system", "", None, [], {}, 1)
    changes = [set_field("12", "kind", value) for value in (*values, *more)]
    for _ in each(saved, changes):
        assert_refused(saved, "node 12")


def test_fields(saved):
    """Each one missing, one too many, and values of other types, in every object of the header."""
    changes: list[Change] = []
    for key in ("nodes", "report", "inputs", "structure", "rounds"):
        values = (None, 1, [1], [None], {"a": 1}, [[]], *(["x"] if key != "structure" else []))
        changes += [set_header(key, value) for value in values]
        changes.append(lambda header, _, key=key: header.pop(key))
    changes.append(set_header("x", 1))
    for key in ("name", "kind", "inputs", "outputs", "attributes", "orders"):
        changes.append(lambda header, _, key=key: node(header, "3").pop(key))
    changes.append(set_field("3", "x", 1))
    for key in ("layers", "notes"):
        changes.append(lambda header, _, key=key: header["report"].pop(key))
        for value in (None, 1, "x", [1], {"a": 1}, [[]]):
            changes.append(lambda header, _, key=key, v=value: header["report"].update({key: v}))
    changes.append(lambda header, _: header["report"].update(x=1))
    for _ in each(saved, changes):
        assert_refused(saved, "is damaged")


def test_structure(saved):
    names = (
        "?",
        ["13"],
        {},
        {"list": "13"},
        {"list": {"a": "13"}},
        {"list": ["?"]},
        {"set": ["13"]},
    )
    more = ({"list": ["13"], "tuple": []}, {"dict": {"a": "13"}}, {"dict": ["13"]}, {"tuple": [1]})
    keys = ([["a", "13", 1]], [[["a"], "13"]], [["a", "13"], ["a", "13"]], [[1.5, "13"]], [{}])
    values = (*names, *more, *({"dict": key} for key in keys), {"OrderedDict": [[None, "13"]]})
    for _ in each(saved, [set_header("structure", value) for value in values]):
        assert_refused(saved, "is damaged")


@pytest.mark.parametrize("key", ["name", "kind", "status", "reason", "bytes_before", "macs", "x"])
def test_report(saved, key):
    """What is loaded can be printed."""
    values = (1.5, [1], {}, *([None] if key != "macs" else ["x"]))
    changes: list[Change] = [
        lambda header, _, value=value: header["report"]["layers"][0].update({key: value})
        for value in values
    ]
    for _ in each(saved, changes):
        assert_refused(saved, "is damaged")


# What Python and torch raise about arguments that do not fit.
CLEAN = (ValueError, TypeError, RuntimeError, IndexError, KeyError, AttributeError)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with every key or index of it."""
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        yield value, key
        yield from places(value[key])


@pytest.mark.parametrize("seed", range(4))
def test_any_value_anywhere(saved, seed):
    """Whatever stands anywhere, with a correct checksum: an exception of Python or a network."""
    data = saved.read_bytes()
    draw = random.Random(seed)
    count = sum(1 for _ in places(content(data)[0]))
    refused = 0
    for place in range(seed, count, 4):
        header, tensors = content(data)
        container, key = list(places(header))[place]
        # Nothing between: a file may ask for 10**9 of something, and would get it.
        container[key] = draw.choice(
            (*NONSENSE[:5], *NONSENSE[6:], *NONSENSE_PAIRS[-7:], "image", "3")
        )
        write(saved, header, tensors)
        try:
            loaded = bnn_ext.load(saved)
        except ValueError as error:
            assert str(saved) in str(error)
            refused += 1
            continue
        with contextlib.suppress(*CLEAN):
            loaded(*images())
        str(loaded.report)
    assert refused > count / 4 * 0.7


def test_claims_allocate_nothing(saved):
    """Sizes are compared with the tensors before anything of that size is made."""
    resource = pytest.importorskip("resource")
    bnn_ext.load(saved)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    claims = [
        set_attribute(name, key, size)
        for name, key in (
            ("5", "in_features"),
            ("1", "fan_in"),
            ("4", "in_channels"),
            ("flat", "channels"),
        )
        for size in (10**7, 10**9, 10**12)
    ]
    claims += [set_attribute("select", "channels", [20, size]) for size in (10**9, 10**12)]
    claims += [set_attribute("pool", "kernel_size", [size, size]) for size in (10**5, 10**9)]
    for _ in each(saved, claims):
        try:
            bnn_ext.load(saved)
        except ValueError:
            continue
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # KiB on Linux
    assert grown < 100_000


# --- saving ---------------------------------------------------------------------------------------


class Counts(nn.Module):
    """Gives something else than tensors, so that `convert` leaves it whole."""

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x, len(x)


def test_model_left_whole(path):
    fast = bnn_ext.convert(Counts().eval(), torch.randn(2, 3), verify=False)
    match = r"found Counts at model \(convert left it: the model must return tensors, found int\)"
    with pytest.raises(ValueError, match=match):
        bnn_ext.save(fast, path)
    assert not list(path.parent.iterdir())


def test_unknown_layer(path):
    class TorchCall(nn.Module):
        """Not the one that the format means."""

    class ToFormatToo(ToFormat):
        """Not one that it means, either."""

    for layer, kind in ((TorchCall(), "TorchCall"), (ToFormatToo(True), "ToFormatToo")):
        fast = PackedNetwork([Node("1", layer, ("x",), ("y",))], ["x"], "y", Report())
        with pytest.raises(ValueError, match=f"known layers only, found {kind} at 1; known are"):
            bnn_ext.save(fast, path)
        assert not list(path.parent.iterdir())


class Pair(NamedTuple):
    first: str
    second: str


@pytest.mark.parametrize(
    ("structure", "match"),
    [
        (Pair("x", "x"), "list, tuple, dict, OrderedDict, found Pair"),
        ([{"a": ("x", None)}], "found NoneType"),
        ({1.5: "x"}, "strings or integers, found 1.5"),
        ({("a", "b"): "x"}, "strings or integers, found"),
    ],
)
def test_unknown_structure(structure, match, path):
    fast = PackedNetwork([], ["x"], ["x"], Report())
    fast.structure = structure
    with pytest.raises(ValueError, match=match):
        bnn_ext.save(fast, path)
    assert not list(path.parent.iterdir())


def test_wrong_network(path):
    for network in (nn.Linear(2, 3), None, {}):
        with pytest.raises(TypeError, match="network must be what bnn_ext.convert returns"):
            bnn_ext.save(network, path)
    assert not list(path.parent.iterdir())


def test_paths(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    names = ("model.bnn", "folder/model.bnn", Path("no_suffix"), "./ümläut modèl.bnn", "x" * 255)
    for path in names:
        bnn_ext.save(network, path)
        assert_same(network, bnn_ext.load(path), *images())
    for path in ("missing/model.bnn", "model.bnn/model.bnn", "folder"):
        with pytest.raises(OSError):
            bnn_ext.save(network, path)
    assert sorted(os.listdir()) == [
        "folder",
        "model.bnn",
        "no_suffix",
        "x" * 255,
        "ümläut modèl.bnn",
    ]
    assert os.listdir("folder") == ["model.bnn"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_file_mode(network, path, umask):
    """That of any file that the program opens."""
    before = os.umask(umask)
    try:
        bnn_ext.save(network, path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_overwriting(network, path):
    bnn_ext.save(small(), path)
    bnn_ext.save(network, path)
    assert_same(network, bnn_ext.load(path), *images())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("failing", ["replace", "fsync", "write"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(saved, failing, error, monkeypatch):
    """Whenever it fails, the old file is whole and no temporary one stays behind."""
    data = saved.read_bytes()
    other = small()

    def fail(*_: Any) -> None:
        raise error("on purpose")

    class Failing:
        def __init__(self, *args: Any) -> None:
            self.file = open_file(*args)

        def __enter__(self) -> Failing:
            return self

        def __exit__(self, *_: Any) -> None:
            self.file.close()

        write = fail

    open_file = builtins.open
    if failing == "write":
        monkeypatch.setattr(files, "open", Failing, raising=False)
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(error, match="on purpose"):
        bnn_ext.save(other, saved)
    monkeypatch.undo()
    assert saved.read_bytes() == data
    assert list(saved.parent.iterdir()) == [saved]
