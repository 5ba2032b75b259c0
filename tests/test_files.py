"""`save` and `load`: nothing is lost, nothing damaged gets in, and nothing is half written."""

from __future__ import annotations

import builtins
import io
import json
import os
import pickle
import random
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from own_sums import with_own_sums
from packed_inputs import random_packed
from random_models import RandomModel
from torch import Tensor, nn

import bnn_ext
from bnn_ext import nn as bnn
from bnn_ext import quantizers
from bnn_ext.convert import PackedNetwork, files
from bnn_ext.convert.layers import binary_weight_layer
from bnn_ext.convert.network import Node
from bnn_ext.nn import packed

Header = dict[str, Any]
Change = Callable[[Header, dict[str, Tensor]], None]

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    # torch's remark on even kernels with padding="same", which the random models draw on purpose,
    pytest.mark.filterwarnings("ignore:Using padding='same'"),
    # and on layers without features, as damaged files describe them.
    pytest.mark.filterwarnings("ignore:Initializing zero-element tensors"),
]


@pytest.fixture(scope="module")
def network() -> PackedNetwork:
    """One node of every packed kind and a few real ones."""
    torch.manual_seed(0)
    model = nn.Sequential(
        bnn.BinaryConv2d(3, 33, 3, input_quantizer=None, padding=1, groups=3),  # 0
        nn.BatchNorm2d(33),  # 3.pack
        nn.MaxPool2d(2),  # 2
        bnn.BinaryConv2d(33, 20, 3),  # 3
        nn.BatchNorm2d(20),
        nn.Flatten(),  # 5
        bnn.BinaryLinear(20 * 9, 40),  # 6
        nn.BatchNorm1d(40),
        bnn.BinaryLinear(40, 30, weight_quantizer="magnitude_aware_sign"),  # 8
        nn.BatchNorm1d(30),  # 9
        nn.Linear(30, 20),  # 10
        bnn.BinaryLinear(20, 7, input_quantizer=None),  # 11
        nn.LogSoftmax(1),  # 12
        nn.Unflatten(1, (7, 1, 1)),
        bnn.BinaryConv2d(7, 6, 1, input_quantizer=None),  # 14
        nn.Flatten(),
        bnn.BinaryLinear(6, 5, input_quantizer=None),  # 16
        nn.LogSoftmax(1),  # 17
    )
    for norm in model.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
            norm.running_mean.normal_()
    fast = bnn_ext.convert(model.eval(), torch.randn(2, 3, 10, 10), verify=False)
    # Some layers by torch, as real_layers="torch" makes them, and a threshold in the packing.
    nodes = {node.name: node for node in fast.nodes}
    nodes["0"].module = binary_weight_layer(model[0])
    nodes["11"].module = binary_weight_layer(model[11])
    nodes["2"].inputs = ("3.pack",)
    pack = Node("3.pack", packed.Pack(True, torch.randn(33), random_packed(33)), ("0",))
    fast = PackedNetwork([nodes.pop("0"), pack, *nodes.values()], fast.report)
    assert {type(step).__name__ for step in fast.steps} >= set(files._PACKED)
    return fast


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
    path.write_bytes(safetensors.torch.save(tensors, {"bnn_ext": json.dumps(header)}))


def rewrite(path: Path, change: Change) -> None:
    header, tensors = content(path.read_bytes())
    change(header, tensors)
    write(path, header, tensors)


def node(header: Header, name: str) -> dict[str, Any]:
    return next(node for node in header["nodes"] if node["name"] == name)


@torch.no_grad()
def assert_same(first: PackedNetwork, second: PackedNetwork, x: Tensor) -> None:
    """The same nodes, tensors, report and outputs."""
    assert [(n.name, n.inputs) for n in first.nodes] == [(n.name, n.inputs) for n in second.nodes]
    expected, found = first.state_dict(), second.state_dict()
    assert list(expected) == list(found)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert found[key].stride() == tensor.stride(), key
        assert torch.equal(found[key], tensor), key
    assert first.report.layers == second.report.layers
    assert torch.equal(first(x.clone()), second(x.clone()))


def round_trip(model: nn.Module, x: Tensor, path: Path) -> PackedNetwork:
    fast = bnn_ext.convert(model.eval(), x, verify=False)
    bnn_ext.save(fast, path)
    loaded = bnn_ext.load(path)
    assert_same(fast, loaded, x)
    return loaded


