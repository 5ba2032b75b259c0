"""A planned sequence of operators that runs in one call.

At batch 1 a small layer takes as long as the way to its kernel: the wrapper, torch's dispatcher,
the conversion of every argument. A sequence goes that way once for a whole network.

The operator takes a program, text of decimal numbers that csrc/common/sequence.h explains and runs.
Text, since the fake kernel must read it as well, where tensors have no contents.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bnn_ext.ops.binary_weight import (
    binary_weight_conv2d,
    binary_weight_conv2d_bits,
    binary_weight_linear,
    binary_weight_linear_bits,
)
from bnn_ext.ops.calls import runs_now
from bnn_ext.ops.channels import select_channels
from bnn_ext.ops.convolution import conv2d, conv2d_bits, conv2d_float, conv2d_fused
from bnn_ext.ops.epilogue import named, numbered
from bnn_ext.ops.matrix_product import linear, linear_bits, linear_float, linear_fused
from bnn_ext.ops.packing import flatten, pack
from bnn_ext.ops.pooling import avg_pool2d, global_avg_pool2d, max_pool2d, max_pool2d_float
from bnn_ext.ops.real_values import elementwise

_NONE = -1
_DTYPES = {5: torch.float16, 6: torch.float32, 15: torch.bfloat16}  # by torch's own numbers


def _permute(input: Tensor, dims: SequenceOf[int]) -> Tensor:
    if input.dim() != len(dims):
        raise ValueError(
            f"input must have {len(dims)} dimensions, found shape {tuple(input.shape)}"
        )
    return input.permute(*dims)


def _torch_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(input, weight, bias)


@dataclass(frozen=True)
class _Operator:
    """One that a sequence may call.

    Attributes:
        wrapper: checks its arguments and says what is wrong with them.
        kernel: takes the arguments of the schema, by name.
        kinds: the types of the C++ function's arguments in the words of torch's schemas, in their
            order. That of a fused operator takes "room" before those of the schema: an operand that
            its floats may be written over.
    """

    wrapper: Callable[..., Any]
    kernel: Callable[..., Any]
    kinds: Mapping[str, str]


def _packed(wrapper: Callable[..., Any]) -> _Operator:
    kernel = getattr(torch.ops.bnn_ext, wrapper.__name__).default
    kinds = {argument.name: str(argument.real_type) for argument in kernel._schema.arguments}
    if "operations" in kinds:
        kinds = {"room": "Optional[Tensor]", **kinds}
    return _Operator(wrapper, kernel, kinds)


# Numbered as in csrc/common/sequence_operators.inl.
_OPERATORS = {
    "pack": _packed(pack),
    "flatten": _packed(flatten),
    "linear": _packed(linear),
    "linear_float": _packed(linear_float),
    "linear_bits": _packed(linear_bits),
    "linear_fused": _packed(linear_fused),
    "conv2d": _packed(conv2d),
    "conv2d_float": _packed(conv2d_float),
    "conv2d_bits": _packed(conv2d_bits),
    "conv2d_fused": _packed(conv2d_fused),
    "binary_weight_linear": _packed(binary_weight_linear),
    "binary_weight_linear_bits": _packed(binary_weight_linear_bits),
    "binary_weight_conv2d": _packed(binary_weight_conv2d),
    "binary_weight_conv2d_bits": _packed(binary_weight_conv2d_bits),
    "max_pool2d": _packed(max_pool2d),
    "max_pool2d_float": _packed(max_pool2d_float),
    "avg_pool2d": _packed(avg_pool2d),
    "global_avg_pool2d": _packed(global_avg_pool2d),
    "select_channels": _packed(select_channels),
    "elementwise": _packed(elementwise),
    "permute": _Operator(_permute, _permute, {"input": "Tensor", "dims": "List[int]"}),
    "torch_linear": _Operator(
        _torch_linear,
        _torch_linear,
        {"input": "Tensor", "weight": "Tensor", "bias": "Optional[Tensor]"},
    ),
}
_NAMES = tuple(_OPERATORS)

_kernel = torch.ops.bnn_ext.sequence.default  # looked up once: that takes as long as a small call


@dataclass(frozen=True)
class Call:
    """One call of a `Sequence`.

    Attributes:
        operator: the name of an operator of `bnn_ext.ops` that computes on the input of a network,
            "permute": `torch.permute(input, dims)`, a view, or "torch_linear":
            `torch.nn.functional.linear(input, weight, bias)`.
        arguments: by name, as the operator's wrapper takes them. A tensor is a constant; the name
            of a value may stand in place of any tensor.
        results: the names of its results. A fused operator has two, floats and bits; None stands
            for one that its arguments do not ask for.
    """

    operator: str
    arguments: Mapping[str, Any]
    results: tuple[str | None, ...]


class Sequence:
    """Calls of operators that run one after the other without Python in between.

    The results are those of the calls one by one. These are what runs where a gradient is asked.
    A sequence can be copied and pickled, and several threads may call it.

        sequence = Sequence(
            ["image"],
            [
                Call("pack", {"input": "image"}, ("bits",)),
                Call("linear", {"input": "bits", "weight": w, "in_features": 100}, ("sums",)),
            ],
            ["sums"],
        )
        (sums,) = sequence([image])

    Args:
        inputs: the names of the inputs.
        calls: in running order. A value is an input or a result of an earlier call.
        outputs: the names of the results to return: each in memory of its own, so neither inputs
            nor views of them, and no two that are views of one another.

    Attributes:
        inputs: the names of the inputs.
        constants: the tensors of the calls, without gradients. Whoever moves a sequence puts the
            moved tensors in their places.
        program: the calls as csrc/common/sequence.h reads them.

    Raises:
        ValueError: an unknown operator or value, a name given twice, an output that may not be one.
        TypeError: arguments that the operator does not take.
    """

    def __init__(
        self, inputs: SequenceOf[str], calls: SequenceOf[Call], outputs: SequenceOf[str]
    ) -> None:
        planned = [_Planned(call) for call in calls]
        constants = {
            id(value): value
            for call in planned
            for value in call.values
            if isinstance(value, Tensor)
        }
        self.inputs = tuple(inputs)
        self.constants = [constant.detach() for constant in constants.values()]
        self.program = _Writer((*inputs, *constants)).program(planned, outputs)

    def __call__(self, inputs: SequenceOf[Tensor]) -> list[Tensor]:
        """Runs the calls.

        Args:
            inputs: as many tensors as there are names of inputs.

        Returns:
            The outputs, of which none shares memory with another tensor.

        Raises:
            ValueError, TypeError: those of the operators, naming the call.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(
                f"inputs must be {', '.join(self.inputs)}, found {len(inputs)} tensors"
            )
        if runs_now(inputs, {}, devices=("cpu", "cuda")):
            try:
                return _kernel(inputs, self.constants, self.program)
            except (RuntimeError, TypeError, ValueError):
                pass  # one of the wrappers says what is wrong
        elif torch.compiler.is_compiling():
            return _kernel(inputs, self.constants, self.program)
        return _run(inputs, self.constants, self.program, _by_wrapper)


