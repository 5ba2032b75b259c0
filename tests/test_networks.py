"""The networks of tests/networks: what they compute is what their origins do."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from networks import (
    NETWORKS,
    binaryconnect,
    binarynet_new,
    binarynet_old,
    birealnet,
    bnew,
    ebnn,
    first_output,
    randomize,
    reactnet,
    train_briefly,
    xnornet,
)
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CALIBRATION_BATCH = 16


class Layers(NamedTuple):
    """How many convolutions and linear layers a forward runs, by what they multiply."""

    bits: int  # signs with signs
    binary_weights: int  # real inputs with signs
    real: int


LAYERS = {
    "binarynet_old_vgg": Layers(8, 1, 0),
    "binarynet_old_alexnet": Layers(7, 1, 0),
    "binarynet_old_resnet": Layers(15, 1, 0),
    "binarynet_old_mlp": Layers(2, 1, 1),
    "binarynet_new_vgg": Layers(8, 1, 0),
    "birealnet": Layers(16, 0, 5),
    "reactnet": Layers(31, 0, 2),
    "xnornet": Layers(7, 0, 2),
    "ebnn_convnet": Layers(1, 1, 0),
    "ebnn_alexnet": Layers(5, 1, 0),
    "binaryconnect": Layers(0, 9, 0),
    "bnew": Layers(18, 0, 4),
    "densenet": Layers(8, 0, 4),
    "shufflenet": Layers(18, 0, 2),
    "two_heads": Layers(6, 2, 1),
}


class Products(TorchFunctionMode):
    """Looks at what enters every convolution and linear layer while it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = [0, 0, 0]
        self.constant: list[bool] = []  # of inputs that are signs: whether all have the same

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in (F.conv2d, F.linear):
            x, weight = args[:2]
            magnitudes = weight.detach().flatten(1).abs()
            if not _equal(magnitudes, magnitudes[:, :1]):
                self.counts[2] += 1
            elif not _equal(x.abs(), torch.ones(())):
                self.counts[1] += 1
            else:
                self.counts[0] += 1
                self.constant.append(bool((x > 0).all() or (x < 0).all()))
        return func(*args, **(kwargs or {}))


def _equal(found: Tensor, expected: Tensor) -> bool:
    """Up to rounding: some spellings add a number to a sign and take it away again."""
    return torch.allclose(found, expected.expand_as(found), rtol=1e-5, atol=0)


def randomized(name: str) -> nn.Module:
    network = NETWORKS[name]
    return randomize(network.make(), network.inputs(CALIBRATION_BATCH), seed=1)


