"""Every update rule against NumPy in float64, step by step, and what optimizers of torch can do."""

from __future__ import annotations

import copy
import io
import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bnn_ext import nn as bnn
from bnn_ext import optim, quantizers

E = 2.0**-7  # exact in every dtype, also as 1 ± E
STEPS = 12
# A step is a dozen operations that float64 rounds on either side, their errors add up over the
# steps, and none of the steps here amplifies them by much.
CLOSE = {"rtol": 1e-12, "atol": 1e-14}


def gradients(shape: tuple[int, ...] = (3, 5), steps: int = STEPS) -> list[np.ndarray]:
    generator = np.random.default_rng(5)
    return [generator.normal(size=shape) for _ in range(steps)]


def weights(shape: tuple[int, ...] = (3, 5)) -> np.ndarray:
    return np.random.default_rng(6).uniform(-1, 1, size=shape)


def run(optimizer: torch.optim.Optimizer, parameter: Tensor) -> Iterator[np.ndarray]:
    """The parameter after every step along `gradients()`."""
    for grad in gradients(tuple(parameter.shape)):
        parameter.grad = torch.tensor(grad)
        optimizer.step()
        yield parameter.detach().numpy().copy()


def parameter_of(values: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


class NumpyAdam:
    """The direction of Adam (Kingma, Ba, 2014, algorithm 1)."""

    def __init__(self, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.betas, self.eps = betas, eps
        self.m = self.v = 0.0
        self.t = 0

    def __call__(self, g: np.ndarray) -> np.ndarray:
        b1, b2 = self.betas
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g**2
        return (self.m / (1 - b1**self.t)) / (np.sqrt(self.v / (1 - b2**self.t)) + self.eps)


# --- Bop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lr", "threshold"), [(0.3, 0.1), (0.05, 1e-8), (1.0, 0.5), (0.0, 0.0)])
def test_bop(lr, threshold):
    parameter = parameter_of(weights())
    optimizer = optim.Bop([parameter], lr=lr, threshold=threshold)
    w, m = np.where(weights() >= 0, 1.0, -1.0), 0.0
    assert np.array_equal(parameter.detach(), w)
    flips = 0
    for g, found in zip(gradients(), run(optimizer, parameter), strict=True):
        m = (1 - lr) * m + lr * g
        flip = (np.abs(m) > threshold) & (np.sign(m) == np.sign(w))
        flips += flip.sum()
        w = np.where(flip, -w, w)
        assert np.array_equal(found, w)
    assert (flips > 0) == (lr > 0)
    np.testing.assert_allclose(optimizer.state[parameter]["exp_avg"], m, **{**CLOSE, "atol": 1e-15})


def test_bop_threshold_is_strict_on_both_sides():
    """At lr 1/2 the mean of the first step is half the gradient, exactly."""
    w = torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0, -1.0, -1.0, -1.0])
    g = torch.tensor([0.5, 0.5 + E, -0.5, -0.5 - E, 0.5, 0.5 + E, -0.5, -0.5 - E])
    parameter = nn.Parameter(w.clone())
    optimizer = optim.Bop([parameter], lr=0.5, threshold=0.25)
    parameter.grad = g
    optimizer.step()
    assert (parameter.detach() != w).tolist() == [False, True] + [False] * 5 + [True]


def test_bop_weights_are_signs_whatever_was_written():
    parameter = nn.Parameter(torch.tensor([0.5, -0.25, 0.0, -0.0, math.nan]))
    optimizer = optim.Bop([parameter], threshold=1.0)
    assert parameter.tolist() == [1, -1, 1, 1, -1]
    with torch.no_grad():
        parameter.mul_(0.125)
    parameter.grad = torch.zeros(5)
    optimizer.step()
    assert parameter.tolist() == [1, -1, 1, 1, -1]


