"""Sequences of operators against the same calls one by one."""

from __future__ import annotations

import copy
import pickle
import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from packed_inputs import examples, random_affine, random_packed, random_thresholds
from torch import Tensor

from bnn_ext import ops
from bnn_ext.ops import Call, Sequence
from bnn_ext.ops.sequence import _NAMES as NAMES

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
BY_TORCH = {"permute": torch.permute, "torch_linear": torch.nn.functional.linear}


def one_by_one(inputs: dict[str, Tensor], calls: list[Call], outputs: list[str]) -> list[Tensor]:
    """What a sequence must give, by the public wrappers alone."""
    values = dict(inputs)

    def resolved(argument: Any) -> Any:
        if isinstance(argument, list):
            return [resolved(value) for value in argument]
        return values[argument] if isinstance(argument, str) else argument

    for call in calls:
        arguments = {
            name: resolved(argument) for name, argument in call.arguments.items() if name != "steps"
        }
        if "steps" in call.arguments:
            arguments["steps"] = [
                (name, *map(resolved, operands)) for name, *operands in call.arguments["steps"]
            ]
        wrapper = BY_TORCH.get(call.operator) or getattr(ops, call.operator)
        results = wrapper(**arguments)
        results = results if isinstance(results, tuple) else (results,)
        values |= {
            name: result
            for name, result in zip(call.results, results, strict=True)
            if name is not None
        }
    return [values[name] for name in outputs]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert len(actual) == len(expected)
    for a, e in zip(actual, expected, strict=True):
        assert (a.dtype, a.shape, a.stride()) == (e.dtype, e.shape, e.stride())
        assert torch.equal(a, e)


# --- random networks ------------------------------------------------------------------------------