def tensors(output: Tensor | dict[str, Tensor]) -> list[Tensor]:
    return list(output.values()) if isinstance(output, dict) else [output]


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_runs_at_any_batch(name):
    network, model = NETWORKS[name], randomized(name)
    inputs = network.inputs(3, seed=2)
    outputs = tensors(model(*inputs))
    assert outputs[0].shape == (3, network.classes)
    assert all(output.isfinite().all() for output in outputs)
    # Each image gives what it gives in a batch, up to the order in which torch adds.
    single = tensors(model(*(x[1:2].clone() for x in inputs)))
    for one, all_three in zip(single, outputs, strict=True):
        torch.testing.assert_close(one, all_three[1:2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_eval_is_deterministic_and_leaves_the_images_alone(name):
    model, inputs = randomized(name), NETWORKS[name].inputs(2, seed=2)
    before = [x.clone() for x in inputs]
    first, again = (tensors(model(*inputs)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))
    assert not torch.equal(first[0][0], first[0][1])


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_multiplies_signs_where_the_origin_does(name):
    model = randomized(name)
    with Products() as products:
        model(*NETWORKS[name].inputs(3, seed=2))
    assert Layers(*products.counts) == LAYERS[name]
    assert not any(products.constant)


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_randomizing_repeats(name):
    network = NETWORKS[name]
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        model = network.make()
        state = torch.get_rng_state()
        randomize(model, network.inputs(CALIBRATION_BATCH), seed=1)
        assert torch.equal(torch.get_rng_state(), state)
        outputs.append(first_output(model(*network.inputs(2))))
    assert torch.equal(*outputs)


@torch.no_grad()
def test_random_scales_have_both_signs_and_zeros():
    norms = [m for m in randomized("bnew").modules() if isinstance(m, nn.BatchNorm2d)]
    scales = torch.cat([norm.weight for norm in norms])
    assert {-1.0, 0.0, 1.0} == set(scales.sign().tolist())
    assert (scales == 0).float().mean() < 0.15
    assert all(norm.momentum == 0.1 for norm in norms)


@pytest.mark.parametrize("name", NETWORKS)
def test_training_lowers_the_loss(name):
    network = NETWORKS[name]
    model = network.make()
    inputs = network.inputs(CALIBRATION_BATCH)
    labels = torch.arange(CALIBRATION_BATCH) % network.classes
    losses = train_briefly(model, inputs, labels, steps=12)
    assert len(losses) == 12
    # Losses of so few steps jump; all of these networks learn 16 images nevertheless.
    assert sum(losses[-3:]) / 3 < losses[0]
    assert not model.training
    with Products() as products, torch.no_grad():
        model(*network.inputs(3, seed=2))
    assert Layers(*products.counts) == LAYERS[name]


@pytest.mark.parametrize(
    ("make", "settings", "count"),
    [
        (binarynet_old.VGG, {}, 36_461_450),
        (binarynet_old.VGG, {"num_classes": 100}, 36_553_700),
        (binarynet_new.VGG, {}, 36_461_450),
        (binarynet_old.AlexNet, {}, 77_196_920),
        (binarynet_old.ResNet, {}, 4_338_030),
        (binarynet_old.ResNet, {"num_classes": 100}, 4_367_100),
        (binarynet_old.MLP, {}, 80_431_114),
        (birealnet.BiRealNet, {}, 11_689_512),  # as ResNet-18, which has the same layers
        (binaryconnect.CNN, {}, 14_037_416),
        (bnew.BiRealResNet20, {}, 275_786),
        (bnew.BiRealResNet20, {"num_classes": 100}, 281_636),
    ],
)
def test_full_size_has_the_published_number_of_parameters(make, settings, count):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in make(**settings).parameters()) == count


def test_full_reactnet_has_the_published_numbers_of_weights():
    with torch.device("meta"):
        model = reactnet.ReActNetA()
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert round(sum(sizes.values()) / 1e6, 2) == 29.34
    assert sum(size for name, size in sizes.items() if name.endswith("weights")) == 28_253_184


def test_full_nin_and_ebnn_have_the_published_layers():
    with torch.device("meta"):
        convs = [m for m in xnornet.NIN().modules() if isinstance(m, nn.Conv2d)]
        linears = [
            m
            for n in (ebnn.ConvNet(), ebnn.AlexNet())
            for m in n.modules()
            if isinstance(m, nn.Linear)
        ]
    assert [conv.out_channels for conv in convs] == [192, 160, 96, 192, 192, 192, 192, 192, 10]
    assert [linear.in_features for linear in linears] == [360, 40]


def test_old_layers_overwrite_what_they_are_given():
    """The oddities that make this origin worth testing with."""
    layer = binarynet_old.BinLinear(4, 2)
    latent = layer.weight.detach().clone()
    x = torch.tensor([[0.5, -0.2, 3.0, 0.0]])
    layer(x)
    assert x.tolist() == [[1, -1, 1, 0]]
    assert torch.equal(layer.weight.org, latent)
    assert torch.equal(layer.weight, latent.sign())


def test_xnor_weights_are_binarized_outside_of_the_model():
    network = NETWORKS["xnornet"]
    model = network.make()
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    outer = [conv.weight.detach().clone() for conv in (convs[0], convs[-1])]
    bin_op = xnornet.BinOp(model)
    bin_op.binarize()
    for conv in convs[1:-1]:
        assert all(len(kernel.unique()) == 2 for kernel in conv.weight)
    assert torch.equal(convs[0].weight, outer[0])
    assert torch.equal(convs[-1].weight, outer[1])
    bin_op.restore()
    assert len(convs[1].weight[0].unique()) > 2