# --- there and back -------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("real_layers", ["fused", "torch"])
def test_random_model(seed, real_layers, path):
    drawn = RandomModel(seed)
    fast = bnn_ext.convert(drawn.model, drawn.input, verify=False, real_layers=real_layers)
    bnn_ext.save(fast, path)
    loaded = bnn_ext.load(path)
    assert_same(fast, loaded, drawn.input)
    same = with_own_sums(drawn.model) if real_layers == "fused" else drawn.model
    assert bnn_ext.verify(same, loaded, drawn.input).equal


ROWS, SIGNAL, MAP, VOLUME = (2, 6), (2, 6, 9), (2, 6, 9, 8), (2, 6, 7, 8, 5)


def without_bias(layer: nn.Module) -> nn.Module:
    layer.register_parameter("bias", None)
    return layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (bnn.BinaryLinear(6, 5, input_quantizer=None, weight_quantizer=None), ROWS),
        (bnn.BinaryConv1d(6, 4, 3, 2, 1, 2, 2, False, pad_value=-1), SIGNAL),
        (bnn.BinaryConv2d(6, 4, (2, 3), padding="same", weight_quantizer="stochastic_sign"), MAP),
        (bnn.BinaryConv3d(6, 4, (1, 2, 3), input_quantizer="swish_sign"), VOLUME),
        (nn.Linear(6, 5, bias=False), ROWS),
        (nn.Conv1d(6, 4, 3, padding=2, padding_mode="circular"), SIGNAL),
        (nn.Conv2d(6, 4, (2, 3), (1, 2), "valid", groups=2), MAP),
        (nn.Conv2d(6, 4, 3, padding=(2, 1), padding_mode="reflect"), MAP),
        (nn.Conv3d(6, 4, (1, 2, 3), dilation=(1, 1, 2), bias=False), VOLUME),
        (nn.BatchNorm1d(6), ROWS),
        (nn.BatchNorm2d(6, eps=1e-5, momentum=None), MAP),
        (nn.BatchNorm2d(6, affine=False), MAP),
        (nn.BatchNorm2d(6, track_running_stats=False), MAP),
        (without_bias(nn.BatchNorm2d(6)), MAP),
        (nn.BatchNorm3d(6, eps=0.1), VOLUME),
        (nn.LayerNorm((9, 8), eps=1e-3), MAP),
        (nn.LayerNorm(6, elementwise_affine=False), ROWS),
        (nn.LayerNorm(6, bias=False), ROWS),
        (nn.MaxPool1d(2), SIGNAL),
        (nn.MaxPool2d((3, 2), (2, 1), (1, 0), 2, ceil_mode=True), MAP),
        (nn.MaxPool3d(2, ceil_mode=True), VOLUME),
        (nn.AvgPool1d(3, 2, 1, count_include_pad=False), SIGNAL),
        (nn.AvgPool2d(3, 2, (1, 0), ceil_mode=True, divisor_override=4), MAP),
        (nn.AdaptiveAvgPool1d(2), SIGNAL),
        (nn.AdaptiveAvgPool2d((None, 3)), MAP),
        (nn.AdaptiveMaxPool2d(2), MAP),
        (nn.Flatten(2), MAP),
        (nn.Unflatten(1, (2, 3)), ROWS),
        (nn.ZeroPad2d((1, 2, 0, 3)), MAP),
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
def test_every_kind_of_real_layer(layer, shape, path):
    x = torch.randn(shape)
    layer(x)  # running statistics of this batch
    loaded = round_trip(nn.Sequential(layer), x, path)
    assert type(loaded.steps[-1]) is type(layer) or "Packed" in type(loaded.steps[-1]).__name__


