"""Float models as binary ones: torchvision's, and small ones that have it all."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from bnn_ext import nn as bnn
from bnn_ext import quantizers

BINARY = (bnn.BinaryLinear, bnn.BinaryConv1d, bnn.BinaryConv2d, bnn.BinaryConv3d)


def names(model: nn.Module, *kinds: type) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def small_model() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, dilation=2, groups=2, bias=False),
        nn.ReLU6(),
        nn.Flatten(),
        nn.Linear(32, 6),
        nn.Linear(6, 5),
    )


# --- torchvision's --------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["resnet18", "mobilenet_v2"])
def float_model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return getattr(torchvision.models, request.param)(num_classes=5)


def test_torchvision_models_become_binary(float_model):
    before = {name: tensor.clone() for name, tensor in float_model.state_dict().items()}
    binary = bnn.binarize(float_model)

    layers = names(float_model, nn.Conv2d, nn.Linear)
    assert names(binary, *BINARY) == layers[1:-1]
    assert not names(binary, nn.ReLU, nn.ReLU6)
    assert not names(float_model, *BINARY)  # the float model is as it was
    after = binary.state_dict()
    assert list(after) == list(before)
    for name, tensor in float_model.state_dict().items():
        assert torch.equal(tensor, before[name])
        assert torch.equal(after[name], tensor)

    images = torch.randn(4, 3, 64, 64)
    out = binary(images)
    assert out.shape == (4, 5)
    F.cross_entropy(out, torch.arange(4)).backward()
    assert all(layer.weight.grad.count_nonzero() > 0 for layer in map(binary.get_submodule, layers))
    assert all(parameter.grad is None for parameter in float_model.parameters())
    answers = binary.eval()(images)
    assert (answers[0] != answers[1]).any()


def test_behind_a_relu_all_signs_are_positive():
    """Why the activations must give way, unless the user knows better."""
    binary = bnn.binarize(small_model(), activation=None)
    assert names(binary, nn.ReLU, nn.ReLU6) == ["2", "4"]
    behind_relu = binary[:3](torch.randn(2, 3, 8, 8))
    assert binary[3].input_quantizer(behind_relu).eq(1).all()


# --- what is replaced -----------------------------------------------------------------------------


def test_a_binary_layer_keeps_all_that_the_float_layer_had():
    model = small_model()
    model[3].weight.requires_grad_(False)
    binary = bnn.binarize(model.eval())
    float_conv, conv = model[3], binary[3]
    assert type(conv) is bnn.BinaryConv2d and type(binary[6]) is bnn.BinaryLinear
    assert not conv.training and not conv.weight.requires_grad and conv.bias is None
    x = torch.randn(2, 4, 7, 7)
    scale = float_conv.weight.abs().mean((1, 2, 3)).view(-1, 1, 1)
    sums = F.conv2d(
        quantizers.ste_sign(x),
        quantizers.ste_sign(float_conv.weight),
        stride=2,
        padding=1,
        dilation=2,
        groups=2,
    )
    assert torch.equal(conv(x), sums * scale)
    made = bnn.BinaryConv2d(
        4, 8, 3, 2, 1, 2, 2, bias=False, weight_quantizer="magnitude_aware_sign"
    )
    assert repr(conv) == repr(made)
    assert conv.__dict__.keys() == made.__dict__.keys()


def test_quantizers_and_activation():
    binary = bnn.binarize(
        small_model(),
        input_quantizer=None,
        weight_quantizer="approx_sign",
        activation=nn.PReLU,
    )
    assert binary[3].input_quantizer is None
    assert binary[3].weight_quantizer is quantizers.approx_sign
    assert names(binary, nn.PReLU) == ["2", "4"]


@pytest.mark.parametrize(
    ("skip", "expected"),
    [
        (bnn.first_and_last, ["3", "6"]),
        ((), ["0", "3", "6", "7"]),
        (["0"], ["3", "6", "7"]),
        ({"3", "6", "7"}, ["0"]),
        (lambda model: names(model, nn.Linear), ["0", "3"]),
    ],
)
def test_skip(skip, expected):
    assert names(bnn.binarize(small_model(), skip), *BINARY) == expected


def test_first_and_last():
    assert bnn.first_and_last(small_model()) == {"0", "7"}
    assert bnn.first_and_last(nn.Linear(2, 2)) == {""}
    assert bnn.first_and_last(nn.ReLU()) == set()


def test_all_dimensions_and_a_model_that_is_one_layer():
    for layer, kind in (
        (nn.Linear(3, 2), bnn.BinaryLinear),
        (nn.Conv1d(3, 2, 1), bnn.BinaryConv1d),
        (nn.Conv3d(3, 2, 1), bnn.BinaryConv3d),
    ):
        assert type(bnn.binarize(layer, skip=())) is kind


class OwnLinear(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).exp()


def test_layers_of_other_types_stay():
    model = nn.Sequential(
        nn.Linear(4, 4), OwnLinear(4, 4), bnn.BinaryLinear(4, 4), nn.ConvTranspose1d(4, 4, 1)
    )
    binary = bnn.binarize(model, skip=())
    assert [type(layer) for layer in binary] == [
        bnn.BinaryLinear, OwnLinear, bnn.BinaryLinear, nn.ConvTranspose1d,
    ]  # fmt: skip
    assert binary[2].weight_quantizer is quantizers.ste_sign


def test_shared_modules_and_tied_weights_stay_shared():
    relu, linear = nn.ReLU(), nn.Linear(4, 4)
    tied = nn.Linear(4, 4)
    tied.weight = linear.weight
    binary = bnn.binarize(nn.Sequential(linear, relu, linear, relu, tied), skip=())
    assert binary[0] is binary[2]
    assert binary[4].weight is binary[0].weight
    assert not names(binary, nn.ReLU)
    assert type(binary[0]) is type(binary[4]) is bnn.BinaryLinear


def test_hooks_stay():
    model = nn.Sequential(nn.Linear(4, 4))
    calls = []
    model[0].register_forward_hook(lambda *_: calls.append(1))
    bnn.binarize(model, skip=())(torch.randn(2, 4))
    assert calls == [1]


def test_a_binary_model_can_be_copied_and_its_latent_weights_clipped():
    binary = bnn.binarize(small_model())
    optimizer = torch.optim.SGD(binary.parameters(), lr=100.0)
    bnn.clip_weights(optimizer, binary)
    binary(torch.randn(4, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    assert binary[3].weight.abs().max() <= 1
    other = copy.deepcopy(binary).eval()
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(other(x), binary.eval()(x))


# --- errors ---------------------------------------------------------------------------------------


def test_wrong_skip():
    model = small_model()
    for skip in (["1"], ["nowhere"], lambda _: {"2"}):
        with pytest.raises(ValueError, match="skip must name linear layers.*found '(1|nowhere|2)'"):
            bnn.binarize(model, skip)


def test_nothing_to_replace():
    for model, skip in ((nn.Sequential(nn.Linear(2, 2)), bnn.first_and_last), (nn.ReLU(), ())):
        with pytest.raises(ValueError, match="model must hold a linear layer or convolution"):
            bnn.binarize(model, skip)


def test_wrong_padding_and_quantizers_name_the_layer():
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="layer 0: padding_mode must be 'zeros', found 'reflect'"):
        bnn.binarize(model, skip=())
    assert type(model[0]) is nn.Conv2d
    for argument in ("input_quantizer", "weight_quantizer"):
        with pytest.raises(ValueError, match=f"layer 3: {argument}: .*found 'sing'"):
            bnn.binarize(small_model(), **{argument: "sing"})
        with pytest.raises(TypeError, match=f"{argument}: .*found int 1"):
            bnn.binarize(small_model(), **{argument: 1})
