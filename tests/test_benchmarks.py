"""The benchmarks run, write and draw what they promise; nothing here looks at a time."""

from __future__ import annotations

import importlib
import json
import sys
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from bnn_ext import _C, ops
from bnn_ext import nn as bnn
from bnn_ext.models import birealnet18, reactnet_a, resnet_binary

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
PEERS = ("openvino", "onnxruntime")
FIELDS = [
    *("device", "what", "shape", "impl", "output_dtype", "threads"),
    *("median_ms", "spread", "gmacs", "fraction_of_peak", "bytes"),
]

needs_openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="openvino is not installed"
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def _quick_benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("timing.BLOCK_SECONDS", 1e-5)
    monkeypatch.setattr("timing.MEMORIES", {"L1": (4096, 2), "L2": (8192, 2), "DRAM": (16384, 1)})


@pytest.fixture
def without_peers(monkeypatch):
    """As on a machine that has none of them installed."""
    for module in PEERS:
        monkeypatch.setitem(sys.modules, module, None)


def read(results: Path, name: str) -> dict:
    (path,) = results.glob(f"*/{name}.json")
    assert not list(path.parent.glob("*.tmp"))
    document = json.loads(path.read_text())
    assert document["versions"]["torch"] == torch.__version__
    assert list(document["read_gbytes_per_s"]) == ["L1", "L2", "DRAM"]
    for row in document["rows"]:
        assert list(row) == FIELDS
        assert row["median_ms"] > 0
    return document


def impls(document: dict, what: str, shape: str) -> list[tuple[str, str | None]]:
    return [
        (row["impl"], row["output_dtype"])
        for row in document["rows"]
        if (row["what"], row["shape"]) == (what, shape)
    ]


# --- timing ---------------------------------------------------------------------------------------


def test_blocks_alternate_and_the_order_rotates():
    import timing

    calls: list[str] = []
    implementations = [
        timing.Implementation(name, None, lambda name=name: calls.append(name), 1) for name in "abc"
    ]
    timings = timing.measure(implementations, rounds=3)
    assert all(0 < t.fastest <= t.median for t in timings)
    order = [calls[0], *(b for a, b in zip(calls, calls[1:], strict=False) if a != b)]
    assert "".join(order) == "abc" + "abc" + "bca" + "cab"  # calibration, then three rounds


def test_the_level_of_an_implementation_is_set_and_restored():
    import timing

    before, seen = _C.cpu_capability(), []
    for level in _C.cpu_capabilities():
        run = timing.Implementation(
            "", None, lambda: seen.append(_C.cpu_capability()), 1, level=level
        )
        timing.measure([run], rounds=2)
        assert set(seen) == {level}
        seen.clear()
    assert _C.cpu_capability() == before


def test_an_implementation_may_have_a_clock_of_its_own():
    import timing

    run = timing.Implementation("", None, lambda: None, 1, own_clock=lambda calls: 0.5)
    assert timing.measure([run], rounds=3) == [timing.Timing(0.5, 0.0, 0.5)]