def test_every_kind_was_tested():
    mark = next(m for m in test_every_kind_of_real_layer.pytestmark if m.name == "parametrize")
    assert {type(layer).__name__ for layer, _ in mark.args[1]} == set(files._TORCH)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype, path):
    model = nn.Sequential(
        bnn.BinaryConv2d(6, 9, 3, input_quantizer=None, weight_quantizer="magnitude_aware_sign"),
        nn.BatchNorm2d(9),
        bnn.BinaryConv2d(9, 5, 3),
        nn.Flatten(),
        nn.Linear(100, 3),
    )
    round_trip(model.to(dtype), torch.randn(MAP).to(dtype), path)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_memory_format_of_real_weights(kernel_size, path):
    model = nn.Sequential(
        nn.Conv2d(6, 64, kernel_size),
        nn.Conv2d(64, 1, kernel_size),
        nn.Conv2d(1, 6, 1),
        bnn.BinaryConv2d(6, 33, kernel_size, input_quantizer=None),
        bnn.BinaryConv2d(33, 33, 1),
        nn.AdaptiveAvgPool2d(1),
    )
    round_trip(model, torch.randn(MAP), path)
    model = model.to(memory_format=torch.channels_last)
    round_trip(model, torch.randn(MAP), path)
    round_trip(model, torch.randn(MAP).to(memory_format=torch.channels_last), path)


def test_empty_network(path):
    round_trip(nn.Sequential(), torch.randn(2, 3), path)


def test_module_used_twice(path):
    layer = bnn.BinaryLinear(6, 6)
    real = nn.Linear(6, 6)
    round_trip(nn.Sequential(layer, layer, real, real), torch.randn(ROWS), path)


def test_files_are_reproducible(network, path, tmp_path):
    bnn_ext.save(network, path)
    again = tmp_path / "again.bnn"
    bnn_ext.save(bnn_ext.load(path), again)
    assert path.read_bytes() == again.read_bytes()


def test_format_as_documented(saved):
    """Version 1 stays readable by anyone: these names and shapes are a promise."""
    header, tensors = content(saved.read_bytes())
    assert set(header) == {"version", "nodes", "report", "sha256"}
    assert header["version"] == 1
    conv = node(header, "3")
    assert set(conv) == {"name", "kind", "inputs", "attributes", "channels_last"}
    assert (conv["kind"], conv["inputs"]) == ("PackedConv2d", ["2"])
    assert header["nodes"][0]["inputs"] == [""]
    assert conv["attributes"] == {
        "in_channels": 33,
        "stride": [1, 1],
        "padding": [0, 0],
        "dilation": [1, 1],
        "groups": 1,
        "pad_value": 0,
        "channels_last": False,
        "dtype": "float32",
    }
    assert tensors["3.weight"].shape == (20, 3, 3, 2)
    assert tensors["3.weight"].dtype == tensors["3.threshold"].dtype == torch.int32
    assert not any("tiles" in name or "signs" in name for name in tensors), "derived, never saved"
    assert header["report"]["layers"][3]["status"] == "fused"


def test_loaded_network_is_ready(saved):
    loaded = bnn_ext.load(str(saved))
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.report.verification is None
    print(loaded, loaded.report)


def test_other_default_dtype_and_device(network, saved, path):
    """Defaults of the program that loads or converts make no difference."""
    x = torch.randn(2, 3, 10, 10)
    model = nn.Sequential(
        bnn.BinaryLinear(6, 40, input_quantizer=None),
        nn.BatchNorm1d(40),
        bnn.BinaryLinear(40, 33),
        nn.BatchNorm1d(33),
        bnn.BinaryLinear(33, 3),
    ).eval()
    model[1].weight.data.normal_()
    model[3].weight.data.normal_()
    rows = torch.randn(ROWS)
    fast = bnn_ext.convert(model, rows)
    try:
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        loaded = bnn_ext.load(saved)
        again = bnn_ext.convert(model, rows)
        bnn_ext.save(again, path)
        loaded_again = bnn_ext.load(path)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert_same(network, loaded, x)
    assert_same(fast, again, rows)
    assert_same(fast, loaded_again, rows)


# --- not a model file, or not a whole one ---------------------------------------------------------


def assert_refused(path: Path, match: str | None = None) -> None:
    with pytest.raises(ValueError, match=match) as caught:
        bnn_ext.load(path)
    assert str(path) in str(caught.value)


