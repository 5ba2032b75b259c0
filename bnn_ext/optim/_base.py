"""What the optimizers of this package share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle


class ElementwiseOptimizer(torch.optim.Optimizer):
    """An optimizer that updates every parameter on its own; a subclass says how.

    Parameters without a gradient stay as they are, and so does their state.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates all parameters that have a gradient.

        Args:
            closure: computes the loss and its gradients anew; called once, if given.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: a gradient is sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.is_sparse:
                    raise RuntimeError(
                        f"{type(self).__name__} needs dense gradients, found a sparse one of shape "
                        f"{list(parameter.shape)}"
                    )
                self._update(parameter, parameter.grad, self.state[parameter], group)
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters, with settings of their own or the optimizer's.

        Raises:
            ValueError: a setting is out of range, or a parameter is in another group already.
            TypeError: a parameter is no tensor of real floating-point numbers.
        """
        self._check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        for parameter in param_group["params"]:
            if not parameter.is_floating_point():
                self.param_groups.pop()
                raise TypeError(
                    f"params must be real floating-point tensors, found {parameter.dtype}"
                )
        with torch.no_grad():
            for parameter in param_group["params"]:
                self._begin(parameter, self.state[parameter], param_group)

    def _check(self, settings: dict[str, Any]) -> None:
        """Raises ValueError if a setting of a group is out of range."""
        raise NotImplementedError

    def _begin(self, parameter: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        """Prepares a parameter when it is added."""
        raise NotImplementedError

    def _update(
        self, parameter: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]
    ) -> None:
        """One step of one parameter, in place."""
        raise NotImplementedError


def before_update(
    optimizer: torch.optim.Optimizer, function: Callable[[], None]
) -> RemovableHandle:
    """Calls `function` in every step once the gradients are there, right before the update.

    An optimizer's pre-step hook alone comes too early for a step with a closure, as Lightning's
    are: the closure computes the gradients.
    """

    def hook(optimizer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            function()
            return None

        def closure_and_function() -> Any:
            loss = closure()
            function()
            return loss

        return args[:1], {**kwargs, "closure": closure_and_function}

    return optimizer.register_step_pre_hook(hook)


def require_number(
    name: str, value: Any, low: float = 0.0, high: float = math.inf, *, above: bool = False
) -> None:
    """Checks a setting, given by the name that it has for the user.

    Args:
        name: of the setting.
        value: finite and in [low, high].
        low, high: the range.
        above: whether `low` itself is refused.

    Raises:
        ValueError: it is no finite number in the range.
    """
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if number and math.isfinite(value) and low <= value <= high and not (above and value == low):
        return
    bounds = f"{'above' if above else 'of at least'} {low:g}"
    if high < math.inf:
        bounds += f" and at most {high:g}"
    raise ValueError(f"{name} must be a number {bounds}, found {value!r}")


def at_least_one(params: Iterable[Tensor]) -> list[Tensor]:
    """The parameters as a list.

    Raises:
        ValueError: there is none.
    """
    params = list(params)
    if not params:
        raise ValueError("params must hold at least one parameter, found none")
    return params