def test_openvinos_counters_are_read_without_the_cold_call():
    from openvino_binary import kernel_seconds

    class Request:
        """Two layers of 40 and 60 us, ten times as slow when cold, and one that is not asked for.

        Its counters are means over all calls in whole microseconds, as OpenVINO's are.
        """

        profiling_info: list[SimpleNamespace]

        def __init__(self):
            self.request, self.calls = self, 0

        def __call__(self):
            self.calls += 1
            self.profiling_info = [
                SimpleNamespace(
                    node_name=name,
                    real_time=timedelta(microseconds=us * (9 + self.calls) // self.calls),
                )
                for name, us in (("a", 40), ("b", 60), ("other", 1000))
            ]

    for calls in (1, 7, 50):
        seconds = kernel_seconds(Request(), ["a", "b"], calls)
        assert 48e-6 <= seconds <= 50e-6  # each mean lost less than 1 us over calls + 1


# --- what the scripts write -----------------------------------------------------------------------


@pytest.mark.parametrize("kernel, stride, groups", [(3, 1, 1), (3, 2, 2), (1, 1, 1), (5, 3, 1)])
def test_multiply_accumulates_leave_the_padding_out(kernel, stride, groups):
    from bench_conv import Shape

    shape = Shape(4, 6, 7, kernel, stride, groups)
    image, weight = torch.ones(1, 4, 7, 7), torch.ones(6, 4 // groups, kernel, kernel)
    ones = torch.nn.functional.conv2d(image, weight, None, stride, kernel // 2, 1, groups)
    assert shape.macs == ones.sum()


def test_bench_conv_writes_a_row_for_everything_and_names_what_is_missing(
    tmp_path, monkeypatch, capsys, without_peers
):
    import bench_conv

    shapes = {"3x3": [bench_conv.Shape(32, 32, 4), bench_conv.Shape(40, 24, 3, groups=2)]}
    monkeypatch.setattr(bench_conv, "SHAPES", shapes)
    arguments = ["--rounds", "2", "--batch", "2", "--results", str(tmp_path), "--levels", "all"]
    bench_conv.main(arguments)

    document = read(tmp_path, "conv2d_3x3_batch2_threads1")
    printed = capsys.readouterr().out
    reasons = {(m["shape"], m["impl"]): m["reason"] for m in document["missing"]}
    for shape in ("2x32x4x4", "2x40x3x3 -> 24"):
        expected = []
        expected.append((f"bnn_ext sequence of 4 {_C.cpu_capabilities()[-1]}", "bits"))
        for level in _C.cpu_capabilities():
            expected.append((f"register peak {level}", None))
            for output in ("bits", "int32", "float32", "residual"):
                expected.append((f"bnn_ext {level}", output))
        for dtype in ("float32", "bfloat16"):
            expected += [(f"torch {dtype} {layout}", dtype) for layout in ("NCHW", "NHWC")]
        assert sorted(impls(document, "conv2d_3x3", shape), key=str) == sorted(expected, key=str)
        for peer in PEERS:
            name = {"openvino": "OpenVINO float32", "onnxruntime": "onnxruntime float32"}[peer]
            assert f"{peer} is not installed" in reasons[shape, name]
            assert f"{shape:<20}{name:<32}missing: {peer} is not installed" in printed
    assert "openvino is not installed" in reasons["2x32x4x4", "OpenVINO binary"]
    assert "no groups" in reasons["2x40x3x3 -> 24", "OpenVINO binary"]
    for row in document["rows"]:
        ours = row["impl"].startswith(("bnn_ext", "register peak"))
        assert (row["fraction_of_peak"] is not None) == ours
        assert (row["bytes"] is not None) == row["impl"].startswith("bnn_ext")


def test_installed_peers_agree_with_the_packed_operators(tmp_path, monkeypatch):
    """What is not installed is named; what is was compared with ours before it was timed."""
    import bench_conv
    import bench_gemm

    monkeypatch.setattr(bench_conv, "SHAPES", {"3x3": [bench_conv.Shape(32, 32, 4)]})
    monkeypatch.setattr(bench_gemm, "SHAPES", {"gemm": [bench_gemm.Shape(17, 64, 40)]})
    arguments = ["--rounds", "2", "--results", str(tmp_path)]
    bench_conv.main([*arguments, "--outputs", "bits"])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # once is enough for its slow export
    bench_gemm.main(arguments)
    for name, depth in (("conv2d_3x3_batch1_threads1", 4), ("gemm_threads1", 1)):
        document = read(tmp_path, name)
        rows = [row["impl"] for row in document["rows"]]
        missing = [m["impl"] for m in document["missing"]]
        has_openvino = find_spec("openvino") is not None
        for kind in ("binary kernel", f"binary graph of {depth}", "float32"):
            assert (f"OpenVINO {kind}" in rows) == has_openvino
        assert ("OpenVINO binary" in missing) == (not has_openvino)
        assert ("onnxruntime float32" in rows) != ("onnxruntime float32" in missing)


def test_bench_gemm(tmp_path, monkeypatch, without_peers):
    import bench_gemm

    shapes = {"gemm": [bench_gemm.Shape(17, 64, 40)], "gemv": [bench_gemm.Shape(1, 70, 33)]}
    monkeypatch.setattr(bench_gemm, "SHAPES", shapes)
    bench_gemm.main(["--rounds", "2", "--results", str(tmp_path)])
    level = _C.cpu_capability()
    for kind, shape in (("gemm", "17x64 -> 40"), ("gemv", "1x70 -> 33")):
        document = read(tmp_path, f"{kind}_threads1")
        assert impls(document, kind, shape) == [
            (f"register peak {level}", None),
            (f"bnn_ext {level}", "int32"),
            ("torch int8 _int_mm", "int32"),
            ("torch float32", "float32"),
            ("torch bfloat16", "bfloat16"),
        ]
    operands_and_result = 4 * (1 * 3 + 33 * 3 + 1 * 33)
    assert document["rows"][1]["bytes"] == operands_and_result


def test_bench_real(tmp_path, monkeypatch, without_peers):
    import bench_real

    monkeypatch.setattr(bench_real, "FEATURES", 70)
    bench_real.main(["--rounds", "2", "--batch", "2", "--results", str(tmp_path)])
    document = read(tmp_path, "real_inputs_batch2_threads1")
    level = _C.cpu_capability()
    torch_rows = [
        (f"torch {dtype}{layout}", dtype)
        for dtype in ("float32", "bfloat16")
        for layout in (" NCHW", " NHWC")
    ]
    assert impls(document, "first layer", "2x3x32x32 -> 128") == [
        (f"bnn_ext float32 image {level}", "bits"),
        (f"bnn_ext uint8 image {level}", "bits"),
        *torch_rows,
    ]
    assert impls(document, "binary-weight linear", "2x70 -> 70") == [
        (f"bnn_ext float32 input {level}", "float32"),
        (f"bnn_ext bfloat16 input {level}", "bfloat16"),
        ("torch float32", "float32"),
        ("torch bfloat16", "bfloat16"),
    ]


def test_bench_pack_compares_with_a_copy(tmp_path, monkeypatch):
    import bench_pack

    monkeypatch.setattr(bench_pack, "SHAPE", (40, 3, 5))
    bench_pack.main(["--rounds", "2", "--batches", "1", "2", "--results", str(tmp_path)])
    document = read(tmp_path, "pack_threads1")
    level = _C.cpu_capability()
    for dtype in ("float32", "bfloat16", "float16"):
        for batch in (1, 2):
            assert impls(document, f"pack_{dtype}", f"{batch}x40x3x5") == [
                ("torch copy_", dtype),
                (f"bnn_ext NHWC {level}", "bits"),
                (f"bnn_ext NCHW {level}", "bits"),
            ]
    copy, nhwc = document["rows"][:2]
    assert copy["bytes"] == 2 * 4 * 40 * 15
    assert nhwc["bytes"] == 4 * 40 * 15 + 8 * 15  # the map, and two words for each pixel
    assert all(row["fraction_of_peak"] > 0 for row in document["rows"])
    assert all(row["gmacs"] is None for row in document["rows"])


def test_bench_models_runs_what_is_installed(tmp_path, monkeypatch):
    import bench_models

    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # for its slow export
    arguments = ["--models", "mnist_cnn", "--batches", "2", "--rounds", "2"]
    bench_models.main([*arguments, "--results", str(tmp_path)])
    document = read(tmp_path, "models_threads1")
    rows = [row["impl"] for row in document["rows"]]
    assert rows[0] == f"bnn_ext {_C.cpu_capability()}"
    for name in ("OpenVINO binary", "OpenVINO float32"):
        assert (name in rows) == (find_spec("openvino") is not None)
    for name in ("torch float32 NHWC", "torch bfloat16 NHWC"):
        assert name in rows


def test_bench_training_step(tmp_path, monkeypatch):
    import bench_training_step

    monkeypatch.setattr(bench_training_step, "MODELS", {"tiny": TINY["birealnet18"]})
    arguments = ["--models", "tiny", "--batch", "2", "--rounds", "2"]
    bench_training_step.main([*arguments, "--results", str(tmp_path)])
    level = _C.cpu_capability()
    assert impls(read(tmp_path, "training_step_threads1"), "training_tiny", "2x3x32x32") == [
        (f"bnn_ext {level}", "float32"),
        (f"bnn_ext float gradients {level}", "float32"),
        ("torch float32", "float32"),
    ]


def test_bench_training_step_takes_steps(monkeypatch):
    import bench_training_step

    model = TINY["birealnet18"][0]()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randn(2, 3, 32, 32)
    step = bench_training_step.Step(model, images, None, "float")
    with torch.inference_mode():  # as everything is timed
        step()
    binary = [m for m in step.model.modules() if isinstance(m, bnn.BinaryConv2d)]
    assert binary
    assert {(m.training_forward, m.training_backward) for m in binary} == {(None, "float")}
    assert all(p.grad is not None for p in step.model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])  # the step's network is a copy
    moved = [n for n, p in step.model.named_parameters() if not torch.equal(p, before[n])]
    assert moved


def test_bench_models_says_where_the_time_goes(tmp_path, monkeypatch):
    import bench_models

    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # for its slow export
    monkeypatch.setattr(bench_models, "MODELS", {"tiny": TINY["birealnet18"]})
    monkeypatch.setattr(bench_models, "PROFILED_CALLS", 2)
    arguments = ["--models", "tiny", "--batches", "2", "--rounds", "2"]
    bench_models.main([*arguments, "--results", str(tmp_path)])
    document = read(tmp_path, "models_threads1")
    alone, openvino = "torch float32 alone", "OpenVINO binary"
    parts, ours = document["parts"], document["rows"][0]
    for part in parts:
        assert (part["what"], part["shape"]) == ("model_tiny", "2x3x32x32")
        assert part["ms"] >= 0
    pieces = {part["part"]: part for part in parts if part["impl"] == alone}
    assert pieces.keys() == {"stem", "shortcuts", "head"}
    for piece in pieces.values():
        assert piece["share"] == pytest.approx(piece["ms"] / ours["median_ms"], abs=1e-3)
    # Ours are divided twice: into kernels and the rest, and into operators.
    for impl, sums in (("bnn_ext", 2), (openvino, int(find_spec("openvino") is not None))):
        shares = [part["share"] for part in parts if part["impl"] == impl]
        assert sum(shares) == pytest.approx(sums, abs=0.01)


# --- whole networks -------------------------------------------------------------------------------

# Small enough for a test, and with channels that OpenVINO's BinaryConvolution can read: n x 8.
TINY = {
    "vgg": (lambda: nn.Sequential(*_conv(3, 16, None), *_conv(16, 16), *_classifier()), (3, 8, 8)),
    "birealnet18": (partial(birealnet18, 10, width=1 / 8), (3, 32, 32)),
    "reactnet_a": (partial(reactnet_a, 10, width=1 / 4), (3, 32, 32)),
    "resnet_binary": (partial(resnet_binary, depth=8, inflate=1), (3, 16, 16)),
    "bottleneck": (
        partial(resnet_binary, 10, layout="imagenet", depth=50, inflate=1),
        (3, 32, 32),
    ),
}


def _conv(inputs: int, outputs: int, quantizer: str | None = "ste_sign") -> list[nn.Module]:
    conv = bnn.BinaryConv2d(inputs, outputs, 3, padding=1, input_quantizer=quantizer)
    return [conv, nn.MaxPool2d(2), nn.BatchNorm2d(outputs), nn.Hardtanh()]


def _classifier() -> list[nn.Module]:
    return [nn.Flatten(), bnn.BinaryLinear(64, 10), nn.BatchNorm1d(10)]


def calibrated(make, image: tuple[int, ...], dtype=torch.float32) -> tuple[nn.Sequential, Tensor]:
    import measured_networks

    images = (torch.randint(-128, 128, (16, *image)) / 128).to(dtype)
    return measured_networks.calibrated(make().to(dtype), images), images


@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_float_twins_are_the_same_functions(name):
    import measured_networks

    # In float64 no rounding comes near to moving a bit, which would change everything behind it.
    model, images = calibrated(*TINY[name], torch.float64)
    output = model(images)
    twin = measured_networks.float_twin(model)
    torch.testing.assert_close(twin(images), output, rtol=0, atol=1e-9)
    assert output.std() > 0.1  # the logits differ, so that equality means something
    kinds = {type(module) for module in twin.modules()}
    assert not kinds & {bnn.BinaryConv2d, bnn.BinaryLinear}


def test_layers_that_change_no_sign_are_left_out():
    from measured_networks import layers_of

    sign, real = bnn.BinaryLinear(8, 8), bnn.BinaryLinear(8, 8, input_quantizer=None)
    clip = nn.Hardtanh()
    assert layers_of(nn.Sequential(clip, nn.Sequential(nn.Identity(), sign))) == [sign]
    positive = nn.Hardtanh(1, 2)
    assert layers_of(nn.Sequential(positive, sign)) == [positive, sign]
    flat = nn.Flatten()
    assert layers_of(nn.Sequential(clip, flat, sign, clip)) == [flat, sign, clip]
    for reader in (real, bnn.Residual(sign)):
        assert layers_of(nn.Sequential(clip, reader)) == [clip, reader]


@torch.no_grad()
def test_the_steadiest_images_come_first():
    from measured_networks import MARGIN, steadiest_first

    layer = bnn.BinaryLinear(4, 8)
    near, nearest, far = 0.5 * MARGIN, 0.1 * MARGIN, 10 * MARGIN
    images = torch.tensor([[1, -1, 1, near], [1, 1, far, -1], [nearest, 1, 1, 1]])
    ordered, steady = steadiest_first(nn.Sequential(layer), images)
    assert torch.equal(ordered, images[[1, 0, 2]])
    assert steady == 1
    assert steadiest_first(nn.Sequential(layer), images[2:])[1] == 1  # at least one is compared
    assert not layer._forward_pre_hooks


@needs_openvino
@pytest.mark.parametrize("name", TINY)
@torch.no_grad()
def test_binary_graphs_of_networks_equal_torch(name):
    import measured_networks
    from openvino_network import Network
    from peers import OpenvinoRequest

    model, images = calibrated(*TINY[name])
    images, steady = measured_networks.steadiest_first(model, images)
    images = images[:steady]
    graph = OpenvinoRequest(Network(model, images.shape).model, images, threads=1)
    output = torch.as_tensor(graph()).flatten(1)
    # The bits are the same, borders included: what differs is float32's rounding of real layers.
    torch.testing.assert_close(output, model(images), rtol=1e-4, atol=1e-4)


@needs_openvino
@pytest.mark.parametrize("activation", [None, nn.Hardtanh(-9, 9), bnn.RPReLU(16)])
@pytest.mark.parametrize("one_threshold", [True, False])
@torch.no_grad()
def test_a_sum_that_only_signs_read(activation, one_threshold):
    """OpenVINO fuses such a sum wrongly, if one lets it."""
    from openvino_network import Network
    from peers import OpenvinoRequest

    first, second = (
        bnn.BinaryConv2d(16, 16, 3, stride, padding=1, bias=False) for stride in (1, 2)
    )
    third = bnn.BinaryConv2d(16, 16, 1, 2, bias=False)
    bias = bnn.LearnableBias(16)
    bias.bias.fill_(1)
    shortcut = third if one_threshold else nn.Sequential(bias, third)
    model = nn.Sequential(bnn.Residual(first, None, activation), bnn.Residual(second, shortcut))
    x = torch.randn(2, 16, 9, 9)
    graph = OpenvinoRequest(Network(model, x.shape).model, x, threads=1)
    assert torch.equal(torch.as_tensor(graph()), model(x))  # sums of ±1 are exact


@needs_openvino
@pytest.mark.parametrize(
    "layer, reason",
    [
        (bnn.BinaryConv2d(16, 16, 3, groups=2), "has groups, dilation"),
        (bnn.BinaryConv2d(16, 16, 3, dilation=2), "dilation=\\(2, 2\\)"),
        (bnn.BinaryConv2d(16, 16, 3, padding=1, pad_value=1), "pad_value=1"),
        (bnn.BinaryConv2d(12, 16, 3), "12 channels"),
        (nn.GELU(), "GELU has no binary graph"),
    ],
)
@torch.no_grad()
def test_what_has_no_binary_graph_is_named(layer, reason):
    from openvino_network import Network
    from peers import Missing

    with pytest.raises(Missing, match=reason):
        Network(nn.Sequential(layer), (1, getattr(layer, "in_channels", 16), 8, 8))


@needs_openvino
@torch.no_grad()
def test_openvinos_counters_by_place_and_kernel():
    from openvino_network import counted_parts

    model, images = calibrated(*TINY["birealnet18"])
    parts = counted_parts(model, images, threads=1, calls=2)
    assert sum(part.share for part in parts) == pytest.approx(1)
    (binary,) = (part for part in parts if "BinaryConvolution" in part.name)
    assert binary.name.startswith("body BinaryConvolution jit")  # no reference implementation
    assert binary.count == 16


@torch.no_grad()
def test_real_layers_are_those_that_no_bits_can_do():
    from parts import real_layers

    model, images = calibrated(*TINY["birealnet18"])
    macs = {layers.name: layers.macs for layers in real_layers(model, images[:2])}
    assert macs["shortcuts"] == 2 * (8 * 16 * 4 * 4 + 16 * 32 * 2 * 2 + 32 * 64)
    assert macs["head"] == 2 * 64 * 10
    assert macs["stem"] == 2 * 3 * 7 * 7 * 8 * 16 * 16
    assert not real_layers(*calibrated(*TINY["vgg"]))


def test_our_operators_are_found_by_the_profiler():
    from parts import profiled_parts

    bits = torch.zeros(2, 2, dtype=torch.int32)
    call = partial(ops.linear, bits, bits, 64)
    kernels, rest, *operators = profiled_parts(lambda: torch.relu(call()), calls=3)
    assert {kernels.name, rest.name} == {"all our kernels", "all the rest"}
    (ours,) = (part for part in operators if part.name.startswith("bnn_ext::"))
    assert ours.name == "bnn_ext::linear 2x2"
    assert ours.count == 1
    assert sum(part.share for part in operators) == pytest.approx(1)


# --- plots ----------------------------------------------------------------------------------------


def test_plot_draws_every_file_and_a_roofline(tmp_path, monkeypatch, without_peers):
    import bench_conv
    import bench_gemm
    import bench_pack
    import plot

    shapes = [bench_conv.Shape(32, 32, 4), bench_conv.Shape(40, 24, 3, groups=2)]
    monkeypatch.setattr(bench_conv, "SHAPES", {"3x3": shapes})
    monkeypatch.setattr(bench_gemm, "SHAPES", {"gemm": [bench_gemm.Shape(5, 64, 40)]})
    monkeypatch.setattr(bench_pack, "SHAPE", (40, 3, 5))
    arguments = ["--rounds", "2", "--results", str(tmp_path)]
    bench_conv.main([*arguments, "--levels", "all"])
    bench_gemm.main(arguments)
    bench_pack.main([*arguments, "--batches", "1"])

    plot.main(["--results", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    drawn = {path.stem for path in folder.glob("*.png") if path.stat().st_size > 10_000}
    assert drawn == {path.stem for path in folder.glob("*.json")} | {"roofline"}


def test_plot_leaves_files_of_other_kinds_alone(tmp_path):
    import plot

    (tmp_path / "h200").mkdir()
    (tmp_path / "h200/tests.json").write_text('{"files": {}}')
    plot.main(["--results", str(tmp_path)])
    assert not list(tmp_path.glob("*/*.png"))


@pytest.mark.parametrize("value, text", [(0.1234, "0.123"), (12.34, "12.3"), (1234.5, "1,234")])
def test_numbers_in_plots_have_three_digits(value, text):
    import plot

    assert plot._digits(value) == text


def test_bench_training_keeps_results_and_goes_on(tmp_path, monkeypatch):
    """Trained once, a run is only measured; a group of runs has a table and a picture."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    bench = importlib.import_module("bench_training")
    small = {"model": "binary_dense_mlp", "model_config": {"hidden": [16]}, "epochs": 2}
    experiments = {
        "first": bench.Experiment(small | {"epochs": 1}, 0.9),
        "second": bench.Experiment(small, init="first"),
    }
    monkeypatch.setattr(bench, "EXPERIMENTS", experiments)
    monkeypatch.setattr(bench, "GROUPS", {"both": list(experiments)})
    arguments = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path), "--threads", "1"]
    bench.main([*experiments, *arguments])
    (kept,) = tmp_path.glob("*/training")
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    files = ("config.yaml", "curves.png", "metrics.csv", "result.json")
    assert names == {"both.md", "both.png", *(f"{name}/{f}" for name in experiments for f in files)}
    result = json.loads((kept / "first/result.json").read_text())
    assert 0.2 < result["test_top1"] < 1 and result["least"] == 0.9 and result["seconds"] > 0
    assert (kept / "both.md").read_text().count("\n| ") == 3  # epochs, and the header
    assert "init: first\n" in (kept / "second/config.yaml").read_text()

    def train(*_: object, **__: object) -> None:
        raise AssertionError("nothing is left to train")

    monkeypatch.setattr(bench, "train", train)
    bench.main([*experiments, *arguments])
    assert json.loads((kept / "first/result.json").read_text())["test_top1"] == result["test_top1"]
    with pytest.raises(SystemExit):
        bench.main(["third"])