def test_truncated(saved):
    data = saved.read_bytes()
    lengths = {0, 1, 7, 8, 9, len(data) - 1, *range(0, len(data), len(data) // 50)}
    for length in sorted(lengths):
        saved.write_bytes(data[:length])
        assert_refused(saved)


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
    for text in (json.dumps(header, indent=1), json.dumps(header).replace("e-05", "E-05")):
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
        (2**62).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little") + b"{}",
    ],
    ids="empty text zeros zip torch pickle plain format brace list null string object deep long longer".split(),  # noqa: E501, SIM905
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


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.bnn"):
        bnn_ext.load(tmp_path / "nothing.bnn")


def test_directory(tmp_path):
    with pytest.raises(IsADirectoryError):
        bnn_ext.load(tmp_path)


@pytest.mark.parametrize(
    "version", [2, 0, "1", None, [1], float("inf"), 10**400], ids=lambda v: str(v)[:9]
)
def test_other_version(saved, version):
    header, tensors = content(saved.read_bytes())
    header["version"] = version
    saved.write_bytes(safetensors.torch.save(tensors, {"bnn_ext": json.dumps(header)}))
    assert_refused(saved, "must have format version 1, found" if version != 10**400 else None)


# --- a correct checksum over nonsense -------------------------------------------------------------


def set_attribute(name: str, key: str, value: Any) -> Change:
    return lambda header, _: node(header, name)["attributes"].update({key: value})


NONSENSE = (None, True, -1, 0, 2, 10**6, 10**12, 10**18, 2**63, 10**30, 1.5, float("nan"))
NONSENSE_PAIRS = (
    *NONSENSE,
    "x",
    {},
    [],
    [1],
    [1, 1, 1],
    [-1, -1],
    [[1], [1]],
    ["a", "b"],
    [1.5, 1],
    [None, None],
    [-(10**18), 1],
)


SMALL = [("14", "in_channels"), ("16", "in_features")]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("0", "fan_in"),
        ("0", "groups"),
        ("3", "in_channels"),
        ("3", "groups"),
        ("6", "in_features"),
        ("11", "fan_in"),
        *SMALL,
        ("14", "groups"),
        ("10", "in_features"),
        ("10", "out_features"),
        ("9", "num_features"),
    ],
)
def test_wrong_sizes(saved, name, key):
    data = saved.read_bytes()
    for value in (*NONSENSE, "x", {}, []):
        if value == 2 and (key == "fan_in" or (name, key) in SMALL):
            continue  # fits into one word like the right one
        saved.write_bytes(data)
        rewrite(saved, set_attribute(name, key, value))
        assert_refused(saved, f"node {name}")


@pytest.mark.parametrize(
    ("name", "key"),
    [(n, key) for n in ("0", "3", "14") for key in ("stride", "padding", "dilation")]
    + [("2", key) for key in ("kernel_size", "stride", "padding", "dilation")],
)
def test_wrong_geometry(saved, name, key):
    data = saved.read_bytes()
    for value in NONSENSE_PAIRS:
        saved.write_bytes(data)
        rewrite(saved, set_attribute(name, key, value))
        assert_refused(saved, f"node {name}")


@pytest.mark.parametrize(
    ("name", "key", "values"),
    [
        ("3", "pad_value", (2, -2, 0.5, "zero", None, [0])),
        ("0", "pad_value", (2, -2, 0.5, "zero", None, [0])),
        ("3", "dtype", ("float64", "int8", "x", 32, None, [])),
        ("0", "dtype", ("float64", "__class__", None)),
        ("3", "channels_last", (1, "no", None)),
        ("14", "pad_value", (2, -2, 0.5, "zero", None, [0])),
        ("14", "channels_last", (1, "no", None)),
        ("3.pack", "is_map", (1, "yes", None)),
        ("2", "ceil_mode", (1, "yes", None)),
        ("5", "channels", (-1, "x", None, 1.5, 10**30)),
    ],
)
def test_wrong_choices(saved, name, key, values):
    data = saved.read_bytes()
    for value in values:
        saved.write_bytes(data)
        rewrite(saved, set_attribute(name, key, value))
        assert_refused(saved, f"node {name}")


def test_attributes_of_all_kinds(saved):
    """A missing one, an unknown one, and none at all, at every node."""
    data = saved.read_bytes()

    def remove(name: str, key: str) -> Change:
        return lambda header, _: node(header, name)["attributes"].pop(key)

    def replace(name: str, value: Any) -> Change:
        return lambda header, _: node(header, name).update(attributes=value)

    for described in content(data)[0]["nodes"]:
        name = described["name"]
        changes = [remove(name, key) for key in described["attributes"]]
        changes += [set_attribute(name, key, 1) for key in ("x", "weight", "self", "device")]
        changes += [replace(name, value) for value in (None, [], "x", 1, [["stride", 1]])]
        if described["attributes"]:
            changes.append(replace(name, {}))
        for change in changes:
            saved.write_bytes(data)
            rewrite(saved, change)
            assert_refused(saved, f"{saved} is damaged")


