"""Hooks against NumPy in float64, and every method in a plain loop, in Lightning and under DDP."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext import optim, quantizers

E = 2.0**-7
STEPS = 12
# Each step is a dozen roundings of float64 on either side, and no step amplifies them.
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def weights(shape: tuple[int, ...], limit: float = 1.0) -> np.ndarray:
    return np.random.default_rng(6).uniform(-limit, limit, size=shape)


def gradients(shape: tuple[int, ...]) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.normal(size=shape) for _ in range(STEPS)]


def parameter_of(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def sign(w: np.ndarray) -> np.ndarray:
    return np.where(w >= 0, 1.0, -1.0)


# --- BNEW -----------------------------------------------------------------------------------------


def test_bnew_phase_2():
    epochs, strength, lr = 10, 0.5, 0.125
    parameter = parameter_of(weights((3, 5)))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    bnew = optim.Bnew(optimizer, [parameter], epochs=epochs, strength=strength, frozen_epochs=3)
    w = weights((3, 5))
    for epoch in range(epochs):
        bnew.set_epoch(epoch)
        ramp = min(strength * max(epoch, 1) / epochs, 1)
        assert bnew.strength == ramp
        if epoch == 7:
            w = sign(w)
        assert bnew.frozen == (epoch >= 7)
        for g in gradients((3, 5)):
            parameter.grad = torch.tensor(g)
            optimizer.step()
            if epoch < 7:
                w = w - lr * g
                w = np.clip(w + 2 * ramp * w, -1, 1)
            np.testing.assert_allclose(parameter.detach(), w, **CLOSE)
    assert torch.equal(parameter.detach().abs(), torch.ones(3, 5).double())


def test_bnew_strength_is_at_most_1():
    parameter = parameter_of(weights((2,)))
    bnew = optim.Bnew(
        torch.optim.SGD([parameter], lr=0.1), [parameter], epochs=4, strength=3.0, frozen_epochs=0
    )
    found = []
    for epoch in range(4):
        bnew.set_epoch(epoch)
        found.append(bnew.strength)
    assert found == [0.75, 0.75, 1.0, 1.0]
    assert not bnew.frozen


def test_bnew_freezes_to_a_scaled_sign_and_lets_the_others_learn():
    weight, other = parameter_of(weights((3, 5))), parameter_of(weights((3,)))
    adam = torch.optim.Adam([weight, other], lr=0.1, weight_decay=0.1)
    bnew = optim.Bnew(adam, [weight], epochs=2, frozen_epochs=1, quantizer="magnitude_aware_sign")
    for epoch in range(2):
        bnew.set_epoch(epoch)
        frozen = weight.detach().clone()
        before = other.detach().clone()
        weight.grad, other.grad = torch.ones_like(weight), torch.ones_like(other)
        adam.step()
        assert not torch.equal(other, before)
    assert torch.equal(weight, frozen)
    scale = weight.detach().abs()
    assert torch.equal(scale, scale[:, :1].expand(3, 5))
    # A resumed run does not scale the scaled ones again, which could round.
    resumed = optim.Bnew(adam, [weight], epochs=2, frozen_epochs=1, quantizer="xnor_sign")
    resumed.load_state_dict(bnew.state_dict())
    assert torch.equal(weight, frozen) and resumed.frozen and resumed.epoch == 1
    for hook in (bnew, resumed):
        hook.remove()
    weight.grad = torch.ones_like(weight)
    adam.step()
    assert not torch.equal(weight, frozen)


def test_bnew_errors():
    parameter = parameter_of(weights((2,)))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for settings, message in (
        ({"epochs": 0}, "epochs must be a number of at least 1, found 0"),
        ({"epochs": 10}, "frozen_epochs must be .* at most 10, found 19"),
        ({"epochs": 30, "strength": -1.0}, "strength must be a number of at least 0, found -1.0"),
        ({"epochs": 30, "quantizer": "sing"}, "one of ste_sign.*found 'sing'"),
    ):
        with pytest.raises(ValueError, match=message):
            optim.Bnew(optimizer, [parameter], **settings)
    with pytest.raises(ValueError, match="params must hold at least one parameter, found none"):
        optim.Bnew(optimizer, [], epochs=30)
    bnew = optim.Bnew(optimizer, [parameter], epochs=30)
    with pytest.raises(ValueError, match="epoch must be a number of at least 0, found -1"):
        bnew.set_epoch(-1)


# --- XNOR-Net and latent weights ------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(4, 3), (4, 3, 2, 2)])
def test_xnor_net_training_is_the_published_one(shape):
    """Centre, clip, binarize; gradient rule with its factor; the optimizer on the latent weight."""
    lr = 0.02
    parameter = parameter_of(weights(shape, 0.9))
    optimizer = torch.optim.SGD([parameter], lr=lr)
    optim.project(optimizer, [parameter], optim.centered)
    optim.project(optimizer, [parameter], lambda w: w.clamp(-1, 1))
    latent = optim.LatentWeights(optimizer, [parameter], "xnor_sign")
    factor = optim.xnor_gradient_factor(parameter)
    n = math.prod(shape[1:])
    assert factor == (1 - 1 / 3) * n

    w = weights(shape, 0.9)
    clipped = 0
    for g in gradients(shape):
        w = w - w.mean(1, keepdims=True)
        clipped += (np.abs(w) > 1).sum()
        w = np.clip(w, -1, 1)
        rest = tuple(range(1, len(shape)))
        alpha = np.abs(w).mean(rest, keepdims=True)
        np.testing.assert_allclose(latent.latent[0], w, **CLOSE)
        np.testing.assert_allclose(parameter.detach(), alpha * sign(w), **CLOSE)
        mean = (g * sign(w)).mean(rest, keepdims=True)
        g_latent = (g * alpha * (np.abs(w) <= 1) + sign(w) * mean) * factor
        w = w - lr * g_latent
        parameter.grad = torch.tensor(g * factor)
        optimizer.step()
    assert clipped > 0
    latent.remove()
    w = np.clip(w - w.mean(1, keepdims=True), -1, 1)
    np.testing.assert_allclose(parameter.detach(), w, **CLOSE)


def test_xnor_gradient_factor_through_the_hook():
    layer = bnn.BinaryConv2d(4, 2, 3, weight_quantizer="xnor_sign", bias=False).double()
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    layer(x).square().sum().backward()
    plain = layer.weight.grad.clone()
    layer.zero_grad()
    (handle,) = optim.scale_gradients(bnn.binary_parameters(layer), optim.xnor_gradient_factor)
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain * (0.75 * 36))
    handle.remove()
    layer.zero_grad()
    layer(x).square().sum().backward()
    assert torch.equal(layer.weight.grad, plain)


@pytest.mark.parametrize("quantizer", ["identity_sign", "ste_sign", "xnor_sign"])
def test_latent_weights_are_those_of_a_binary_layer(quantizer):
    """A float layer with its weights quantized outside learns what a binary layer learns."""
    torch.manual_seed(0)
    inside = bnn.BinaryConv2d(2, 3, 3, input_quantizer=None, weight_quantizer=quantizer).double()
    outside = nn.Conv2d(2, 3, 3).double()
    outside.load_state_dict(inside.state_dict())
    optimizers = [torch.optim.Adam(layer.parameters(), lr=0.3) for layer in (inside, outside)]
    bnn.clip_weights(optimizers[0], inside, limit=0.125)
    bnn.clip_weights(optimizers[1], [outside.weight], limit=0.125)
    latent = optim.LatentWeights(optimizers[1], [outside.weight], quantizer)
    for _ in range(10):
        x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
        for layer, optimizer in zip((inside, outside), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).sin().sum().backward()
            optimizer.step()
    assert inside.weight.detach().abs().max() == 0.125
    # The layer scales sums and the other weights: they round differently, and Adam divides by the
    # root of what it squared.
    torch.testing.assert_close(latent.latent[0], inside.weight.detach(), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(outside.weight, inside.binary_weight, rtol=1e-9, atol=1e-10)


def test_latent_weights_without_gradient_and_errors():
    weight = parameter_of(weights((2, 3)))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    latent = optim.LatentWeights(optimizer, [weight], "ste_sign")
    optimizer.step()
    assert np.array_equal(weight.detach(), sign(weights((2, 3))))
    with pytest.raises(ValueError, match=r"shapes \[\[2, 3\]\], found \[\[3, 2\]\]"):
        latent.load_state_dict({"latent": [torch.ones(3, 2)]})
    latent.remove()
    assert np.array_equal(weight.detach(), weights((2, 3)))
    with pytest.raises(ValueError, match="one of ste_sign.*found 'sing'"):
        optim.LatentWeights(optimizer, [weight], "sing")
    for make in (
        lambda: optim.LatentWeights(optimizer, [], "ste_sign"),
        lambda: optim.project(optimizer, [], optim.centered),
        lambda: optim.scale_gradients([], optim.xnor_gradient_factor),
        lambda: optim.distance_to_binary([]),
        lambda: optim.FlipRatio([]),
    ):
        with pytest.raises(ValueError, match="params must hold at least one parameter, found none"):
            make()


def test_projections_act_now_and_after_every_step_in_order():
    weight = parameter_of(np.array([[3.0, 1.0], [0.5, 0.0]]))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    handle = optim.project(optimizer, [weight], optim.centered)
    optim.project(optimizer, [weight], lambda w: w.clamp(-0.5, 0.5))
    assert weight.tolist() == [[0.5, -0.5], [0.25, -0.25]]
    weight.grad = torch.tensor([[-2.0, 0.0], [0.0, 0.0]], dtype=torch.float64)
    optimizer.step()
    assert weight.tolist() == [[0.5, -0.5], [0.25, -0.25]]
    handle.remove()
    optimizer.step()
    assert weight.tolist() == [[0.5, -0.5], [0.25, -0.25]]
    optimizer.step()
    assert weight[0].tolist() == [0.5, -0.5]


# --- weights at test time, measures ---------------------------------------------------------------


def test_weights_as():
    real = {"input_quantizer": None}
    model = nn.Sequential(
        bnn.BinaryLinear(20, 20, weight_quantizer="stochastic_sign", **real),
        bnn.BinaryLinear(20, 20, weight_quantizer=None, **real),
    ).eval()
    before = [layer.weight_quantizer for layer in model]
    x = torch.randn(3, 20)
    first, second = model
    signed = [torch.where(layer.weight >= 0, 1.0, -1.0) for layer in model]

    assert torch.equal(model(x), second(F.linear(x, signed[0]) + first.bias))
    with optim.weights_as(model, "binary"):
        y = F.linear(x, signed[0]) + first.bias
        assert torch.equal(model(x), F.linear(y, signed[1]) + second.bias)
    with optim.weights_as(model, "real"):
        y = F.linear(x, first.weight) + first.bias
        assert torch.equal(model(x), F.linear(y, second.weight) + second.bias)
    with optim.weights_as(model, "drawn"):
        assert not torch.equal(model(x), model(x))
        assert set(first.binary_weight.flatten().tolist()) == {-1.0, 1.0}
    with pytest.raises(KeyError), optim.weights_as(model, "real"):
        raise KeyError
    assert [layer.weight_quantizer for layer in model] == before
    with pytest.raises(ValueError, match="choice must be one of binary, real, drawn, found 'all'"):
        optim.weights_as(model, "all").__enter__()
    with pytest.raises(ValueError, match="model must hold a binary layer, found none in Linear"):
        optim.weights_as(nn.Linear(2, 2), "real").__enter__()


def test_mean_of_draws_tends_to_the_real_weights():
    """The mean of signs that are +1 with probability (1 + w) / 2 is w."""
    layer = bnn.BinaryLinear(8, 4, input_quantizer=None, bias=False)
    nn.init.uniform_(layer.weight, -1, 1)
    x = torch.randn(5, 8)
    draws = 4000
    found = optim.mean_of_draws(layer.eval(), x, draws=draws)
    variance = F.linear(x.square(), 1 - layer.weight.detach().square()) / draws
    # Of 20 normal variates none is beyond 5 sigma but once in 90,000 seeds, and this seed is fixed.
    assert ((found - F.linear(x, layer.weight)).abs() < 5 * variance.sqrt()).all()
    torch.manual_seed(3)
    one = optim.mean_of_draws(layer, x, draws=1)
    torch.manual_seed(3)
    assert torch.equal(one, F.linear(x, quantizers.stochastic_sign(layer.weight)))
    with pytest.raises(ValueError, match="draws must be at least 1, found 0"):
        optim.mean_of_draws(layer, x, draws=0)


def test_distance_to_binary():
    weights = [torch.tensor([1.0, -1.0, 0.5, -0.0]), torch.tensor([[-0.75], [2.0]])]
    assert optim.distance_to_binary(weights) == (0 + 0 + 0.5 + 1 + 0.25 + 1) / 6
    assert optim.distance_to_binary(torch.ones(3, 3).sign()) == 0


def test_flip_ratio():
    weight = nn.Parameter(torch.tensor([1.0, -1.0, 0.0, -0.5]))
    other = nn.Parameter(torch.ones(2, 2))
    flips = optim.FlipRatio(iter([weight, other]))
    assert flips.update() == 0
    with torch.no_grad():
        weight.copy_(torch.tensor([2.0, 0.0, -0.0, 0.5]))  # the second and the last
        other[0, 0] = -1e-9
    assert flips.update() == 3 / 8
    assert flips.update() == 0


# --- every method, in any loop --------------------------------------------------------------------


@dataclass
class Method:
    """What a training loop needs to know of a method."""

    optimizer: torch.optim.Optimizer
    parts: list[Any] = field(default_factory=list)  # with a state_dict
    by_epoch: list[Any] = field(default_factory=list)  # with a set_epoch

    def set_epoch(self, epoch: int) -> None:
        for part in self.by_epoch:
            part.set_epoch(epoch)


EPOCHS = 6
METHODS: dict[str, Callable[[nn.Module], Method]] = {}


def method(make: Callable[[nn.Module], Method]) -> Callable[[nn.Module], Method]:
    METHODS[make.__name__] = make
    return make


def adam_with_clip(model: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02, **settings)
    bnn.clip_weights(optimizer, bnn.binary_parameters(model))
    return optimizer


@method
def straight_through(model: nn.Module) -> Method:
    return Method(adam_with_clip(model))


@method
def binaryconnect(model: nn.Module) -> Method:
    bnn.set_weight_quantizer(model, "stochastic_sign")
    optimizer = torch.optim.Adam(optim.glorot_groups(model, lr=0.02))
    bnn.clip_weights(optimizer, model)
    return Method(optimizer)


@method
def xnor_net(model: nn.Module) -> Method:
    bnn.set_weight_quantizer(model, "xnor_sign")
    binary = bnn.binary_parameters(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    optim.project(optimizer, binary, optim.centered)
    bnn.clip_weights(optimizer, binary)
    optim.scale_gradients(binary, optim.xnor_gradient_factor)
    return Method(optimizer)


@method
def xnor_net_outside(model: nn.Module) -> Method:
    bnn.set_weight_quantizer(model, None)
    binary = bnn.binary_parameters(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    optim.project(optimizer, binary, optim.centered)
    bnn.clip_weights(optimizer, binary)
    return Method(optimizer, [optim.LatentWeights(optimizer, binary, "xnor_sign")])


@method
def two_steps(model: nn.Module) -> Method:
    class Steps:
        def set_epoch(self, epoch: int) -> None:
            second = epoch >= EPOCHS // 2
            bnn.set_weight_quantizer(model, "magnitude_aware_sign" if second else None)

    return Method(torch.optim.Adam(model.parameters(), lr=0.02), [], [Steps()])


@method
def bnew(model: nn.Module) -> Method:
    bnn.set_weight_quantizer(model, None)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    hook = optim.Bnew(
        optimizer, bnn.binary_parameters(model), epochs=EPOCHS, strength=0.1, frozen_epochs=2
    )
    return Method(optimizer, [hook], [hook])


def mirror_descent(model: nn.Module, **settings: Any) -> Method:
    bnn.set_weight_quantizer(model, None)
    binary, others = optim.split_parameters(model)
    mirror = optim.MirrorDescent(binary, lr=0.02, growth=1.05, growth_interval=2, **settings)
    return Method(optim.Combined(mirror, torch.optim.Adam(others, lr=0.02)))


@method
def tanh(model: nn.Module) -> Method:
    return mirror_descent(model, stable=False)


@method
def tanh_stable(model: nn.Module) -> Method:
    return mirror_descent(model)


@method
def softmax(model: nn.Module) -> Method:
    return mirror_descent(model, mirror="softmax", stable=False)


@method
def softmax_stable(model: nn.Module) -> Method:
    return mirror_descent(model, mirror="softmax")


@method
def bop(model: nn.Module) -> Method:
    binary, others = optim.split_parameters(model)
    flips = optim.Bop(binary, lr=0.05, threshold=1e-3)
    return Method(optim.Combined(flips, torch.optim.Adam(others, lr=0.02)))


@method
def regime(model: nn.Module) -> Method:
    entries = {
        0: {"optimizer": "SGD", "lr": 0.05, "momentum": 0.9},
        1: {"optimizer": "Adam", "lr": 0.02},
        3: {"lr": 0.01},
    }
    optimizer = optim.RegimeOptimizer(optim.glorot_groups(model), entries)
    bnn.clip_weights(optimizer, model)
    return Method(optimizer, [], [optimizer])


def small_model() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(
        bnn.BinaryLinear(12, 32, input_quantizer=None, bias=False),
        nn.BatchNorm1d(32),
        nn.Hardtanh(),
        bnn.BinaryLinear(32, 2, bias=False),
        nn.BatchNorm1d(2),
    )


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(8)
    x = torch.randn(5, 64, 12, generator=generator)
    direction = torch.randn(12, generator=generator)
    return [(images, (images @ direction > 0).long()) for images in x]


def train(model: nn.Module, method: Method, epochs: range, *, closure: bool = False) -> list[float]:
    """A plain loop; the mean loss of every epoch."""
    losses = []
    for epoch in epochs:
        torch.manual_seed(epoch)  # of the draws, for those that draw
        method.set_epoch(epoch)
        total = 0.0
        for x, target in batches():

            def compute(x: Tensor = x, target: Tensor = target) -> Tensor:
                method.optimizer.zero_grad()
                loss = F.cross_entropy(model(x), target)
                loss.backward()
                return loss

            if closure:
                loss = method.optimizer.step(compute)
            else:
                loss = compute()
                method.optimizer.step()
            total += loss.item()
        losses.append(total / len(batches()))
    return losses


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", METHODS)
def test_training_learns_and_ends_binary(name):
    model = small_model()
    losses = train(model, METHODS[name](model), range(EPOCHS))
    assert losses[-1] < 0.6 * losses[0]
    model.eval()
    with optim.weights_as(model, "binary"):
        for layer in (model[0], model[3]):
            magnitude = layer.binary_weight.detach().abs()
            assert torch.equal(magnitude, magnitude[:, :1].expand_as(magnitude))
        right = [(model(x).argmax(1) == target).double().mean() for x, target in batches()]
    assert sum(right) / len(right) > 0.75  # it is half of them that chance gets right


@pytest.mark.parametrize("name", METHODS)
def test_resume_is_exact(name):
    whole = small_model()
    train(whole, METHODS[name](whole), range(EPOCHS))
    for at in (1, 5):
        first = small_model()
        method = METHODS[name](first)
        train(first, method, range(at))
        file = io.BytesIO()
        torch.save(
            {
                "model": first.state_dict(),
                "optimizer": method.optimizer.state_dict(),
                "parts": [part.state_dict() for part in method.parts],
            },
            file,
        )
        file.seek(0)
        saved = torch.load(file, weights_only=True)
        second = small_model()
        resumed = METHODS[name](second)
        second.load_state_dict(saved["model"])
        resumed.optimizer.load_state_dict(saved["optimizer"])
        for part, state in zip(resumed.parts, saved["parts"], strict=True):
            part.load_state_dict(state)
        train(second, resumed, range(at, EPOCHS))
        assert_same(second.state_dict(), whole.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_closures_change_nothing(name):
    """Lightning computes gradients in a closure, inside of the optimizer's step."""
    results = []
    for closure in (False, True):
        model = small_model()
        train(model, METHODS[name](model), range(EPOCHS), closure=closure)
        results.append(state_of(model))
    assert_same(*results)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore")  # Lightning's, about loaders and loggers