def test_bop_follows_a_schedule_of_torch():
    parameter = parameter_of(weights())
    optimizer = optim.Bop([parameter], lr=0.5, threshold=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=STEPS)
    w, m = np.where(weights() >= 0, 1.0, -1.0), 0.0
    for i, (g, found) in enumerate(zip(gradients(), run(optimizer, parameter), strict=True)):
        rate = 0.5 * (1 - i / STEPS)
        m = (1 - rate) * m + rate * g
        w = np.where(w * m > 0.1, -w, w)
        assert np.array_equal(found, w)
        schedule.step()


# --- mirror descent -------------------------------------------------------------------------------


@pytest.mark.parametrize(("sharpness", "growth", "interval"), [(1.0, 1.0, 1), (2.0, 1.25, 3)])
@pytest.mark.parametrize("form", ["tanh", "softmax", "tanh-S", "softmax-S"])
def test_mirror_descent(form, sharpness, growth, interval):
    lr, betas, eps = 0.05, (0.8, 0.95), 1e-6
    parameter = parameter_of(weights())
    optimizer = optim.MirrorDescent(
        [parameter],
        lr=lr,
        betas=betas,
        eps=eps,
        mirror=form.removesuffix("-S"),
        stable=form.endswith("-S"),
        sharpness=sharpness,
        growth=growth,
        growth_interval=interval,
    )
    steps = published_mirror_steps(form, lr, betas, eps, sharpness, growth, interval)
    np.testing.assert_allclose(parameter.detach(), next(steps), **CLOSE)
    for found, expected in zip(run(optimizer, parameter), steps, strict=True):
        np.testing.assert_allclose(found, expected, **CLOSE)


def published_mirror_steps(form, lr, betas, eps, b, growth, interval) -> Iterator[np.ndarray]:
    """The weights at first and after every step, as md-bnn writes its updates."""
    v, levels = weights(), np.array([-1.0, 1.0]).reshape(2, 1, 1)
    u = np.exp(b * v * levels)
    u, v2, w = u / u.sum(0), v * levels, np.tanh(b * v)
    adam, adams = NumpyAdam(betas, eps), [NumpyAdam(betas, eps) for _ in levels]
    yield w
    for t, g in enumerate(gradients(), 1):
        before = b
        b = b * growth if t % interval == 0 else b
        if form == "tanh":
            r = (1 + w) / (1 - w + 1e-20) * np.exp(-2 * lr * before * adam(g))
            w = (r - 1) / (r + 1 + 1e-20)
            yield w
        elif form == "tanh-S":
            v = v - lr * adam(g)
            yield np.tanh(b * v)
        else:
            # Each level has a variable and an Adam of its own; its gradient is g times the level.
            d = np.stack([own(g * level) for own, level in zip(adams, (-1, 1), strict=True)])
            if form == "softmax":
                u = u * np.exp(-lr * before * d)
                u = u / u.sum(0)
                yield (levels * u).sum(0)
            else:
                v2 = v2 - lr * d
                e = np.exp(b * (v2 - v2.max(0)))
                yield (levels * e / e.sum(0)).sum(0)


