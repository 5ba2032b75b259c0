"""The binary layers against plain formulas, and their life in PyTorch."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext import quantizers

CONVS = {1: bnn.BinaryConv1d, 2: bnn.BinaryConv2d, 3: bnn.BinaryConv3d}
FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
SIGNS = ("ste_sign", "approx_sign", "swish_sign")
DETERMINISTIC = (*SIGNS, "magnitude_aware_sign")


def sign(x: Tensor) -> Tensor:
    return (x >= 0).to(x.dtype) * 2 - 1


def finished(sums: Tensor, scale: Tensor | None, bias: Tensor | None) -> Tensor:
    """Exact sums `[N, out, ...]`, rounded to float32 after the product and after the sum."""
    columns = (1, -1) + (1,) * (sums.dim() - 2)
    out = sums.float()
    if scale is not None:
        out = out * scale.view(columns)
    if bias is not None:
        out = out + bias.view(columns)
    return out


def total_padding(layer: nn.Module) -> list[int]:
    """Arguments of F.pad; "same" puts the odd one at the end, as torch does."""
    pads: list[int] = []
    for i in reversed(range(len(layer.kernel_size))):
        if layer.padding == "same":
            total = layer.dilation[i] * (layer.kernel_size[i] - 1)
            pads += [total // 2, total - total // 2]
        else:
            pads += [0, 0] if layer.padding == "valid" else [layer.padding[i]] * 2
    return pads


# --- forward --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("weight_quantizer", DETERMINISTIC)
@pytest.mark.parametrize("shape", [(37,), (5, 37), (2, 3, 37), (0, 37)])
def test_linear_is_the_formula(shape, weight_quantizer, bias):
    layer = bnn.BinaryLinear(37, 6, bias, weight_quantizer=weight_quantizer)
    x = torch.randn(shape)
    scaled = weight_quantizer == "magnitude_aware_sign"
    scale = layer.weight.abs().mean(1) if scaled else None
    sums = F.linear(sign(x).double(), sign(layer.weight).double())
    expected = finished(sums.reshape(-1, 6), scale, layer.bias).reshape(*shape[:-1], 6)
    assert torch.equal(layer(x), expected)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("pad_value", [-1, 0, 1])
@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"padding": 1},
        {"padding": 2, "stride": 2},
        {"padding": 2, "dilation": 2},
        {"padding": 1, "stride": 3, "groups": 2},
        {"padding": "same"},
        {"padding": "same", "dilation": 3, "kernel_size": 2},
        {"padding": "valid", "stride": 2},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": 4, "padding": "same", "groups": 4, "bias": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("weight_quantizer", ["ste_sign", "magnitude_aware_sign"])
@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_conv_is_the_formula(dimensions, weight_quantizer, arguments, pad_value):
    arguments = {"kernel_size": 3, **arguments}
    layer = CONVS[dimensions](
        4, 8, **arguments, pad_value=pad_value, weight_quantizer=weight_quantizer
    )
    x = torch.randn(2, 4, *(7, 6, 5)[:dimensions])
    padded = F.pad(sign(x).double(), total_padding(layer), value=pad_value)
    sums = FUNCTIONS[dimensions](
        padded,
        sign(layer.weight).double(),
        None,
        layer.stride,
        0,
        layer.dilation,
        layer.groups,
    )
    scaled = weight_quantizer == "magnitude_aware_sign"
    scale = layer.weight.flatten(1).abs().mean(1) if scaled else None
    expected = finished(sums, scale, layer.bias)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer(x[0]), expected[0])  # without the batch dimension


def test_conv_of_rectangular_kernels():
    layer = bnn.BinaryConv2d(3, 5, (3, 2), (2, 1), (2, 0), (1, 2), pad_value=-1)
    x = torch.randn(2, 3, 9, 8)
    padded = F.pad(sign(x), (0, 0, 2, 2), value=-1.0)
    sums = F.conv2d(padded, sign(layer.weight), None, (2, 1), 0, (1, 2))
    assert torch.equal(layer(x), finished(sums, None, layer.bias))


def test_bias_is_added_last():
    """A sum that starts from the bias would lose 2^-30 beside 1."""
    layer = bnn.BinaryLinear(2, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
        layer.bias.fill_(2.0**-30)
    assert torch.equal(layer(torch.ones(2)), torch.tensor([2.0, 2.0**-30]))


@pytest.mark.parametrize("weight_quantizer", ["ste_sign", None])
@pytest.mark.parametrize("input_quantizer", ["ste_sign", None])
def test_none_leaves_real(input_quantizer, weight_quantizer):
    arguments = {"input_quantizer": input_quantizer, "weight_quantizer": weight_quantizer}
    conv = bnn.BinaryConv2d(3, 4, 3, padding=1, **arguments)
    linear = bnn.BinaryLinear(7, 4, **arguments)
    for layer, x in ((conv, torch.randn(2, 3, 5, 5)), (linear, torch.randn(2, 7))):
        weight = layer.weight if weight_quantizer is None else sign(layer.weight)
        x_used = x if input_quantizer is None else sign(x)
        sums = F.conv2d(x_used, weight, padding=1) if layer is conv else F.linear(x_used, weight)
        assert torch.equal(layer(x), finished(sums, None, layer.bias))
        assert torch.equal(layer.binary_weight, weight)


def test_callables():
    def halves(weight: Tensor) -> Tensor:
        return 0.5 * quantizers.ste_sign(weight)

    layer = bnn.BinaryLinear(9, 4, input_quantizer=torch.tanh, weight_quantizer=halves)
    x = torch.randn(3, 9)
    expected = F.linear(torch.tanh(x), 0.5 * sign(layer.weight)) + layer.bias
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.binary_weight, 0.5 * sign(layer.weight))


def test_binary_weight_with_scale():
    layer = bnn.BinaryConv2d(3, 4, 3, weight_quantizer="magnitude_aware_sign")
    scale = layer.weight.flatten(1).abs().mean(1)
    assert torch.equal(layer.binary_weight, sign(layer.weight) * scale.view(4, 1, 1, 1))


# --- signs and scale ------------------------------------------------------------------------------


@pytest.mark.parametrize("weight_quantizer", [*DETERMINISTIC, "stochastic_sign"])
def test_signs_and_scale(weight_quantizer):
    layer = bnn.BinaryConv2d(3, 4, 3, weight_quantizer=weight_quantizer)  # in training mode
    signs, scale = layer.signs_and_scale()
    assert torch.equal(signs, sign(layer.weight))
    if weight_quantizer == "magnitude_aware_sign":
        assert torch.equal(scale, layer.weight.flatten(1).abs().mean(1))
    else:
        assert scale is None
    assert not signs.requires_grad


def test_signs_and_scale_of_callables():
    layer = bnn.BinaryLinear(3, 2, weight_quantizer=lambda w: w.sign() * w.new_tensor([[2], [0.3]]))
    signs, scale = layer.signs_and_scale()
    assert torch.equal(signs, sign(layer.weight))
    assert torch.equal(scale, torch.tensor([2, 0.3]))
    with pytest.raises(ValueError, match="two values ±s in each output channel"):
        bnn.BinaryLinear(3, 2, weight_quantizer=torch.tanh).signs_and_scale()
    with pytest.raises(ValueError, match="weight_quantizer must quantize.*None"):
        bnn.BinaryLinear(3, 2, weight_quantizer=None).signs_and_scale()


# --- stochastic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("own_generator", [False, True])
def test_stochastic_draws_in_training_only(own_generator):
    quantizer = "stochastic_sign"
    if own_generator:
        generator = torch.Generator().manual_seed(3)
        quantizer = functools.partial(quantizers.stochastic_sign, generator=generator)
    layer = bnn.BinaryLinear(200, 4, input_quantizer=quantizer, weight_quantizer=quantizer)
    x = torch.rand(3, 200) - 0.5
    assert not torch.equal(layer(x), layer(x))
    assert not torch.equal(layer.binary_weight, layer.binary_weight)
    layer.eval()
    expected = finished(F.linear(sign(x), sign(layer.weight)), None, layer.bias)
    assert torch.equal(layer(x), expected)
    assert torch.equal(layer.binary_weight, sign(layer.weight))


# --- gradients ------------------------------------------------------------------------------------


def test_gradients_are_those_of_the_straight_through_formula():
    layer = bnn.BinaryConv2d(3, 4, 3, padding=1, weight_quantizer="magnitude_aware_sign")
    with torch.no_grad():
        layer.weight.mul_(6)  # so that some lie beyond 1
    x = (1.5 * torch.randn(2, 3, 6, 6)).requires_grad_()
    upstream = torch.randint(-2, 3, (2, 4, 6, 6)).float()
    layer(x).backward(upstream)

    scale = layer.weight.detach().flatten(1).abs().mean(1)
    signs = sign(layer.weight.detach()).requires_grad_()
    x_signs = sign(x.detach()).requires_grad_()
    scaled = upstream * scale.view(4, 1, 1)
    F.conv2d(x_signs, signs, padding=1).backward(scaled)
    assert 0 < (layer.weight.abs() > 1).sum() < layer.weight.numel()
    assert torch.equal(layer.weight.grad, signs.grad * (layer.weight.abs() <= 1))
    assert torch.equal(x.grad, x_signs.grad * (x.abs() <= 1))
    assert torch.equal(layer.bias.grad, upstream.sum((0, 2, 3)))


def small_model() -> nn.Sequential:
    return nn.Sequential(
        bnn.BinaryConv2d(2, 8, 3, padding=1, input_quantizer=None),
        nn.BatchNorm2d(8),
        nn.Hardtanh(),
        bnn.BinaryConv2d(8, 4, 3, weight_quantizer="magnitude_aware_sign"),
        nn.Flatten(),
        nn.BatchNorm1d(64),
        bnn.BinaryLinear(64, 2),
    )


def test_training_learns_and_clipping_keeps_the_latent_weights_in_range():
    torch.manual_seed(0)
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.03)
    x = torch.randn(64, 2, 6, 6)
    target = (x.mean((1, 2, 3)) > 0).long()
    start = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        model[1].weight.fill_(3.0)
        model[6].bias.fill_(-4.0)
    handle = bnn.clip_weights(optimizer, model, limit=0.125)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.5 * sum(losses[:5])
    for index in (0, 3, 6):
        weight = model[index].weight
        assert not torch.equal(weight, start[f"{index}.weight"])
        assert weight.abs().max() == 0.125  # 30 Adam steps of 0.03 take some weight to the bound
    assert model[1].weight.min() > 2  # BatchNorm and biases are not clipped
    assert model[6].bias.max() < -2

    handle.remove()
    with torch.no_grad():
        model[0].weight.fill_(5.0)
    optimizer.step()
    assert model[0].weight.min() > 4


def test_clipping_leaves_layers_with_real_weights():
    model = nn.Sequential(bnn.BinaryLinear(2, 2, weight_quantizer=None), bnn.BinaryLinear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    bnn.clip_weights(optimizer, model)
    with torch.no_grad():
        for layer in model:
            layer.weight.fill_(2.0)
    model(torch.ones(2)).sum().backward()
    optimizer.step()
    assert torch.equal(model[0].weight, torch.full((2, 2), 2.0))
    assert torch.equal(model[1].weight, torch.full((2, 2), 1.0))


def test_clipping_of_given_tensors():
    layer, other = bnn.BinaryLinear(2, 2, weight_quantizer=None), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*layer.parameters(), *other.parameters()], lr=0.0)
    bnn.clip_weights(optimizer, iter([layer.weight, other.bias]), limit=0.5)
    with torch.no_grad():
        for parameter in (*layer.parameters(), *other.parameters()):
            parameter.fill_(-2.0)
    optimizer.step()
    assert (layer.weight == -0.5).all() and (other.bias == -0.5).all()
    assert (layer.bias == -2).all() and (other.weight == -2).all()
    with pytest.raises(ValueError, match="a module or the tensors to clip, found no tensor"):
        bnn.clip_weights(optimizer, [])


def test_binary_parameters():
    tied = bnn.BinaryConv2d(3, 3, 1)
    real = bnn.BinaryLinear(3, 3, weight_quantizer=None)
    model = nn.Sequential(nn.Conv2d(3, 3, 1), tied, nn.BatchNorm2d(3), nn.Sequential(tied, real))
    found = bnn.binary_parameters(model)
    assert len(found) == 2 and found[0] is tied.weight and found[1] is real.weight
    with pytest.raises(ValueError, match="model must hold a binary layer, found none in Conv2d"):
        bnn.binary_parameters(model[0])


def test_set_weight_quantizer():
    """The second of two training steps begins with the weights of the first."""
    model = nn.Sequential(
        bnn.BinaryConv2d(2, 3, 3, weight_quantizer=None), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
    )
    x = torch.randn(2, 2, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for quantizer in ("magnitude_aware_sign", quantizers.TanhSign(2.0), None):
        bnn.set_weight_quantizer(model, quantizer)
        expected = bnn.BinaryConv2d(2, 3, 3, weight_quantizer=quantizer)
        expected.load_state_dict(model[0].state_dict())
        assert torch.equal(model[0](x), expected(x))
        assert model[0].input_quantizer is quantizers.ste_sign
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with pytest.raises(ValueError, match="weight_quantizer: .*found 'sing'"):
        bnn.set_weight_quantizer(model, "sing")
    with pytest.raises(ValueError, match="model must hold a binary layer, found none in Conv2d"):
        bnn.set_weight_quantizer(model[2], None)


# --- in PyTorch -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_quantizer", DETERMINISTIC)
def test_autocast(weight_quantizer, dtype):
    """Sums of at most 27 ±1 are exact in half precision, so the result is rounded once."""
    conv = bnn.BinaryConv2d(3, 4, 3, weight_quantizer=weight_quantizer)
    linear = bnn.BinaryLinear(25, 4, weight_quantizer=weight_quantizer)
    for layer, x in ((conv, torch.randn(2, 3, 5, 5)), (linear, torch.randn(2, 25))):
        expected = layer(x).to(dtype)
        with torch.autocast("cpu", dtype):
            out = layer(x)
        assert out.dtype == dtype
        assert torch.equal(out, expected)
        out.sum().backward()
        assert layer.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype):
    layer = bnn.BinaryConv2d(3, 4, 3, weight_quantizer="magnitude_aware_sign", dtype=dtype)
    x = torch.randn(2, 3, 5, 5, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    scale = layer.weight.flatten(1).abs().mean(1, dtype=wide)
    sums = F.conv2d(sign(x).double(), sign(layer.weight).double()).to(wide)
    expected = sums * scale.view(4, 1, 1) + layer.bias.view(4, 1, 1)
    assert torch.equal(layer(x), expected.to(dtype))


def test_channels_last_is_kept():
    layer = bnn.BinaryConv2d(8, 16, 3, padding=1, weight_quantizer="magnitude_aware_sign")
    x = torch.randn(2, 8, 5, 6)
    out = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(out, layer.to(memory_format=torch.contiguous_format)(x))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weight_quantizer", DETERMINISTIC)
def test_compiles_without_graph_break(weight_quantizer, training):
    torch._dynamo.reset()
    model = nn.Sequential(
        bnn.BinaryConv2d(
            3, 4, 3, padding=1, pad_value=1, input_quantizer=None, weight_quantizer=weight_quantizer
        ),
        bnn.BinaryConv2d(4, 4, 3, padding="same", weight_quantizer=weight_quantizer),
        nn.Flatten(),
        bnn.BinaryLinear(100, 2, weight_quantizer=weight_quantizer),
    ).train(training)
    x = torch.randn(2, 3, 5, 5)
    gradients = []
    outputs = []
    for function in (model, torch.compile(model, backend="aot_eager", fullgraph=True)):
        model.zero_grad()
        out = function(x)
        out.sum().backward()
        outputs.append(out)
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert torch.equal(*outputs)
    for eager, compiled in zip(*gradients, strict=True):
        # The trace may add float32 gradients in another order.
        torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-5)


def test_compiles_with_own_generator():
    torch._dynamo.reset()
    generator = torch.Generator()
    quantizer = functools.partial(quantizers.stochastic_sign, generator=generator)
    layer = bnn.BinaryLinear(50, 4, weight_quantizer=quantizer)
    x = torch.randn(3, 50)
    generator.manual_seed(5)
    expected = layer(x)
    generator.manual_seed(5)
    assert torch.equal(torch.compile(layer, backend="aot_eager")(x), expected)


def test_deepcopy():
    generator = torch.Generator().manual_seed(5)
    own = functools.partial(quantizers.stochastic_sign, generator=generator)
    layer = bnn.BinaryLinear(50, 4, input_quantizer=own, weight_quantizer="magnitude_aware_sign")
    x = torch.zeros(3, 50)
    other = copy.deepcopy(layer)
    assert torch.equal(layer(x), other(x))  # the generator's state came along
    with torch.no_grad():
        other.weight.neg_()
    assert not torch.equal(layer.eval()(x), other.eval()(x))
    assert repr(layer) != repr(bnn.BinaryLinear(50, 4))


def test_state_dict(tmp_path: Path):
    for layer, other in (
        (bnn.BinaryConv2d(3, 4, 3, pad_value=-1), bnn.BinaryConv2d(3, 4, 3)),
        (bnn.BinaryLinear(7, 3), bnn.BinaryLinear(7, 3, weight_quantizer="swish_sign")),
    ):
        assert list(layer.state_dict()) == ["weight", "bias"]
        torch.save(layer.state_dict(), tmp_path / "layer.pt")
        other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
        assert torch.equal(other.weight, layer.weight)  # latent, not binary
        assert torch.equal(other.bias, layer.bias)
    assert list(bnn.BinaryConv2d(3, 4, 3, bias=False).state_dict()) == ["weight"]


def test_repr():
    assert repr(bnn.BinaryLinear(3, 2)) == "BinaryLinear(in_features=3, out_features=2, bias=True)"
    layer = bnn.BinaryConv2d(
        3, 2, 3, pad_value=-1, input_quantizer=None, weight_quantizer="magnitude_aware_sign"
    )
    assert repr(layer) == (
        "BinaryConv2d(3, 2, kernel_size=(3, 3), stride=(1, 1), input_quantizer=None, "
        "weight_quantizer=magnitude_aware_sign, pad_value=-1)"
    )


# --- two processes --------------------------------------------------------------------------------


def train_one_step(model: nn.Module, x: Tensor, target: Tensor) -> None:
    """All sums are short binary fractions, so gradients do not depend on their order."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    bnn.clip_weights(optimizer, model)
    (model(x) * target).mean().backward()
    optimizer.step()