# --- planning -------------------------------------------------------------------------------------


class _Planned:
    """A call with the arguments of the C++ function.

    Attributes:
        number: that of the operator.
        arguments: kinds and values by name, in order; nothing for "room".
        values: the names and constants among the arguments.
        results: the names of the results that it gives.
        rooms: the names of the values that its floats may be written over once they are not needed.
        view_of: what a view is a view of.
    """

    def __init__(self, call: Call) -> None:
        if call.operator not in _OPERATORS:
            raise ValueError(
                f"operator must be one of {', '.join(_NAMES)}, found {call.operator!r}"
            )
        operator = _OPERATORS[call.operator]
        try:
            bound = inspect.signature(operator.wrapper).bind(**call.arguments)
        except TypeError as error:
            raise TypeError(f"arguments must be those of {call.operator}: {error}") from None
        bound.apply_defaults()
        lowered = _lowered(bound.arguments)
        self.number = _NAMES.index(call.operator)
        self.arguments = {name: (kind, lowered.get(name)) for name, kind in operator.kinds.items()}
        self.values: list[Any] = []
        for kind, value in self.arguments.values():
            if "Tensor" in kind and value is not None:
                self.values += value if kind.startswith("List") else [value]

        asked = [True]
        if "operations" in lowered:
            asked = [lowered["dtype"] is not None, lowered["threshold"] is not None]
        if [name is not None for name in call.results] != asked:
            expected = ", ".join("a name" if name else "None" for name in asked)
            raise ValueError(
                f"results of {call.operator} must be ({expected}), found {call.results}"
            )
        self.results = [name for name in call.results if name is not None]
        self.rooms: list[str] = []
        if "room" in self.arguments and lowered["dtype"] is not None:
            maps = [*lowered["operands"], lowered["input"]]
            self.rooms = [value for value in maps if isinstance(value, str)]
        self.view_of = self.values[0] if call.operator == "permute" else None