def test_tensors(saved):
    """Each one missing, of another dtype, of another shape."""
    data = saved.read_bytes()
    for key, tensor in content(data)[1].items():
        wrong = [tensor.to(d) for d in (torch.int8, torch.int64, torch.bool, torch.complex64)]
        wrong += [
            tensor[None],
            tensor.flatten()[:-1],
            torch.cat([tensor.reshape(-1), tensor.reshape(-1)]),
        ]
        if tensor.dtype == torch.int32:
            wrong += [tensor.float(), tensor.view(torch.float32)]
        if key.split(".")[-1] not in ("flip", "scale", "bias", "num_batches_tracked"):
            wrong.append(None)  # those may be absent
        if tensor.dim() == 0:  # a counter of batches, which nothing reads
            wrong = [tensor.float()]
        for other in wrong:
            header, tensors = content(data)
            del tensors[key]
            if other is not None:
                tensors[key] = other.clone()
            write(saved, header, tensors)
            assert_refused(saved, "is damaged")


def test_superfluous_tensors(saved):
    data = saved.read_bytes()
    for key in (
        "3.x",
        "3.weight.x",
        "x",
        "",
        ".",
        "3.",
        "99.weight",
        "3.tiles",
        "3.self",
        "12.weight",
    ):
        saved.write_bytes(data)
        rewrite(saved, lambda _, tensors, key=key: tensors.update({key: torch.ones(3)}))
        assert_refused(saved, "is damaged")


def test_scale_beside_a_threshold(saved):
    data = saved.read_bytes()
    for key in ("3.scale", "3.bias"):
        saved.write_bytes(data)
        rewrite(saved, lambda _, tensors, key=key: tensors.update({key: torch.ones(20)}))
        assert_refused(saved, "stand alone")
    saved.write_bytes(data)
    rewrite(saved, lambda _, tensors: tensors.pop("3.threshold"))
    assert_refused(saved, "flip needs a threshold")


def test_wiring(saved):
    data = saved.read_bytes()
    for value in (["x"], ["6"], ["3"], [], ["2", "2"], "2", None, 2, [None], [["2"]], {"2": "2"}):
        saved.write_bytes(data)
        rewrite(saved, lambda header, _, value=value: node(header, "3").update(inputs=value))
        assert_refused(saved, "is damaged")


def test_names(saved):
    """A name is no path: nothing outside of the file is ever touched."""
    data = saved.read_bytes()
    for value in ("", "2", None, 3, [], "../../x", "/etc/passwd"):
        saved.write_bytes(data)
        rewrite(saved, lambda header, _, value=value: node(header, "3").update(name=value))
        assert_refused(saved, "is damaged")

    for value, match in (("11", "two nodes are called 11"), ("", "two nodes are called ")):
        saved.write_bytes(data)
        rewrite(saved, lambda header, _, value=value: node(header, "17").update(name=value))
        assert_refused(saved, match)

    saved.write_bytes(data)
    rewrite(saved, lambda header, _: node(header, "17").update(name="../../x"))
    assert bnn_ext.load(saved).nodes[-1].name == "../../x"
    assert list(saved.parent.iterdir()) == [saved]


def test_kinds(saved):
    data = saved.read_bytes()
    for value in ("Sequential", "PackedNetwork", "__import__", "os.system", "", None, [], {}, 1):
        saved.write_bytes(data)
        rewrite(saved, lambda header, _, value=value: node(header, "12").update(kind=value))
        assert_refused(saved, "node 12")


def test_structure(saved):
    data = saved.read_bytes()
    changes: list[Change] = []
    for key in ("nodes", "report"):
        changes += [
            lambda header, _, key=key, value=value: header.update({key: value})
            for value in (None, 1, "x", [1], [None], {"a": 1}, [[]])
        ]
        changes.append(lambda header, _, key=key: header.pop(key))
    for key in ("name", "kind", "inputs", "attributes", "channels_last"):
        changes.append(lambda header, _, key=key: node(header, "3").pop(key))
    for value in (None, 1, "x", ["x"], ["threshold"], [["weight"]]):
        changes.append(lambda header, _, value=value: node(header, "3").update(channels_last=value))
    for change in changes:
        saved.write_bytes(data)
        rewrite(saved, change)
        assert_refused(saved, "is damaged")