def test_lightning_trains_what_the_plain_loop_trains(name, tmp_path):
    import lightning as L  # here, where the processes of the test below do not wait for it

    class Lit(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = small_model()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            self.method = METHODS[name](self.model)
            return self.method.optimizer

        def on_train_epoch_start(self) -> None:
            torch.manual_seed(self.current_epoch)
            self.method.set_epoch(self.current_epoch)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            x, target = batch
            return F.cross_entropy(self.model(x), target)

    plain, lit = small_model(), Lit()
    train(plain, METHODS[name](plain), range(EPOCHS))
    trainer = L.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    # A generator of its own, or the loader would draw from that of the stochastic signs.
    loader = torch.utils.data.DataLoader(batches(), batch_size=None, generator=torch.Generator())
    trainer.fit(lit, loader)
    assert_same(lit.model.state_dict(), plain.state_dict())


@pytest.mark.parametrize("name", METHODS)
def test_compiled_models_train_alike(name):
    """The method is made of the compiled model; its parameters are the model's."""
    torch._dynamo.reset()
    plain, model = small_model(), small_model()
    losses = train(plain, METHODS[name](plain), range(2))
    compiled = torch.compile(model, backend="aot_eager")
    assert train(compiled, METHODS[name](compiled), range(2)) == losses
    assert_same(model.state_dict(), plain.state_dict())


# --- two processes --------------------------------------------------------------------------------


SCALED = ("xnor_net", "two_steps")  # methods whose layers scale gradients before processes add them


def linear_model() -> nn.Module:
    """With a loss that is linear in its outputs, all gradients are exact, whatever the weights."""
    torch.manual_seed(1)
    return nn.Sequential(bnn.BinaryLinear(16, 4))


def linear_steps(model: nn.Module, method: Method, part: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(2)
    for epoch in range(EPOCHS):
        torch.manual_seed(epoch)
        method.set_epoch(epoch)
        x = torch.randn(8, 16, generator=generator)
        target = torch.randint(-4, 5, (8, 4), generator=generator).float()
        method.optimizer.zero_grad()
        (model(part(x)) * part(target)).mean().backward()
        method.optimizer.step()


def ddp_worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    results = {}
    for name, make in METHODS.items():
        model = nn.parallel.DistributedDataParallel(linear_model())
        linear_steps(model, make(model), lambda tensor: tensor.chunk(2)[rank])
        results[name] = model.module.state_dict()
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_equal_one(tmp_path):
    torch.multiprocessing.spawn(ddp_worker, (tmp_path,), nprocs=2)
    results = [torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)]
    for name, make in METHODS.items():
        model = linear_model()
        before = state_of(model)
        linear_steps(model, make(model), lambda tensor: tensor)
        assert not torch.equal(model[0].weight, before["0.weight"])
        assert_same(results[0][name], results[1][name])
        if name not in SCALED:
            assert_same(results[0][name], model.state_dict())
            continue
        for key, value in model.state_dict().items():
            # A scale rounds the gradients of each half, and Adam divides by the root of their
            # squares: up to lr = 0.02 in a step times a float32's 1e-7, where they cancel more.
            torch.testing.assert_close(results[0][name][key], value, rtol=0, atol=1e-5)


# --- which parameters -----------------------------------------------------------------------------


def test_split_parameters():
    model = nn.Sequential(
        nn.Linear(4, 4),
        bnn.BinaryLinear(4, 4),
        nn.BatchNorm1d(4),
        bnn.BinaryLinear(4, 4, bias=False, weight_quantizer=None),
    )
    binary, others = optim.split_parameters(model)
    assert [id(p) for p in binary] == [id(model[1].weight), id(model[3].weight)]
    expected = [*model[0].parameters(), model[1].bias, *model[2].parameters()]
    assert [id(p) for p in others] == [id(p) for p in expected]
    for wrapped in (torch.compile(model), nn.Sequential(copy.copy(model))):
        assert [id(p) for p in optim.split_parameters(wrapped)[0]] == [id(p) for p in binary]
    with pytest.raises(ValueError, match="model must hold a binary layer, found none in Linear"):
        optim.split_parameters(model[0])