def _lowered(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """A wrapper's arguments as its C++ function takes them."""
    lowered = dict(arguments)
    if "steps" in lowered:
        steps = lowered.pop("steps")
        lowered["operations"], lowered["operands"] = numbered(steps)
    if "kernel_size" in lowered and lowered["stride"] is None:
        lowered["stride"] = lowered["kernel_size"]
    return lowered


class _Writer:
    """Gives numbers to values, which go by their names, constants by their ids, and writes them."""

    def __init__(self, given: SequenceOf[str | int]) -> None:
        self.numbers: dict[str | int, int] = {}
        self.owners: dict[str, str] = {}  # of results: whose memory they lie in, "" if in an input
        for name in given:
            self._add(name)

    def program(self, calls: SequenceOf[_Planned], outputs: SequenceOf[str]) -> str:
        written: list[int] = []
        freed = self._last_uses(calls, outputs)
        for call, last in zip(calls, freed, strict=True):
            written.append(call.number)
            for name, (kind, value) in call.arguments.items():
                if name == "room":
                    value = next((name for name in call.rooms if self._is_free(name, last)), None)
                written += self._argument(kind, value)
            for name in call.results:
                self._add(name)
            written += [len(last), *(self.numbers[name] for name in last)]
        self._check_outputs(outputs)
        returned = [self.numbers[name] for name in outputs]
        return " ".join(map(str, [len(calls), *written, len(returned), *returned]))

    def _last_uses(self, calls: SequenceOf[_Planned], outputs: SequenceOf[str]) -> list[list[str]]:
        """For each call the results that nothing behind it needs; knows `owners` afterwards."""
        last_call: dict[str, int] = {}  # that gives or takes a result
        for position, call in enumerate(calls):
            for name in call.results:
                self.owners[name] = name
                if call.view_of is not None:
                    is_name = isinstance(call.view_of, str)
                    self.owners[name] = self.owners.get(call.view_of, "") if is_name else ""
            taken = [v for v in call.values if isinstance(v, str) and v in self.owners]
            last_call |= dict.fromkeys([*taken, *call.results], position)
        freed: list[list[str]] = [[] for _ in calls]
        for name, last in last_call.items():
            if name not in outputs:
                freed[last].append(name)
        return freed

    def _is_free(self, name: str, freed: SequenceOf[str]) -> bool:
        """Whether a value is freed whose memory is its own, and no view's."""
        return name in freed and [n for n, owner in self.owners.items() if owner == name] == [name]

    def _add(self, name: str | int) -> None:
        if name in self.numbers:
            raise ValueError(f"every value must have a name of its own, found two of {name!r}")
        self.numbers[name] = len(self.numbers)

    def _check_outputs(self, outputs: SequenceOf[str]) -> None:
        owners: set[str] = set()
        for name in outputs:
            owner = self.owners.get(name, "")
            if not owner or owner in owners:
                raise ValueError(
                    "outputs must be results of calls, each in memory of its own, found "
                    f"{name!r} among {', '.join(map(repr, outputs))}"
                )
            owners.add(owner)

    def _argument(self, kind: str, value: Any) -> list[int]:
        if kind.startswith("Optional["):
            return [_NONE] if value is None else self._argument(_inner(kind), value)
        if kind.startswith("List["):
            values = [value, value] if isinstance(value, int) else value  # of height and width
            return [len(values), *(n for v in values for n in self._argument(_inner(kind), v))]
        if kind == "Tensor":
            name = id(value) if isinstance(value, Tensor) else value
            if name not in self.numbers:
                raise ValueError(f"arguments must name inputs or earlier results, found {value!r}")
            return [self.numbers[name]]
        if kind == "ScalarType":
            if value not in _DTYPES.values():
                expected = ", ".join(map(str, _DTYPES.values()))
                raise TypeError(f"dtype must be one of {expected}, found {value}")
            return [number for number, dtype in _DTYPES.items() if dtype == value]
        if not isinstance(value, int):
            raise TypeError(f"arguments must be integers here, found {value!r}")
        return [int(value)]


def _inner(kind: str) -> str:
    """The type of an element: that of `List[int]` is `int`."""
    return kind[kind.index("[") + 1 : -1]


# --- running one by one ---------------------------------------------------------------------------


def _run(
    inputs: SequenceOf[Tensor],
    constants: SequenceOf[Tensor],
    program: str,
    run: Callable[[str, dict[str, Any]], Any],
) -> list[Tensor]:
    """Runs the calls of a program, each by `run(operator, arguments)`."""
    numbers = map(int, program.split())
    values: list[Tensor | None] = [*inputs, *constants]
    for _ in range(next(numbers)):
        name = _NAMES[next(numbers)]
        arguments = {
            argument: _read(kind, numbers, values)
            for argument, kind in _OPERATORS[name].kinds.items()
        }
        arguments.pop("room", None)  # here every result has memory of its own
        results = run(name, arguments)
        values += [results] if isinstance(results, Tensor) else results
        for number in _read("List[int]", numbers, values):
            values[number] = None
    return _read("List[Tensor]", numbers, values)


def _read(kind: str, numbers: Iterator[int], values: SequenceOf[Tensor | None]) -> Any:
    number = next(numbers)
    if kind.startswith("List["):
        return [_read(_inner(kind), numbers, values) for _ in range(number)]
    if kind.startswith("Optional["):
        if number == _NONE:
            return None
        kind = _inner(kind)
    if kind == "Tensor":
        return values[number]
    if kind == "ScalarType":
        return _DTYPES[number]
    return bool(number) if kind == "bool" else number


def _by_wrapper(name: str, arguments: dict[str, Any]) -> Any:
    if "operations" in arguments:
        arguments["steps"] = named(arguments.pop("operations"), arguments.pop("operands"))
    try:
        results = _OPERATORS[name].wrapper(**arguments)
    except (TypeError, ValueError) as error:
        raise type(error)(f"in the call of {name}: {error}") from error
    if isinstance(results, tuple):
        return [result for result in results if result is not None]
    return results


def _by_kernel(name: str, arguments: dict[str, Any]) -> Any:
    return _OPERATORS[name].kernel(**arguments)


@torch.library.register_fake("bnn_ext::sequence")
def _run_by_kernels(inputs: list[Tensor], constants: list[Tensor], program: str) -> list[Tensor]:
    return _run(inputs, constants, program, _by_kernel)