def ddp_model() -> nn.Sequential:
    torch.manual_seed(1)
    conv = bnn.BinaryConv2d(3, 4, 2, bias=False)
    return nn.Sequential(conv, nn.Hardtanh(-8, 8), nn.Flatten(), bnn.BinaryLinear(64, 4))


def ddp_batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(8, 3, 5, 5, generator=generator)
    return x, torch.randint(-4, 5, (8, 4), generator=generator).float()


def ddp_worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    model = nn.parallel.DistributedDataParallel(ddp_model())
    x, target = (tensor.chunk(2)[rank] for tensor in ddp_batch())
    train_one_step(model, x, target)
    result = {name: (p.detach(), p.grad) for name, p in model.module.named_parameters()}
    torch.save(result, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path: Path):
    torch.multiprocessing.spawn(ddp_worker, (tmp_path,), nprocs=2)
    model = ddp_model()
    train_one_step(model, *ddp_batch())
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name, parameter in model.named_parameters():
        assert parameter.grad.count_nonzero() > 0
        for result in results:
            weight, grad = result[name]
            assert torch.equal(grad, parameter.grad)
            assert torch.equal(weight, parameter.detach())


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad_value", [2, -2, 0.5, None, "zeros"])
def test_wrong_pad_value(pad_value):
    with pytest.raises(ValueError, match="pad_value must be -1, 0 or 1, found"):
        bnn.BinaryConv2d(3, 4, 3, pad_value=pad_value)


@pytest.mark.parametrize("argument", ["input_quantizer", "weight_quantizer"])
def test_wrong_quantizer(argument):
    for make in (bnn.BinaryLinear, functools.partial(bnn.BinaryConv2d, kernel_size=3)):
        with pytest.raises(ValueError, match=f"{argument}.*one of ste_sign.*found 'sing'"):
            make(3, 4, **{argument: "sing"})
        with pytest.raises(TypeError, match=f"{argument}.*name or a callable, found int 1"):
            make(3, 4, **{argument: 1})


def test_wrong_clipping():
    model = nn.Sequential(nn.Linear(2, 2), bnn.BinaryLinear(2, 2, weight_quantizer=None))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="model must hold a binary layer, found none"):
        bnn.clip_weights(optimizer, model)
    for limit in (0, -1.0, math.nan):
        with pytest.raises(ValueError, match="limit must be positive, found"):
            bnn.clip_weights(optimizer, small_model(), limit)