@pytest.mark.parametrize("key", ["name", "kind", "status", "reason", "bytes_before", "macs", "x"])
def test_report(saved, key):
    """What is loaded can be printed."""
    data = saved.read_bytes()
    for value in (1.5, [1], {}, *([None] if key != "macs" else ["x"])):
        saved.write_bytes(data)
        rewrite(
            saved, lambda header, _, value=value: header["report"]["layers"][0].update({key: value})
        )
        assert_refused(saved, "is damaged")


def test_quantizers(saved, path):
    model = nn.Sequential(bnn.BinaryConv1d(6, 4, 3)).eval()
    bnn_ext.save(bnn_ext.convert(model), path)
    data = path.read_bytes()
    for value in ("sign", "os.system", 1, [], {}, True):
        path.write_bytes(data)
        rewrite(path, set_attribute("0", "input_quantizer", value))
        assert_refused(path, "node 0: input_quantizer")


def test_claims_allocate_nothing(saved):
    """Sizes are compared with the tensors before anything of that size is made."""
    resource = pytest.importorskip("resource")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = saved.read_bytes()
    for key in ("in_features", "out_features"):
        for size in (10**7, 10**12):
            saved.write_bytes(data)
            rewrite(saved, set_attribute("10", key, size))
            assert_refused(saved)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak  # KiB on Linux
    assert grown < 100_000


# --- saving ---------------------------------------------------------------------------------------


def test_unknown_layer(path):
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    class Linear(nn.Linear):
        """Not the Linear that the format means."""

    for layer, name in ((Twice(), "Twice at 1"), (Linear(5, 5), "Linear at 1")):
        fast = bnn_ext.convert(nn.Sequential(bnn.BinaryLinear(6, 5), layer).eval())
        with pytest.raises(ValueError, match=f"known layers only, found {name}"):
            bnn_ext.save(fast, path)
        assert not list(path.parent.iterdir())


def test_unknown_quantizer(path):
    fast = bnn_ext.convert(
        nn.Sequential(bnn.BinaryConv1d(6, 4, 3, input_quantizer=torch.sign)).eval()
    )
    with pytest.raises(ValueError, match="registered quantizers only, found .* at 0"):
        bnn_ext.save(fast, path)
    assert not list(path.parent.iterdir())


def test_registered_quantizer(path, monkeypatch):
    monkeypatch.setattr(quantizers, "_REGISTRY", dict(quantizers._REGISTRY))
    model = nn.Sequential(bnn.BinaryConv1d(6, 4, 3, input_quantizer=torch.sign))
    quantizers.register("plain")(torch.sign)
    loaded = round_trip(model, torch.randn(SIGNAL), path)
    assert loaded.steps[0].input_quantizer is torch.sign


def test_wrong_network(path):
    for network in (nn.Linear(2, 3), None, {}):
        with pytest.raises(TypeError, match="network must be what bnn_ext.convert returns"):
            bnn_ext.save(network, path)
    assert not list(path.parent.iterdir())


def test_paths(network, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    x = torch.randn(1, 3, 10, 10)
    for path in ("model.bnn", "folder/model.bnn", Path("no_suffix"), "./ümläut modèl.bnn"):
        bnn_ext.save(network, path)
        assert_same(network, bnn_ext.load(path), x)
    for path in ("missing/model.bnn", "model.bnn/model.bnn", "folder"):
        with pytest.raises(OSError):
            bnn_ext.save(network, path)
    assert sorted(os.listdir()) == ["folder", "model.bnn", "no_suffix", "ümläut modèl.bnn"]
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
    other = bnn_ext.convert(nn.Sequential(bnn.BinaryLinear(6, 5)).eval())
    bnn_ext.save(other, path)
    bnn_ext.save(network, path)
    assert_same(network, bnn_ext.load(path), torch.randn(1, 3, 10, 10))
    assert list(path.parent.iterdir()) == [path]


class FullDisk(io.BytesIO):
    def write(self, data: bytes) -> int:
        raise OSError("no space left on device")


@pytest.mark.parametrize("failing", ["replace", "fsync", "write"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(saved, failing, error, monkeypatch):
    """Whenever it fails, the old file is whole and no temporary one stays behind."""
    data = saved.read_bytes()
    other = bnn_ext.convert(nn.Sequential(bnn.BinaryLinear(6, 5)).eval())

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