class Network:
    """Calls that go on where the last one ended: with a real map, a packed map or packed rows.

    Every network ends at a linear layer; all of its maps have the size of the input until the
    first pool, so that residuals fit.
    """

    def __init__(self, seed: int, size: tuple[int, int]) -> None:
        self.random = random.Random(seed)
        self.size = list(size)
        self.channels = self.random.choice((3, 32, 65))
        self.first_channels = self.channels
        self.calls: list[Call] = []
        self.outputs: list[str] = []
        self.count = 0
        self.residual: tuple[str, int] | None = None  # and its channels
        self.real("image")

    def add(self, operator: str, *names: str | None, **arguments: Any) -> tuple[str, ...]:
        self.calls.append(Call(operator, arguments, names))
        # Sometimes what others still use is an output as well.
        self.outputs += [n for n in names if n and self.random.random() < 0.3]
        return names

    def name(self) -> str:
        self.count += 1
        return f"v{self.count}"

    def real(self, value: str) -> None:
        """From `[N, C, H, W]`."""
        if self.random.random() < 0.5:
            nhwc = self.name()
            self.calls.append(Call("permute", {"input": value, "dims": (0, 2, 3, 1)}, (nhwc,)))
            if self.random.random() < 0.5:
                steps = [("multiply_add", *random_affine(self.channels))]
                threshold = torch.randn(self.channels)
                floats, bits = self.add(
                    "elementwise",
                    self.name(),
                    self.name(),
                    input=nhwc,
                    steps=steps,
                    dtype=torch.float32,
                    threshold=threshold,
                )
                self.residual = (floats, self.channels)
                return self.packed(bits)
            threshold = torch.randn(self.channels) if self.random.random() < 0.5 else None
            flip = None if threshold is None else random_packed(self.channels)
            (bits,) = self.add("pack", self.name(), input=nhwc, threshold=threshold, flip=flip)
            return self.packed(bits)
        out, arguments = self.convolution(self.channels, groups=1)
        arguments["input"] = value
        if self.random.random() < 0.5:
            scale, bias = random_affine(out)
            (value,) = self.add(
                "binary_weight_conv2d", self.name(), **arguments, scale=scale, bias=bias
            )
            self.channels = out
            return self.real(value)
        (bits,) = self.add(
            "binary_weight_conv2d_bits", self.name(), **arguments, threshold=torch.randn(out)
        )
        self.channels = out
        self.packed(bits)

    def convolution(
        self, channels: int, groups: int, out: int | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Of 3x3 kernels, whose output has the size of the input."""
        out = out or groups * self.random.choice((16, 32, 40))
        weight = random_packed(out, 3, 3, channels // groups)
        dilation = self.random.choice((1, 2))
        return out, {
            "weight": weight,
            "in_channels": channels,
            "padding": dilation,
            "dilation": (dilation, dilation),
            "groups": groups,
            "pad_value": self.random.choice((-1, 0, 1)),
            "tiles": self.random.choice((None, ops.tile_weight(weight, groups))),
        }

    def packed(self, bits: str) -> None:
        """From a packed map."""
        kind = self.random.choice(
            ("sums", "float", "bits", "fused", "fused", "pool", "select", "rows")
        )
        if kind == "rows" or self.count > 12:
            features = self.channels * self.size[0] * self.size[1]
            (rows,) = self.add("flatten", self.name(), packed=bits, channels=self.channels)
            return self.rows(rows, features)
        if kind == "pool":
            minimum = self.random.choice((None, random_packed(self.channels)))
            (bits,) = self.add(
                "max_pool2d",
                self.name(),
                input=bits,
                kernel_size=2,
                minimum=minimum,
                ceil_mode=True,
            )
            self.size = [-(-side // 2) for side in self.size]
            self.residual = None
            return self.packed(bits)

        if kind == "select":
            index = torch.randperm(2 * self.channels, dtype=torch.int32)[: self.channels + 3]
            (bits,) = self.add(
                "select_channels",
                self.name(),
                inputs=[bits, bits],
                channels=[self.channels] * 2,
                index=index,
            )
            self.channels += 3
            return self.packed(bits)

        groups = self.random.choice([g for g in (1, 2, 5) if self.channels % g == 0])
        wanted = None
        if kind == "fused" and self.residual is not None and self.residual[1] % groups == 0:
            wanted = self.residual[1]
        out, arguments = self.convolution(self.channels, groups, wanted)
        arguments["input"] = bits
        kept, self.channels = self.channels, out
        if kind == "sums":
            (sums,) = self.add("conv2d", self.name(), **arguments)
            (bits,) = self.add("pack", self.name(), input=sums)
        elif kind == "bits":
            threshold, flip = random_thresholds(out, 9 * kept)
            (bits,) = self.add(
                "conv2d_bits", self.name(), **arguments, threshold=threshold, flip=flip
            )
        elif kind == "float":
            scale, bias = random_affine(out)
            dtype = self.random.choice(FLOATS)
            (floats,) = self.add(
                "conv2d_float", self.name(), **arguments, scale=scale, bias=bias, dtype=dtype
            )
            if dtype == torch.float32:
                for pool in ("max_pool2d_float", "avg_pool2d"):
                    (floats,) = self.add(
                        pool, self.name(), input=floats, kernel_size=(2, 2), ceil_mode=True
                    )
                    self.size = [-(-side // 2) for side in self.size]
                if self.random.random() < 0.5:
                    (floats,) = self.add("global_avg_pool2d", self.name(), input=floats)
                    self.size = [1, 1]
                weight, bias = torch.randn(9, out), torch.randn(9)
                (floats,) = self.add(
                    "torch_linear", self.name(), input=floats, weight=weight, bias=bias
                )
                self.channels = 9
                self.residual = None
            nchw = self.name()
            self.calls.append(Call("permute", {"input": floats, "dims": (0, 3, 1, 2)}, (nchw,)))
            return self.real(nchw)
        else:
            bits = self.fused(arguments, out)
        self.packed(bits)

    def fused(self, arguments: dict[str, Any], out: int) -> str:
        scale, bias = random_affine(out)
        steps: list[ops.Step] = [("multiply", scale), ("add", bias), ("prelu", torch.rand(out))]
        steps.append(("multiply_add", *random_affine(out)))
        if self.residual is not None and self.residual[1] == out:
            steps.insert(self.random.randrange(4), ("add", self.residual[0]))
        dtype = self.random.choice((None, *FLOATS))
        floats, bits = self.add(
            "conv2d_fused",
            None if dtype is None else self.name(),
            self.name(),
            **arguments,
            steps=steps,
            dtype=dtype,
            threshold=torch.randn(out),
            flip=random_packed(out),
        )
        if floats is not None:
            self.residual = (floats, out)
        return bits

    def rows(self, rows: str, features: int) -> None:
        weight = random_packed(70, features)
        threshold, flip = random_thresholds(70, features)
        scale, bias = random_affine(70)
        linear = {"input": rows, "weight": weight, "in_features": features}
        (hidden,) = self.add("linear_bits", "hidden", **linear, threshold=threshold, flip=flip)
        linear = {"input": hidden, "weight": random_packed(33, 70), "in_features": 70}
        self.add("linear", "sums", **linear)
        self.add("linear_float", "floats", **linear, scale=scale[:33], bias=bias[:33])
        self.add("linear_fused", "more", "bits", **linear, threshold=torch.zeros(33))
        real = {"input": "floats", "weight": random_packed(7, 33), "in_features": 33}
        self.add("binary_weight_linear", "last", **real)
        self.add("binary_weight_linear_bits", "last_bits", **real, threshold=torch.zeros(7))
        self.outputs = [*dict.fromkeys([*self.outputs, "sums", "more", "last", "last_bits"])]


@pytest.mark.parametrize("seed", range(32))
def test_random_networks(level, seed):
    torch.manual_seed(seed)
    network = Network(seed, (6, 5))
    sequence = Sequence(["image"], network.calls, network.outputs)
    for batch in (1, 3, 0):
        image = torch.randn(batch, network.first_channels, 6, 5)
        expected = one_by_one({"image": image}, network.calls, network.outputs)
        assert_same(kernel(sequence, [image]), expected)
        assert_same(sequence([image]), expected)


def kernel(sequence: Sequence, inputs: list[Tensor]) -> list[Tensor]:
    """By the compiled operator alone, which a sequence leaves where it refuses its arguments."""
    return torch.ops.bnn_ext.sequence(inputs, sequence.constants, sequence.program)


def test_random_networks_call_every_operator():
    called = {call.operator for seed in range(32) for call in Network(seed, (6, 5)).calls}
    assert called == set(ops.sequence._OPERATORS)


def test_random_networks_have_residuals():
    steps = [
        operand
        for seed in range(32)
        for call in Network(seed, (6, 5)).calls
        for _, operand, *_ in call.arguments.get("steps", ())
    ]
    assert sum(isinstance(operand, str) for operand in steps) >= 5


# --- a small network ------------------------------------------------------------------------------


def residual_calls() -> list[Call]:
    """Two convolutions that add what they began with."""
    calls = [Call("pack", {"input": "x"}, ("bits0",))]
    for i in (0, 1):
        weight = random_packed(40, 3, 3, 40)
        arguments = {
            "input": f"bits{i}",
            "weight": weight,
            "in_channels": 40,
            "padding": 1,
            "steps": [("multiply", torch.rand(40)), ("add", "x" if i == 0 else "sum0")],
            "threshold": torch.randn(40),
            "tiles": ops.tile_weight(weight),
        }
        calls.append(Call("conv2d_fused", arguments, (f"sum{i}", f"bits{i + 1}")))
    return calls


def residual_network() -> Sequence:
    return Sequence(["x"], residual_calls(), ["sum1", "bits2"])


def test_sizes_may_change_between_calls(level):
    calls = residual_calls()
    sequence = Sequence(["x"], calls, ["sum1", "bits2"])
    for shape in ((1, 4, 4, 40), (3, 9, 2, 40), (0, 5, 5, 40), (1, 1, 1, 40), (1, 4, 4, 40)):
        x = torch.randn(shape)
        assert_same(kernel(sequence, [x]), one_by_one({"x": x}, calls, ["sum1", "bits2"]))


def test_outputs_are_not_overwritten_by_later_calls():
    sequence = residual_network()
    outputs = sequence([torch.randn(1, 8, 8, 40)])
    kept = [output.clone() for output in outputs]
    for _ in range(5):
        sequence([torch.randn(1, 8, 8, 40)])
    assert_same(outputs, kept)


def test_several_threads_call_one_sequence(two_threads):
    sequence = residual_network()
    inputs = [torch.randn(1 + i % 3, 4 + i % 5, 6, 40) for i in range(40)]
    expected = [sequence([x]) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, wanted in zip(pool.map(lambda x: sequence([x]), inputs), expected, strict=True):
            assert_same(actual, wanted)


def test_several_inputs_and_a_constant_used_twice():
    weight = random_packed(5, 40)
    calls = [
        Call("linear", {"input": "b", "weight": weight, "in_features": 40}, ("one",)),
        Call("linear", {"input": "a", "weight": weight, "in_features": 40}, ("two",)),
        Call("flatten", {"packed": weight, "channels": 40}, ("three",)),
    ]
    sequence = Sequence(["a", "b"], calls, ["two", "three", "one"])
    inputs = {"a": random_packed(2, 40), "b": random_packed(3, 40)}
    assert len(sequence.constants) == 1
    assert_same(
        kernel(sequence, [*inputs.values()]), one_by_one(inputs, calls, ["two", "three", "one"])
    )


def test_copies_and_pickles():
    sequence = residual_network()
    x = torch.randn(2, 4, 4, 40)
    for twin in (copy.deepcopy(sequence), pickle.loads(pickle.dumps(sequence))):
        assert twin.constants[0] is not sequence.constants[0]
        assert_same(twin([x]), sequence([x]))


def test_constants_can_be_replaced():
    sequence = residual_network()
    x = torch.randn(2, 4, 4, 40)
    expected = sequence([x])
    moved = copy.deepcopy(sequence)
    moved.constants = [constant.to("meta") for constant in sequence.constants]
    for output, wanted in zip(moved([x.to("meta")]), expected, strict=True):
        assert output.is_meta
        assert (output.shape, output.dtype) == (wanted.shape, wanted.dtype)


# --- torch ----------------------------------------------------------------------------------------


def test_opcheck():
    sequence = residual_network()
    arguments = ([torch.randn(2, 4, 4, 40)], sequence.constants, sequence.program)
    torch.library.opcheck(torch.ops.bnn_ext.sequence.default, arguments)


@pytest.mark.parametrize("op", [name for name in ops.sequence._OPERATORS if name in examples()])
def test_opcheck_of_every_operator(op):
    example = examples()[op]
    sequence = Sequence([], [Call(op, example, ("y",))], ["y"])
    arguments = ([], sequence.constants, sequence.program)
    torch.library.opcheck(torch.ops.bnn_ext.sequence.default, arguments)
    (actual,) = torch.ops.bnn_ext.sequence(*arguments)
    assert torch.equal(actual, getattr(ops, op)(**example))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_into_one_graph(dynamic):
    sequence = residual_network()

    def function(x: Tensor) -> Tensor:
        floats, bits = sequence([x * 2])
        return floats + bits.sum()

    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 5):
        x = torch.randn(batch, 4, 4, 40)
        assert torch.equal(compiled(x), function(x))


def test_fake_tensors():
    sequence = residual_network()
    fake = copy.copy(sequence)
    with torch._subclasses.FakeTensorMode() as mode:
        fake.constants = [mode.from_tensor(constant) for constant in sequence.constants]
        floats, bits = fake([torch.empty(2, 4, 4, 40)])
    assert (floats.shape, bits.shape) == ((2, 4, 4, 40), (2, 4, 4, 2))


def test_inputs_that_require_a_gradient_take_the_wrappers():
    calls = [Call("pack", {"input": "x"}, ("bits",))]
    x = torch.randn(3, 40, requires_grad=True)
    (bits,) = Sequence(["x"], calls, ["bits"])([x])
    assert torch.equal(bits, ops.pack(x))
    real = {"input": "x", "weight": random_packed(5, 40), "in_features": 40}
    sequence = Sequence(["x"], [Call("binary_weight_linear", real, ("y",))], ["y"])
    with pytest.raises(ValueError, match="must not require a gradient"):
        sequence([x])


def test_the_fake_kernel_makes_the_same_calls():
    sequence = residual_network()
    inputs = [torch.randn(2, 4, 4, 40)]
    actual = ops.sequence._run_by_kernels(inputs, sequence.constants, sequence.program)
    assert_same(actual, kernel(sequence, inputs))


# --- errors ---------------------------------------------------------------------------------------


PACK = Call("pack", {"input": "x"}, ("bits",))
LINEAR = {"input": "bits", "weight": random_packed(5, 40), "in_features": 40}
NHWC = Call("permute", {"input": "y", "dims": (0, 2, 3, 1)}, ("view",))


@pytest.mark.parametrize(
    ("calls", "outputs", "message"),
    [
        ([Call("unpack", {}, ("y",))], ["y"], "operator must be one of pack, .* found 'unpack'"),
        ([Call("linear", LINEAR, ("y",)), PACK], ["y"], "found 'bits'"),
        ([PACK, PACK], ["bits"], "a name of its own, found two of 'bits'"),
        ([Call("pack", {"input": "x"}, ("x",))], ["x"], "found two of 'x'"),
        ([PACK], ["x"], "outputs must be results.* found 'x'"),
        ([PACK], ["bits", "bits"], "outputs must be results.* found 'bits'"),
        ([PACK], ["sums"], "outputs must be results.* found 'sums'"),
        (
            [Call("permute", {"input": "x", "dims": (1, 0)}, ("y",)), NHWC],
            ["view"],
            "outputs must be results.* found 'view'",
        ),
        (
            [Call("permute", {"input": "bits", "dims": (1, 0)}, ("y",))],
            ["bits", "y"],
            "outputs must be results.* found 'y'",
        ),
        ([Call("pack", {"input": "x"}, (None,))], [], r"results of pack must be \(a name\)"),
        ([Call("pack", {"input": "x"}, ("a", "b"))], ["a"], r"results of pack must be \(a name\)"),
        ([Call("linear_fused", LINEAR, ("a", "b"))], ["a"], r"must be \(a name, None\)"),
        (
            [Call("linear_fused", LINEAR | {"steps": [("power", torch.ones(5))]}, ("a", None))],
            ["a"],
            "steps must be named multiply, .* found 'power'",
        ),
    ],
)
def test_plans_that_cannot_be(calls, outputs, message):
    if not any(call is PACK for call in calls) and "bits" in str(calls):
        calls = [PACK, *calls]
    with pytest.raises(ValueError, match=message):
        Sequence(["x"], calls, outputs)


@pytest.mark.parametrize(
    ("operator", "arguments", "message"),
    [
        ("pack", {}, "arguments must be those of pack: missing a required argument: 'input'"),
        ("pack", {"input": "x", "scale": None}, "those of pack: .*'scale'"),
        ("linear", LINEAR | {"input": "x", "in_features": "40"}, "integers here, found '40'"),
        ("linear_float", LINEAR | {"input": "x", "dtype": torch.float64}, "dtype must be one of"),
    ],
)
def test_arguments_that_an_operator_does_not_take(operator, arguments, message):
    with pytest.raises(TypeError, match=message):
        Sequence(["x"], [Call(operator, arguments, ("y",))], ["y"])


def test_wrong_inputs_are_named_with_the_call():
    sequence = residual_network()
    with pytest.raises(ValueError, match="in the call of conv2d_fused: input must have 2 words"):
        sequence([torch.randn(1, 4, 4, 65)])
    with pytest.raises(TypeError, match="in the call of pack: input must be torch.float32"):
        sequence([torch.randn(1, 4, 4, 40).double()])
    with pytest.raises(ValueError, match="inputs must be x, found 2 tensors"):
        sequence([torch.randn(1, 4, 4, 40)] * 2)


def test_malformed_programs_raise():
    sequence = residual_network()
    x = torch.randn(1, 4, 4, 40)
    run = torch.ops.bnn_ext.sequence

    def refuses(program: str) -> None:
        with pytest.raises(RuntimeError):
            run([x], sequence.constants, program)

    numbers = sequence.program.split()
    for length in range(len(numbers)):
        refuses(" ".join(numbers[:length]))
    refuses(sequence.program + " 0")
    refuses(sequence.program + " ")
    refuses("hello")
    refuses("1 99 0 0")
    refuses("-1 0")
    refuses(f"0 {2**62}")
    refuses("0 1 -1")
    refuses("1" * 30)


def test_programs_with_any_number_changed_do_not_crash():
    sequence = residual_network()
    x = torch.randn(1, 4, 4, 40)
    numbers = sequence.program.split()
    refused = 0
    for position in range(len(numbers)):
        for wrong in (-(2**63), -2, -1, 0, 1, 2, 7, 99, 2**63):
            changed = [*numbers[:position], str(wrong), *numbers[position + 1 :]]
            try:
                torch.ops.bnn_ext.sequence([x], sequence.constants, " ".join(changed))
            except RuntimeError:
                refused += 1
    assert refused > 5 * len(numbers)  # the others are calls with other arguments


def rooms(calls: list[Call], outputs: list[str]) -> list[int]:
    """What each elementwise call without steps, thresholds and constants may write over."""
    numbers = list(map(int, Sequence(["x"], calls, outputs).program.split()))
    found = []
    at = 1
    for call in calls:
        assert numbers[at] == NAMES.index(call.operator)
        if call.operator == "elementwise":  # room, input, 0 steps, 0 operands, dtype, 2 absent
            found.append(numbers[at + 1])
            at += 8
        else:  # permute: input, 4 dims
            at += 7
        at += 1 + numbers[at]
    return found


def test_floats_are_written_over_what_is_not_needed_any_more():
    def copy(source: str, result: str) -> Call:
        arguments = {"input": source, "steps": [], "dtype": torch.float32}
        return Call("elementwise", arguments, (result, None))

    def view(source: str, result: str) -> Call:
        return Call("permute", {"input": source, "dims": (0, 2, 3, 1)}, (result,))

    # Values are numbered x, a, b, c. Inputs belong to the caller.
    assert rooms([copy("x", "a"), copy("a", "b"), copy("b", "c")], ["c"]) == [-1, 1, 2]
    assert rooms([copy("x", "a"), copy("a", "b"), copy("b", "c")], ["b", "c"]) == [-1, 1, -1]
    assert rooms([copy("x", "a"), copy("a", "b"), copy("a", "c")], ["b", "c"]) == [-1, -1, 1]
    assert rooms([view("x", "a"), copy("a", "b")], ["b"]) == [-1]
    assert rooms([copy("x", "a"), view("a", "b"), copy("b", "c")], ["c"]) == [-1, -1]
    viewed = [copy("x", "a"), view("a", "b"), copy("a", "c"), copy("b", "d")]
    assert rooms(viewed, ["c", "d"]) == [-1, -1, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels", [150, 10])
def test_written_over_residuals_give_the_same_floats(level, channels, dtype):
    """At many channels, so that rows are written in several tiles; the residual is added twice."""
    torch.manual_seed(0)
    weight, x = random_packed(channels, 3, 3, 40), random_packed(2, 9, 7, 40)
    conv = {"weight": weight, "in_channels": 40, "padding": 1, "input": "x", "dtype": dtype}
    calls = [Call("conv2d_fused", conv | {"threshold": torch.zeros(channels)}, ("a", "bits"))]
    steps = [("add", "a"), ("multiply", torch.randn(channels)), ("add", "a")]
    calls.append(Call("conv2d_fused", conv | {"steps": steps}, ("b", None)))
    double = {"input": "b", "steps": [("add", "b")], "dtype": dtype}
    calls.append(Call("elementwise", double, ("c", None)))
    sequence = Sequence(["x"], calls, ["bits", "c"])
    assert_same(kernel(sequence, [x]), one_by_one({"x": x}, calls, ["bits", "c"]))
