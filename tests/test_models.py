"""The networks: sizes as published, shapes, training and eval mode, every argument."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from bnn_ext import models, quantizers
from bnn_ext import nn as bnn

BINARY_LAYERS = (bnn.BinaryLinear, bnn.BinaryConv2d)
NAMES = models.names()
# What the constructors take by default, without the batch.
DIGIT, CIFAR, IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)
INPUTS = {
    "alexnet": IMAGENET,
    "alexnet_binary": IMAGENET,
    "binary_dense_mlp": DIGIT,
    "binaryconnect_mlp": DIGIT,
    "birealnet18": IMAGENET,
    "birealnet34": IMAGENET,
    "bnn_mlp": DIGIT,
    "digits_cnn": (1, 8, 8),
    "ebnn_alexnet": DIGIT,
    "ebnn_convnet": DIGIT,
    "mlp_mnist_binary": DIGIT,
    "mnist_cnn": DIGIT,
    "reactnet18": IMAGENET,
    "reactnet_a": IMAGENET,
    "xnor_lenet5": DIGIT,
}


def input_of(name: str) -> tuple[int, ...]:
    return INPUTS.get(name, CIFAR)


def on_meta(name: str, **settings: Any) -> nn.Sequential:
    """Without memory and without random numbers, where only shapes matter."""
    with torch.device("meta"):
        return models.create(name, **settings)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def statistics(model: nn.Module) -> int:
    """Running means and variances, which other libraries count as parameters."""
    return sum(buffer.numel() for buffer in model.buffers() if buffer.dim() > 0)


def layers(model: nn.Module, *kinds: type) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kinds)]


def binary_weights(model: nn.Module) -> int:
    return sum(
        layer.weight.numel()
        for layer in layers(model, *BINARY_LAYERS)
        if layer.weight_quantizer is not None
    )


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        # As the reference implementations count.
        ("vgg_cifar10_binary", {}, 36_461_450),
        ("vgg_cifar10_binary", {"num_classes": 100}, 36_553_700),
        ("vgg_cifar100_binary", {}, 36_553_700),
        ("alexnet_binary", {}, 77_196_920),
        ("resnet_binary", {}, 4_338_030),
        ("resnet_binary", {"num_classes": 100}, 4_367_100),
        ("mlp_mnist_binary", {}, 80_431_114),
        ("binaryconnect_cnn", {}, 14_029_716),
        ("binaryconnect_mlp", {}, 10_027_028),  # that of the float network of the same sizes
        ("brn", {}, 275_786),
        ("brn", {"num_classes": 100}, 281_636),
        ("binary_dense_mlp", {"hidden": (20,), "bias": False, "batch_norm": False}, 15_880),
        # torchvision's networks of these depths, which have the same layers.
        ("birealnet18", {}, 11_689_512),
        ("birealnet34", {}, 21_797_672),
        ("resnet", {"layout": "imagenet", "depth": 18}, 11_689_512),
        ("resnet", {"layout": "imagenet", "depth": 34}, 21_797_672),
        ("resnet", {"layout": "imagenet"}, 25_557_032),
        ("resnet", {"layout": "imagenet", "depth": 101}, 44_549_160),
        ("resnet", {"layout": "imagenet", "depth": 152}, 60_192_808),
    ],
)
def test_published_numbers_of_parameters(name, settings, count):
    assert parameters(on_meta(name, **settings)) == count


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        ("binaryconnect_mlp", {}, 10_039_336),
        ("binaryconnect_cnn", {}, 14_037_416),
        ("binary_dense_mlp", {}, 100_992 + 8_512 + 690),
        ("binary_dense_mlp", {"hidden": (16,)}, 12_624 + 16 * 10 + 10 + 4 * 10),
        ("binary_dense_mlp", {"hidden": ()}, 7_890),
    ],
)
def test_published_numbers_that_count_statistics(name, settings, count):
    model = on_meta(name, **settings)
    assert parameters(model) + statistics(model) == count


def test_published_numbers_of_binary_weights():
    reactnet = on_meta("reactnet_a")
    assert binary_weights(reactnet) == 28_253_184
    assert round(parameters(reactnet) / 1e6, 2) == 29.34
    assert binary_weights(on_meta("brn")) == 267_264
    assert binary_weights(on_meta("nofloatbrn")) == 267_264 + 3 * 16 * 9 + 64 * 10
    assert binary_weights(on_meta("norealbrn")) == 267_264 + 16 * 32 + 32 * 64


def conv(inputs: int, outputs: int, kernel: int, bias: bool = False) -> int:
    return (inputs * kernel**2 + bias) * outputs


def norms(*channels: int) -> int:
    return 2 * sum(channels)


@pytest.mark.parametrize(
    ("name", "settings", "count"),
    [
        (
            "alexnet",
            {},
            conv(3, 64, 11) + conv(64, 192, 5) + conv(192, 384, 3) + conv(384, 256, 3)
            + conv(256, 256, 3) + (9216 + 4096) * 4096 + norms(64, 192, 384, 256, 256, 4096, 4096)
            + 4097 * 1000,
        ),
        (
            "vgg_cifar10",
            {},
            conv(3, 128, 3) + conv(128, 128, 3) + conv(128, 256, 3) + conv(256, 256, 3)
            + conv(256, 512, 3) + conv(512, 512, 3) + (8192 + 1024) * 1024
            + norms(128, 128, 256, 256, 512, 512, 1024, 1024) + 1025 * 10,
        ),
        (
            "vgg_small_binary",
            {},
            conv(3, 128, 3, True) + conv(128, 128, 3, True) + conv(128, 256, 3, True)
            + conv(256, 256, 3, True) + conv(256, 512, 3, True) + conv(512, 512, 3, True)
            + (8193 + 1025) * 1024 + norms(128, 128, 256, 256, 512, 512, 1024, 1024) + 1025 * 10,
        ),
        (
            "resnet",
            {"depth": 8},
            conv(3, 16, 3) + 2 * conv(16, 16, 3) + conv(16, 32, 3) + conv(32, 32, 3)
            + conv(32, 64, 3) + conv(64, 64, 3) + conv(16, 32, 1) + conv(32, 64, 1)
            + norms(16, 16, 16, 32, 32, 32, 64, 64, 64) + 65 * 10,
        ),
        (
            "wrn22",
            {},
            conv(3, 16, 3) + 6 * conv(16, 16, 3) + conv(16, 32, 3) + 5 * conv(32, 32, 3)
            + conv(32, 64, 3) + 5 * conv(64, 64, 3) + conv(16, 32, 1) + conv(32, 64, 1)
            + norms(*6 * [16], 16, *5 * [32], 32, *6 * [64]) + 65 * 10,
        ),
        (
            "xnor_nin",
            {},
            conv(3, 192, 5, True) + conv(192, 160, 1, True) + conv(160, 96, 1, True)
            + conv(96, 192, 5, True) + 3 * conv(192, 192, 1, True) + conv(192, 192, 3, True)
            + norms(192, 160, 96, 192, 192, 192, 192) + conv(192, 10, 1, True),
        ),
        (
            "xnor_lenet5",
            {},
            conv(1, 20, 5, True) + conv(20, 50, 5, True) + norms(20, 800) + 801 * 500 + 501 * 10,
        ),
        ("bnn_mlp", {}, (784 + 2 * 4096 + 10) * 4096 + norms(4096, 4096, 4096, 10)),
        ("ebnn_convnet", {}, conv(1, 10, 3, True) + norms(10) + 361 * 10 + norms(10)),
        (
            "ebnn_alexnet",
            {},
            conv(1, 10, 5, True) + conv(10, 10, 5, True) + 3 * conv(10, 10, 3, True)
            + norms(*5 * [10]) + 41 * 10 + norms(10),
        ),
        # Bi-Real's and, around each of 16 convolutions, a shift in front and three numbers behind.
        (
            "reactnet18",
            {},
            11_689_512 + (64 * 5 + 128 * 4 + 256 * 4 + 512 * 3) + 3 * 4 * (64 + 128 + 256 + 512),
        ),
        ("nsbrn", {}, 275_786 - 6 * (16 + 32 + 64)),
        ("nsstebrn", {}, 275_786 - 6 * (16 + 32 + 64)),
        ("noprelubrn", {}, 275_786 - 6 * (16 + 32 + 64)),
        ("noshiftbrn", {}, 275_786 - (7 * 16 + 6 * 32 + 5 * 64) - 2 * 6 * (16 + 32 + 64)),
        ("stebrn", {}, 275_786),
        ("nofloatbrn", {}, 275_786),
        ("norealbrn", {}, 275_786),
    ],
)  # fmt: skip
def test_numbers_of_parameters_by_hand(name, settings, count):
    assert parameters(on_meta(name, **settings)) == count


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_binary_resnets_have_the_float_ones_parameters_and_two_more_norms(depth):
    settings = {"layout": "imagenet", "depth": depth}
    features = 512 if depth < 50 else 2048
    expected = parameters(on_meta("resnet", **settings)) + norms(features, 1000)
    assert parameters(on_meta("resnet_binary", **settings)) == expected


# --- forward and backward -------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_shapes_at_the_default_size(name, training):
    model = on_meta(name).train(training)
    classes = inspect.signature(getattr(models, name)).parameters["num_classes"].default
    out = model(torch.empty(2, *input_of(name), device="meta"))
    assert out.shape == (2, 10 if classes is None else classes)


SMALL: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "alexnet": ({"input_size": 63, "hidden": 32}, (3, 63, 63)),
    "alexnet_binary": ({"input_size": 63, "inflate": 1, "hidden": 32}, (3, 63, 63)),
    "binaryconnect_cnn": ({"width": 0.05, "input_size": 8}, (3, 8, 8)),
    "binaryconnect_mlp": ({"hidden": 32}, DIGIT),
    "birealnet18": ({"width": 0.25}, (3, 40, 33)),
    "birealnet34": ({"width": 0.25}, (3, 32, 32)),
    "bnn_mlp": ({"hidden": 32}, DIGIT),
    "mlp_mnist_binary": ({"hidden": 32}, DIGIT),
    "reactnet18": ({"width": 0.25}, (3, 40, 33)),
    "reactnet_a": ({"width": 0.125}, (3, 33, 64)),
    "resnet_binary": ({"inflate": 1, "depth": 8}, CIFAR),
    "vgg_cifar10": ({"width": 0.125, "input_size": 8}, (3, 8, 8)),
    "vgg_cifar10_binary": ({"inflate": 1, "input_size": 8}, (3, 8, 8)),
    "vgg_cifar100_binary": ({"inflate": 1, "input_size": 8}, (3, 8, 8)),
    "vgg_small_binary": ({"width": 0.125, "input_size": 8}, (3, 8, 8)),
    "xnor_nin": ({"width": 0.125}, CIFAR),
}


@pytest.mark.parametrize("name", NAMES)
def test_trains_and_answers(name):
    settings, shape = SMALL.get(name, ({}, input_of(name)))
    model = models.create(name, **settings)
    images = torch.randn(4, *shape)
    F.cross_entropy(model(images), torch.arange(4)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    for layer in layers(model, nn.Linear, nn.Conv2d):
        assert layer.weight.grad.count_nonzero() > 0

    model.eval()
    out = model(images)
    assert out.isfinite().all()
    assert torch.equal(model(images), out)  # nothing is drawn any more
    assert (out[0] != out[1]).any()
    assert model(images[:1]).shape == out[:1].shape


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("name", ["resnet", "resnet_binary"])
def test_resnets_for_large_images(name, depth):
    model = models.create(name, layout="imagenet", depth=depth, num_classes=7)
    out = model(torch.randn(2, 3, 33, 40))
    assert out.shape == (2, 7)
    out.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


# --- what the layers are --------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_first_layer_takes_the_real_image(name):
    first = layers(on_meta(name), nn.Conv2d, nn.Linear)[0]
    assert getattr(first, "input_quantizer", None) is None


FLOAT = {"alexnet", "resnet", "vgg_cifar10", "wrn22"}


@pytest.mark.parametrize("name", NAMES)
def test_float_and_binary_networks(name):
    model = on_meta(name)
    share = binary_weights(model) / parameters(model)
    assert share == 0 if name in FLOAT else share > 0.6
    assert not layers(model, nn.LogSoftmax, nn.Softmax)  # logits suit every loss


def test_vgg_pools_sums_and_not_what_hardtanh_clips():
    kinds = [type(module).__name__ for module in on_meta("vgg_cifar10_binary")]
    block = ["BinaryConv2d", "BatchNorm2d", "Hardtanh"]
    pooled = ["BinaryConv2d", "MaxPool2d", "BatchNorm2d", "Hardtanh"]
    linear = ["BinaryLinear", "BatchNorm1d", "Hardtanh"]
    assert kinds == 3 * (block + pooled) + ["Flatten"] + 2 * linear + linear[:2]


def test_mlp_drops_out_behind_the_last_hidden_layer():
    kinds = [type(module).__name__ for module in on_meta("mlp_mnist_binary")]
    hidden = ["BinaryLinear", "BatchNorm1d", "Hardtanh"]
    last = ["BinaryLinear", "Dropout", "BatchNorm1d", "Hardtanh", "Linear"]
    assert kinds == ["Flatten", *hidden, *hidden, *last]


def test_bnn_mlp_drops_out_in_front_of_every_layer():
    model = models.bnn_mlp(hidden=1000, layers=2, dropout_in=0.3, dropout=0.6)
    kinds = [type(module).__name__ for module in model]
    assert kinds == ["Flatten", "Dropout", *3 * ["BinaryLinear", "BatchNorm1d"]]
    image = torch.ones(1, 784)
    assert 0.6 < (model[1](image) != 0).float().mean() < 0.8
    for layer in model[4], model[6]:
        assert 0.3 < (layer.input_quantizer(torch.ones(1000)) != 0).float().mean() < 0.5
    for layer in layers(model, bnn.BinaryLinear):
        assert layer.bias is None and layer.weight.abs().max() <= 1
        assert layer.weight.std() > 0.5  # uniform on [-1, 1]: 0.577
    plain = layers(models.bnn_mlp(hidden=8, dropout=0.0), bnn.BinaryLinear)
    assert [layer.input_quantizer for layer in plain] == [None, *3 * [quantizers.ste_sign]]


def test_a_binary_residual_block_is_its_formula():
    block = models.resnet_binary(depth=14, inflate=1)[4][0].train()  # the first that halves the map
    x = torch.randn(2, 16, 8, 8).clamp(-1, 1)
    sign = quantizers.ste_sign
    first, norm, _, second = block.branch
    around, around_norm = block.shortcut
    h = F.batch_norm(
        F.conv2d(sign(x), sign(first.weight), stride=2, padding=1), None, None, training=True
    ).clamp(-1, 1)
    sums = F.conv2d(sign(h), sign(second.weight), padding=1)
    aside = F.conv2d(sign(x), sign(around.weight), stride=2)
    total = sums + F.batch_norm(aside, None, None, training=True)
    expected = F.batch_norm(total, None, None, training=True).clamp(-1, 1)
    assert torch.equal(block(x), expected)
    assert norm.weight.eq(1).all() and around_norm.weight.eq(1).all()  # as the formula has it


def test_reactnet_doubles_channels_as_two_convolutions_would():
    model = models.reactnet_a(width=0.25)
    block = next(b for b in layers(model, bnn.Residual) if b.branch[1].out_channels == 16)
    shift, conv, norm = block.eval().branch
    nn.init.normal_(shift.bias)
    nn.init.normal_(norm.weight)
    x = torch.randn(2, 8, 5, 5)
    signs = quantizers.ste_sign(x + shift.bias.view(-1, 1, 1))
    halves = []
    for rows in (slice(8), slice(8, 16)):
        weight = conv.weight[rows]
        scale = weight.abs().mean((1, 2, 3)).view(-1, 1, 1)
        sums = F.conv2d(signs, quantizers.ste_sign(weight)) * scale
        sums = F.batch_norm(
            sums, norm.running_mean[rows], norm.running_var[rows], norm.weight[rows],
            norm.bias[rows],
        )  # fmt: skip
        halves.append(sums + x)
    assert torch.equal(block(x), block.activation(torch.cat(halves, 1)))


# --- arguments ------------------------------------------------------------------------------------


def has(name: str, argument: str) -> bool:
    return argument in inspect.signature(getattr(models, name)).parameters


def of_argument(argument: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("name", [name for name in NAMES if has(name, argument)])


@pytest.mark.parametrize("name", NAMES)
def test_num_classes_and_in_channels(name):
    channels, *size = input_of(name)
    settings = {"num_classes": 7}
    if has(name, "in_channels"):
        channels = settings["in_channels"] = 5
    model = on_meta(name, **settings)
    assert model(torch.empty(2, channels, *size, device="meta")).shape == (2, 7)


@of_argument("in_features")
def test_in_features(name):
    out = on_meta(name, in_features=30)(torch.empty(2, 3, 10, device="meta"))
    assert out.shape == (2, 10)


SMALLEST = {"alexnet": 63, "alexnet_binary": 63, "ebnn_alexnet": 19, "ebnn_convnet": 7,
            "xnor_lenet5": 16}  # fmt: skip


@of_argument("input_size")
def test_input_size(name):
    smallest = SMALLEST.get(name, 8)
    channels = input_of(name)[0]
    for size in (smallest, smallest + 11):
        model = on_meta(name, input_size=size)
        assert model(torch.empty(2, channels, size, size, device="meta")).shape[0] == 2
    for wrong in (smallest - 1, 32.0):
        with pytest.raises(ValueError, match=f"input_size must be .* at least {smallest}, found"):
            models.create(name, input_size=wrong)


@of_argument("dropout")
def test_dropout(name):
    arguments = [argument for argument in ("dropout", "dropout_in") if has(name, argument)]
    model = on_meta(name, **dict.fromkeys(arguments, 0.25))
    found = [layer.p for layer in layers(model, nn.Dropout)]
    found += [
        layer.input_quantizer.keywords["p"]
        for layer in layers(model, *BINARY_LAYERS)
        if hasattr(layer.input_quantizer, "keywords")
    ]
    assert found and set(found) == {0.25}
    for argument, wrong in itertools.product(arguments, (-0.1, 1.5)):
        with pytest.raises(ValueError, match=rf"{argument} must be in \[0, 1\], found {wrong}"):
            models.create(name, **{argument: wrong})


def widths(model: nn.Module) -> list[int]:
    return [layer.weight.shape[0] for layer in layers(model, nn.Conv2d, nn.Linear)]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("vgg_small_binary", {"width": 0.5}, [64, 64, 128, 128, 256, 256, 512, 512, 10]),
        ("vgg_small_binary", {"hidden": ()}, [128, 128, 256, 256, 512, 512, 10]),
        ("vgg_small_binary", {"hidden": (96,), "width": 0.25}, [32, 32, 64, 64, 128, 128, 24, 10]),
        ("vgg_cifar10_binary", {"inflate": 2}, [256, 256, 512, 512, 1024, 512, 1024, 1024, 10]),
        ("vgg_cifar100_binary", {"inflate": 1}, [128, 128, 256, 256, 512, 512, 1024, 1024, 100]),
        ("alexnet_binary", {"inflate": 2, "hidden": 9}, [128, 384, 768, 512, 256, 9, 9, 1000]),
        ("alexnet", {"hidden": 9}, [64, 192, 384, 256, 256, 9, 9, 1000]),
        ("vgg_cifar10", {"width": 0.25}, [32, 32, 64, 64, 128, 128, 256, 256, 10]),
        ("alexnet_binary", {}, [192, 576, 1152, 768, 256, 4096, 4096, 1000]),
        ("binaryconnect_cnn", {"width": 0.5}, [64, 64, 128, 128, 256, 256, 512, 512, 10]),
        ("binaryconnect_mlp", {"hidden": 30, "layers": 2}, [30, 30, 10]),
        ("mlp_mnist_binary", {"hidden": 30, "layers": 1}, [30, 10]),
        ("bnn_mlp", {"hidden": 30, "layers": 2}, [30, 30, 10]),
        ("binary_dense_mlp", {"hidden": (30, 20, 40)}, [30, 20, 40, 10]),
        ("ebnn_convnet", {"filters": 3}, [3, 10]),
        ("ebnn_alexnet", {"filters": 3}, [3, 3, 3, 3, 3, 10]),
        ("xnor_nin", {"width": 0.5}, [96, 80, 48, 96, 96, 96, 96, 96, 10]),
        ("brn", {"width": 8, "blocks": 1}, [8, 8, 16, 16, 32, 32, 10]),
        ("wrn22", {"widen": 2}, [16, *(c for c in (32, 64, 128) for _ in range(7)), 10]),
        ("resnet", {"depth": 8, "inflate": 2}, [32, 32, 32, 64, 64, 64, 128, 128, 128, 10]),
        ("resnet_binary", {"depth": 8}, [80, 80, 80, 160, 160, 160, 320, 320, 320, 10]),
    ],
)
def test_widths(name, settings, expected):
    assert widths(on_meta(name, **settings)) == expected


@pytest.mark.parametrize("name", ["birealnet18", "birealnet34", "reactnet18"])
def test_width_of_networks_for_imagenet(name):
    depths = (6, 8, 12, 6) if name == "birealnet34" else (4, 4, 4, 4)
    convs = [layer.out_channels for layer in layers(on_meta(name, width=0.5), bnn.BinaryConv2d)]
    assert convs == [c for c, n in zip((32, 64, 128, 256), depths, strict=True) for _ in range(n)]


def test_width_of_reactnet_a():
    model = on_meta("reactnet_a", width=0.5)
    convs = [layer.out_channels for layer in layers(model, bnn.BinaryConv2d)]
    channels = (16, 32, 64, 64, 128, 128, *6 * (256,), 512, 512)
    assert convs == [c for pair in zip(channels, channels[1:], strict=False) for c in pair]


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        (name, argument)
        for name in NAMES
        for argument in ("num_classes", "in_channels", "in_features", "inflate", "layers",
                         "filters", "widen", "blocks", "hidden", "width")
        if has(name, argument)
    ],
)  # fmt: skip
def test_sizes_must_be_positive(name, argument):
    for wrong in (0, -3):
        value = (16, wrong) if name in ("binary_dense_mlp", "vgg_small_binary") else wrong
        value = value if argument == "hidden" else wrong
        with pytest.raises(ValueError, match=rf"{argument}.* must be .*positive.*, found {wrong}"):
            models.create(name, **{argument: value})


def test_layout_and_depth():
    for name in ("resnet", "resnet_binary"):
        with pytest.raises(ValueError, match="layout must be cifar or imagenet, found 'cifar10'"):
            models.create(name, layout="cifar10")
        for depth in (18, 2, 13):
            with pytest.raises(ValueError, match=rf"depth must be 6n \+ 2 .* found {depth}"):
                models.create(name, depth=depth)
        with pytest.raises(ValueError, match="depth must be one of 18, 34, .* found 20"):
            models.create(name, layout="imagenet", depth=20)


@of_argument("weight_quantizer")
def test_weight_quantizer(name):
    two_steps = on_meta(name, weight_quantizer=None), on_meta(name)
    assert binary_weights(two_steps[0]) == 0 < binary_weights(two_steps[1])
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in two_steps]
    assert shapes[0] == shapes[1]  # the second step loads all of the first
    chosen = on_meta(name, weight_quantizer="swish_sign")
    found = {layer.weight_quantizer for layer in layers(chosen, bnn.BinaryConv2d)}
    assert found == {quantizers.swish_sign}
    with pytest.raises(ValueError, match="weight_quantizer: .*found 'sing'"):
        models.create(name, weight_quantizer="sing")


@of_argument("stochastic")
def test_stochastic(name):
    for stochastic, quantizer in ((True, "stochastic_sign"), (False, "ste_sign")):
        model = models.create(name, stochastic=stochastic, **SMALL[name][0])
        binary = layers(model, *BINARY_LAYERS)
        assert {layer.weight_quantizer for layer in binary} == {quantizers.get(quantizer)}
        assert {layer.input_quantizer for layer in binary} == {None}
        assert all(layer.weight.abs().max() <= 1 for layer in binary)
        assert binary[0].weight.std() > 0.5  # uniform on [-1, 1]: 0.577


@of_argument("momentum")
def test_momentum(name):
    model = on_meta(name, momentum=0.3)
    found = {norm.momentum for norm in layers(model, nn.BatchNorm1d, nn.BatchNorm2d)}
    assert found == {0.3}


def test_settings_of_binary_dense():
    model = models.binary_dense_mlp(eps=0.5, bias=False)
    assert {norm.eps for norm in layers(model, nn.BatchNorm1d)} == {0.5}
    assert {layer.bias for layer in layers(model, bnn.BinaryLinear)} == {None}
    biased = models.binary_dense_mlp(batch_norm=False)
    assert not layers(biased, nn.BatchNorm1d)
    assert all(not layer.bias.any() for layer in layers(biased, bnn.BinaryLinear))


@of_argument("binary_input")
def test_binary_input(name):
    model = models.create(name, binary_input=True).eval()
    assert layers(model, *BINARY_LAYERS)[0].input_quantizer is quantizers.ste_sign
    images = torch.randn(2, 1, 28, 28)
    assert torch.equal(model(images), model(quantizers.ste_sign(images)))


def test_parts_of_brn():
    kinds = {
        "brn": {"LearnableBias": 18 * 3, "LearnableScale": 18, "PReLU": 18},
        "nsbrn": {"LearnableBias": 18 * 3, "PReLU": 18},
        "stebrn": {"LearnableBias": 18 * 3, "LearnableScale": 18, "PReLU": 18},
        "nsstebrn": {"LearnableBias": 18 * 3, "PReLU": 18},
        "noshiftbrn": {"LearnableScale": 18, "PReLU": 18},
        "noprelubrn": {"LearnableBias": 18 * 3, "LearnableScale": 18, "ReLU": 18},
        "nofloatbrn": {"LearnableBias": 18 * 3, "LearnableScale": 18, "PReLU": 18},
        "norealbrn": {"LearnableBias": 18 * 3, "LearnableScale": 18, "PReLU": 18},
    }
    for name, expected in kinds.items():
        model = on_meta(name)
        known = (bnn.LearnableBias, bnn.LearnableScale, nn.PReLU, nn.ReLU)
        found = [type(module).__name__ for module in layers(model, *known)]
        assert {kind: found.count(kind) for kind in set(found)} == expected, name
        signs = [layer.input_quantizer for layer in layers(model, bnn.BinaryConv2d)]
        ste = name in ("stebrn", "nsstebrn")
        sign = quantizers.ste_sign if ste else quantizers.approx_sign
        assert set(signs) - {None} == {sign} and signs.count(sign) == 18, name


def test_parts_of_brn_in_order():
    model = models.brn(scale=False, shift=False, prelu=False, input_quantizer="swish_sign").eval()
    block = layers(model, bnn.Residual)[0]
    x = torch.randn(2, 16, 6, 6)
    weight = quantizers.ste_sign(layers(block, bnn.BinaryConv2d)[0].weight)
    norm = layers(block, nn.BatchNorm2d)[0]
    expected = (norm(F.conv2d(quantizers.ste_sign(x), weight, padding=1)) + x).relu()
    assert torch.equal(block(x), expected)


def test_every_argument_is_tested():
    tested = {
        "batch_norm", "bias", "binary_ends", "binary_input", "binary_shortcuts", "blocks",
        "depth", "dropout", "dropout_in", "eps", "filters", "hidden", "in_channels", "in_features",
        "inflate", "input_quantizer", "input_size", "layers", "layout", "momentum", "num_classes",
        "prelu", "scale", "shift", "stochastic", "weight_quantizer", "widen", "width",
    }  # fmt: skip
    arguments = {
        key for name in NAMES for key in inspect.signature(getattr(models, name)).parameters
    }
    assert arguments == tested


# --- by name --------------------------------------------------------------------------------------


def test_names_are_the_constructors():
    assert sorted(NAMES) == NAMES
    assert {*NAMES, "create", "names"} == set(models.__all__)
    assert repr(models.create("ebnn_convnet", filters=4)) == repr(models.ebnn_convnet(filters=4))


def test_unknown_names_and_settings():
    with pytest.raises(ValueError, match="name must be one of alexnet, .*xnor_nin, found 'vgg'"):
        models.create("vgg")
    for taken in ("create", "__doc__", "small_cnn"):
        with pytest.raises(ValueError, match="name must be one of"):
            models.create(taken)
    expected = (
        "settings of wrn22 must be among num_classes, in_channels, widen, dropout, found width"
    )
    with pytest.raises(TypeError, match=expected):
        models.create("wrn22", width=2)


@pytest.mark.parametrize("name", NAMES)
def test_every_model_says_where_it_comes_from(name):
    constructor = getattr(models, name)
    documented = getattr(constructor, "func", constructor)  # an ablation is documented with brn
    doc = inspect.getdoc(documented) or ""
    assert "Shape: " in doc
    sources = doc + (inspect.getdoc(inspect.getmodule(documented)) or "")
    assert "Source: " in sources


def test_a_state_dict_goes_through_a_file(tmp_path):
    model, other = models.brn().eval(), models.brn().eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    images = torch.randn(2, *CIFAR)
    assert torch.equal(model(images), other(images))