def test_mirror_descent_is_a_tanh_quantizer_under_adam():
    """MD-tanh-S lives in the optimizer or in the layer; Adam moves the same dual variables."""
    torch.manual_seed(0)
    x, target = torch.randn(40, 6, dtype=torch.float64), torch.randn(40, 3, dtype=torch.float64)
    quantizer = quantizers.TanhSign()
    inside = bnn.BinaryLinear(6, 3, input_quantizer=None, weight_quantizer=None).double()
    latent = copy.deepcopy(inside)
    bnn.set_weight_quantizer(latent, quantizer)
    mirror = optim.Combined(
        optim.MirrorDescent([inside.weight], lr=0.01, growth=1.5, growth_interval=4),
        torch.optim.Adam([inside.bias], lr=0.01),
    )
    adam = torch.optim.Adam(latent.parameters(), lr=0.01)
    for step in range(30):
        quantizer.sharpness = 1.5 ** (step // 4)
        for layer, optimizer in ((inside, mirror), (latent, adam)):
            optimizer.zero_grad()
            (layer(x) - target).square().mean().backward()
            optimizer.step()
    quantizer.sharpness = 1.5 ** (30 // 4)
    # Adam divides where its second mean is small, so roundings grow a little faster than above.
    torch.testing.assert_close(inside.weight, latent.binary_weight, rtol=1e-9, atol=1e-12)
    dual = mirror.state[inside.weight]["point"]
    torch.testing.assert_close(dual, latent.weight, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mirror", ["tanh", "softmax"])
@pytest.mark.parametrize("stable", [True, False])
def test_mirror_descent_reaches_the_signs_and_stays_finite(mirror, stable):
    parameter = nn.Parameter(torch.tensor([0.5, -0.5, 1e-3, -1e-3, 0.0]))
    optimizer = optim.MirrorDescent([parameter], mirror=mirror, stable=stable, lr=0.1, growth=10)
    for _ in range(400):
        parameter.grad = -parameter.detach().sign()
        optimizer.step()
    assert parameter.tolist() == [1, -1, 1, -1, 0]
    state = optimizer.state[parameter]
    assert state["point"].isfinite().all()


def test_softmax_leaves_the_bound_that_tanh_sticks_to():
    """In float32 tanh(17) is 1, but exp(-34) is a small number like others."""
    found = {}
    for mirror in ("tanh", "softmax"):
        parameter = nn.Parameter(torch.tensor([17.0]))
        optimizer = optim.MirrorDescent([parameter], lr=1.0, mirror=mirror, stable=False)
        for _ in range(20):
            parameter.grad = torch.ones(1)
            optimizer.step()
        found[mirror] = parameter.item()
    assert found["softmax"] == pytest.approx(math.tanh(17 - 20), rel=1e-4)  # float32, 20 steps
    assert found["tanh"] > 0.99


# --- BinaryConnect --------------------------------------------------------------------------------


def test_glorot_groups_are_the_scaled_steps_of_the_code():
    torch.manual_seed(0)
    model = nn.Sequential(
        bnn.BinaryConv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), bnn.BinaryLinear(4, 3)
    ).double()
    groups = optim.glorot_groups(model, lr=0.05)
    optimizer = torch.optim.Adam(groups)
    bnn.clip_weights(optimizer, model)
    scales = {
        model[0].weight: 1 / math.sqrt(1.5 / (2 * 9 + 4 * 9)),
        model[2].weight: 1 / math.sqrt(1.5 / (4 + 3)),
    }
    expected = {p: p.detach().numpy().copy() for p in model.parameters()}
    adams = {p: NumpyAdam() for p in expected}
    generator = np.random.default_rng(3)
    for _ in range(STEPS):
        for p, w in expected.items():
            g = generator.normal(size=w.shape)
            p.grad = torch.tensor(g)
            new = w - 0.05 * adams[p](g)
            expected[p] = w + scales.get(p, 1.0) * (new - w)
            if p in scales:
                expected[p] = np.clip(expected[p], -1, 1)
        optimizer.step()
    for p, w in expected.items():
        np.testing.assert_allclose(p.detach(), w, **CLOSE)
    assert any(p.detach().abs().max() == 1 for p in scales)


def test_glorot_groups_hold_every_parameter_once():
    tied = bnn.BinaryLinear(4, 4)
    model = nn.Sequential(tied, nn.BatchNorm1d(4), tied, bnn.BinaryLinear(4, 4, bias=False))
    groups = optim.glorot_groups(model)
    assert [group["lr_scale"] for group in groups] == [math.sqrt(8 / 1.5), 1.0]
    assert not any("lr" in group for group in groups)
    found = [parameter for group in groups for parameter in group["params"]]
    assert len(found) == len(set(found))
    assert set(found) == set(model.parameters())


# --- regimes --------------------------------------------------------------------------------------

ENTRIES = {
    0: {"optimizer": "SGD", "lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4},
    2: {"lr": 0.25},
    3: {"optimizer": "Adam", "lr": 0.125, "betas": [0.8, 0.9]},
    5: {"weight_decay": 0.0},
}


def test_regime_is_sticky():
    regime = optim.Regime(ENTRIES)
    sgd = {"lr": 0.5, "momentum": 0.9, "weight_decay": 1e-4}
    adam = {"lr": 0.125, "weight_decay": 1e-4, "betas": [0.8, 0.9]}
    assert regime.at(0) == regime.at(1) == ("SGD", sgd)
    assert regime.at(2) == ("SGD", {**sgd, "lr": 0.25})
    assert regime.at(3) == regime.at(4) == ("Adam", adam)
    assert regime.at(5) == regime.at(500) == ("Adam", {**adam, "weight_decay": 0.0})


def test_regime_is_data():
    regime = optim.Regime(ENTRIES)
    assert optim.Regime(json.loads(json.dumps(regime.entries))) == regime
    assert optim.Regime({"10": {"lr": 1.0}, **ENTRIES}) != regime
    assert eval(repr(regime), {"Regime": optim.Regime}) == regime


def test_regime_errors():
    for entries, message in (
        ({}, "entries must name the optimizer of epoch 0, found None"),
        ({0: {"lr": 0.1}}, "entries must name the optimizer of epoch 0, found {'lr': 0.1}"),
        ({0: {"optimizer": "Sgd"}}, "one of ASGD, .*, SGD, found 'Sgd' at epoch 0"),
        ({0: {"optimizer": "Adam", "momentum": 0.9}}, "of Adam .*found 'momentum' at epoch 0"),
        ({**ENTRIES, 7: {"momentum": 0.9}}, "settings of Adam must be.*'momentum' at epoch 7"),
        ({**ENTRIES, -1: {"lr": 1}}, "an epoch must be an integer of at least 0, found -1"),
        ({**ENTRIES, 2.5: {"lr": 1}}, "an epoch must be an integer of at least 0, found 2.5"),
    ):
        with pytest.raises(ValueError, match=message):
            optim.Regime(entries)
    optimizer = optim.RegimeOptimizer([parameter_of(weights())], ENTRIES)
    with pytest.raises(ValueError, match="at least 0, found -3"):
        optimizer.set_epoch(-3)
    with pytest.raises(ValueError, match="must hold the epoch, found only state, param_groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})


def test_regime_optimizer_keeps_the_moments():
    """The same steps as of an Adam whose learning rate is changed by hand."""
    entries = {0: {"optimizer": "Adam", "lr": 0.1}, 1: {"lr": 0.05}, 2: {"weight_decay": 0.1}}
    parameter, other = parameter_of(weights()), parameter_of(weights())
    optimizer = optim.RegimeOptimizer([parameter], entries)
    adam = torch.optim.Adam([other], lr=0.1)
    for epoch in range(4):
        optimizer.set_epoch(epoch)
        adam.param_groups[0]["lr"] = 0.05 if epoch >= 1 else 0.1
        adam.param_groups[0]["weight_decay"] = 0.1 if epoch >= 2 else 0
        for found, expected in zip(run(optimizer, parameter), run(adam, other), strict=True):
            assert np.array_equal(found, expected)


def test_regime_optimizer_resets_if_asked():
    entries = {0: {"optimizer": "Adam", "lr": 0.1}}
    parameter, other = parameter_of(weights()), parameter_of(weights())
    optimizer = optim.RegimeOptimizer([parameter], entries, reset_each_epoch=True)
    for epoch in range(3):
        optimizer.set_epoch(epoch)
        optimizer.set_epoch(epoch)  # the same epoch again: nothing new
        adam = torch.optim.Adam([other], lr=0.1)
        for found, expected in zip(run(optimizer, parameter), run(adam, other), strict=True):
            assert np.array_equal(found, expected)


def test_regime_optimizer_changes_class_and_keeps_its_hooks():
    parameter, other = parameter_of(weights()), parameter_of(weights())
    optimizer = optim.RegimeOptimizer([parameter], ENTRIES)
    bnn.clip_weights(optimizer, [parameter], limit=0.5)
    sgd = torch.optim.SGD([other], lr=0.5, momentum=0.9, weight_decay=1e-4)
    adam = torch.optim.Adam([other], lr=0.125, betas=(0.8, 0.9), weight_decay=1e-4)
    for epoch in range(6):
        optimizer.set_epoch(epoch)
        sgd.param_groups[0]["lr"] = 0.25 if epoch >= 2 else 0.5
        adam.param_groups[0]["weight_decay"] = 0.0 if epoch >= 5 else 1e-4
        by_hand = adam if epoch >= 3 else sgd
        bnn.clip_weights(by_hand, [other], limit=0.5)
        for found, expected in zip(run(optimizer, parameter), run(by_hand, other), strict=True):
            assert np.array_equal(found, expected)
            assert np.abs(found).max() <= 0.5


def test_regime_optimizer_minds_what_groups_say():
    first, second, third = (parameter_of(weights()) for _ in range(3))
    groups = [
        {"params": [first], "weight_decay": 0.5},
        {"params": [second], "lr_scale": 3.0},
    ]
    optimizer = optim.RegimeOptimizer(groups, ENTRIES)
    optimizer.add_param_group({"params": [third], "lr": 7.0})
    assert "lr" not in groups[0]  # the caller's own dicts stay as they were
    for epoch, lr in ((0, 0.5), (2, 0.25), (3, 0.125), (5, 0.125)):
        optimizer.set_epoch(epoch)
        assert [group["lr"] for group in optimizer.param_groups] == [lr, 3 * lr, 7.0]
        decays = [group["weight_decay"] for group in optimizer.param_groups]
        assert decays == [0.5, *2 * [1e-4 if epoch < 5 else 0.0]]


# --- as torch's optimizers do ---------------------------------------------------------------------

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "bop": lambda params: optim.Bop(params, lr=0.3, threshold=0.1),
    "tanh": lambda params: optim.MirrorDescent(params, stable=False, growth=1.1),
    "tanh-S": lambda params: optim.MirrorDescent(params, growth=1.1, growth_interval=2),
    "softmax": lambda params: optim.MirrorDescent(params, mirror="softmax", stable=False),
    "softmax-S": lambda params: optim.MirrorDescent(params, mirror="softmax", growth=1.1),
    "combined": lambda params: optim.Combined(
        optim.Bop(params[:1], lr=0.3, threshold=0.1), torch.optim.Adam(params[1:], lr=0.1)
    ),
    "regime": lambda params: optim.RegimeOptimizer(params, ENTRIES),
}


def two_parameters() -> list[nn.Parameter]:
    return [parameter_of(weights()), parameter_of(weights((7,)))]


def take_steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], steps: range) -> None:
    for step in steps:
        if isinstance(optimizer, optim.RegimeOptimizer):
            optimizer.set_epoch(step // 2)
        for parameter in params:
            parameter.grad = torch.tensor(gradients(tuple(parameter.shape))[step])
        optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("at", [0, 1, 5, 7, 8])
def test_resume_is_exact(name, at):
    whole = two_parameters()
    take_steps(OPTIMIZERS[name](whole), whole, range(STEPS))

    first = two_parameters()
    optimizer = OPTIMIZERS[name](first)
    take_steps(optimizer, first, range(at))
    file = io.BytesIO()
    torch.save({"params": first, "optimizer": optimizer.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = two_parameters()
    resumed = OPTIMIZERS[name](second)
    for parameter, value in zip(second, saved["params"], strict=True):
        parameter.data.copy_(value)
    resumed.load_state_dict(saved["optimizer"])
    take_steps(resumed, second, range(at, STEPS))
    for parameter, expected in zip(second, whole, strict=True):
        assert torch.equal(parameter, expected)
    groups = [{**group, "params": 0} for group in resumed.param_groups]
    if isinstance(resumed, optim.Combined):
        assert [g for part in resumed.optimizers for g in part.param_groups] == resumed.param_groups
    assert len(groups) == (2 if name == "combined" else 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_copies_go_on_alike_and_alone(name):
    params = two_parameters()
    optimizer = OPTIMIZERS[name](params)
    take_steps(optimizer, params, range(4))
    others, other = copy.deepcopy((params, optimizer))
    frozen = [parameter.detach().clone() for parameter in others]
    take_steps(optimizer, params, range(4, 8))
    for parameter, expected in zip(others, frozen, strict=True):
        assert torch.equal(parameter, expected)
    take_steps(other, others, range(4, 8))
    for parameter, expected in zip(others, params, strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_closure_is_called_once_with_gradients(name):
    params, others = two_parameters(), two_parameters()
    optimizer, plain = OPTIMIZERS[name](params), OPTIMIZERS[name](others)
    calls = 0

    def loss_of(params: list[nn.Parameter]) -> Tensor:
        return (params[0].sum() - 1).square() + params[1].square().sum()

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = loss_of(params)
        loss.backward()
        return loss

    for step in range(3):
        loss = loss_of(others)
        plain.zero_grad()
        loss.backward()
        plain.step()
        assert torch.equal(optimizer.step(closure), loss)
        assert calls == step + 1
        for parameter, expected in zip(params, others, strict=True):
            assert torch.equal(parameter, expected)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_parameters_without_gradient_stay(name):
    params = two_parameters()
    optimizer = OPTIMIZERS[name](params)
    before = params[1].detach().clone()
    params[0].grad = torch.ones_like(params[0])
    assert optimizer.step() is None
    assert torch.equal(params[1], before)
    optimizer.zero_grad()
    assert params[0].grad is None
    after = params[0].detach().clone()
    optimizer.step()
    assert torch.equal(params[0], after)


@pytest.mark.parametrize("name", ["bop", "tanh"])
def test_groups_have_settings_of_their_own(name):
    """Two groups in one optimizer are two optimizers."""
    make = {"bop": optim.Bop, "tanh": optim.MirrorDescent}[name]
    params, others = two_parameters(), two_parameters()
    optimizer = make([{"params": params[:1], "lr": 0.5}], lr=0.25)
    optimizer.add_param_group({"params": params[1]})
    for found, alone, lr in zip(params, others, (0.5, 0.25), strict=True):
        assert torch.equal(found, found.sign()) == (name == "bop")
        single = make([alone], lr=lr)
        for grad in gradients(tuple(alone.shape)):
            alone.grad = torch.tensor(grad)
            single.step()
    take_steps(optimizer, params, range(STEPS))
    for parameter, expected in zip(params, others, strict=True):
        assert torch.equal(parameter, expected)


@pytest.mark.parametrize("make", [optim.Bop, optim.MirrorDescent])
def test_refused_parameters(make):
    with pytest.raises(ValueError, match="empty parameter list"):
        make([])
    for wrong in (torch.ones(2, dtype=torch.complex64), torch.ones(2, dtype=torch.int64)):
        with pytest.raises(TypeError, match=f"real floating-point tensors, found {wrong.dtype}"):
            make([wrong])
    parameter = nn.Parameter(torch.full((2, 2), 0.5))
    optimizer = make([parameter])
    weights = parameter.detach().clone()
    for wrong in (torch.ones(2, dtype=torch.complex64), parameter):
        with pytest.raises((TypeError, ValueError)):
            optimizer.add_param_group({"params": [wrong]})
        assert len(optimizer.param_groups) == 1
    assert torch.equal(parameter, weights)
    parameter.grad = torch.eye(2).to_sparse()
    with pytest.raises(RuntimeError, match=f"{make.__name__} needs dense gradients, .*sparse"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "settings", "message"),
    [
        (optim.Bop, {"lr": -0.1}, "lr must be a number of at least 0 and at most 1, found -0.1"),
        (optim.Bop, {"lr": 1.5}, "lr must be a number of at least 0 and at most 1, found 1.5"),
        (optim.Bop, {"lr": math.nan}, "lr must be .*found nan"),
        (optim.Bop, {"lr": "1e-4"}, "lr must be .*found '1e-4'"),
        (optim.Bop, {"threshold": -1e-9}, "threshold must be a number of at least 0, found -1e-09"),
        (optim.Bop, {"threshold": math.inf}, "threshold must be .*found inf"),
        (optim.MirrorDescent, {"lr": -1}, "lr must be a number of at least 0, found -1"),
        (optim.MirrorDescent, {"betas": (0.9, 1.0)}, r"betas\[1\] must be below 1, found 1.0"),
        (optim.MirrorDescent, {"betas": (-0.1, 0.9)}, r"betas\[0\] must be .*found -0.1"),
        (optim.MirrorDescent, {"eps": 0}, "eps must be a number above 0, found 0"),
        (
            optim.MirrorDescent,
            {"mirror": "tan"},
            "mirror must be one of tanh, softmax, found 'tan'",
        ),
        (optim.MirrorDescent, {"sharpness": 0}, "sharpness must be a number above 0, found 0"),
        (optim.MirrorDescent, {"growth": 0.5}, "growth must be a number of at least 1, found 0.5"),
        (optim.MirrorDescent, {"growth_interval": 0}, "growth_interval must be .*found 0"),
    ],
)
def test_refused_settings(make, settings, message):
    parameter = nn.Parameter(torch.full((2,), 0.5))
    with pytest.raises(ValueError, match=message):
        make([parameter], **settings)
    optimizer = make([nn.Parameter(torch.ones(1))])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter], **settings})
    assert parameter.tolist() == [0.5, 0.5]
    assert len(optimizer.param_groups) == 1


def test_combined_is_its_parts():
    params, others = two_parameters(), two_parameters()
    combined = optim.Combined(optim.Bop(params[:1], lr=0.3), torch.optim.Adam(params[1:], lr=0.1))
    parts = [optim.Bop(others[:1], lr=0.3), torch.optim.Adam(others[1:], lr=0.1)]
    schedules = [
        torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5) for optimizer in (combined, *parts)
    ]
    order = []
    combined.register_step_post_hook(lambda *_: order.append("combined"))
    combined.optimizers[1].register_step_post_hook(lambda *_: order.append("adam"))
    for step in range(4):
        take_steps(combined, params, range(step, step + 1))
        for part, own in zip(parts, others, strict=True):
            take_steps(part, [own], range(step, step + 1))
        for schedule in schedules:
            schedule.step()
        for parameter, expected in zip(params, others, strict=True):
            assert torch.equal(parameter, expected)
    assert order == ["adam", "combined"] * 4


def test_combined_groups():
    params = [*two_parameters(), parameter_of(weights((2,)))]
    with pytest.raises(ValueError, match="optimizers must be at least one"):
        optim.Combined()
    with pytest.raises(ValueError, match="more than one parameter group"):
        optim.Combined(optim.Bop(params[:1]), torch.optim.Adam(params))
    optimizer = optim.Combined(torch.optim.SGD(params[:1], lr=1.0), optim.Bop(params[1:2]))
    for wrong in ({"params": params[0]}, {"params": params[2], "threshold": -1}):
        with pytest.raises(ValueError):
            optimizer.add_param_group(wrong)
        assert len(optimizer.param_groups) == 2 and len(optimizer.optimizers[1].param_groups) == 1
    optimizer.add_param_group({"params": params[2], "lr": 0.5})
    assert optimizer.param_groups[2] is optimizer.optimizers[1].param_groups[1]
    assert optimizer.param_groups[2]["threshold"] == 1e-8
    assert torch.equal(params[2], params[2].sign())


def test_half_precision():
    """Gradients of a bfloat16 parameter are bfloat16; the signs that Bop writes are exact in it."""
    for make in (optim.Bop, optim.MirrorDescent):
        parameter = nn.Parameter(torch.randn(8).bfloat16())
        optimizer = make([parameter], lr=0.5)
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        assert parameter.dtype == torch.bfloat16
        assert parameter.isfinite().all()
