"""Several optimizers as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Combined(torch.optim.Optimizer):
    """Several optimizers, each with parameters of its own, that step together.

    To a loop, a schedule, a gradient scaler or Lightning it is one optimizer: its `param_groups`
    are those of all the optimizers, in order and the same objects, its state_dict holds the state
    of all.

        binary, others = optim.split_parameters(model)
        optimizer = optim.Combined(optim.Bop(binary), torch.optim.Adam(others, lr=1e-2))

    Hooks belong on the combined optimizer; post-step hooks run after all have stepped. A group that
    is added later belongs to the last of the optimizers.

    Args:
        optimizers: at least one; an optimizer that calls its closure itself, as LBFGS, is none.

    Raises:
        ValueError: there is no optimizer, or two have a parameter in common.

    Source: how Bop (arXiv:1906.02107, section 5) and BinaryConnect's code train: one rule for
    binary weights, Adam for all else.
    """

    def __init__(self, *optimizers: torch.optim.Optimizer) -> None:
        if not optimizers:
            raise ValueError("optimizers must be at least one, found none")
        self.optimizers = list(optimizers)
        super().__init__([g for part in optimizers for g in part.param_groups], {})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every optimizer; the closure, if given, is called once, before them.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.optimizers:
            part.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the last of the optimizers.

        Raises:
            ValueError: a parameter is in another group already, or the optimizer refuses the group.
        """
        super().add_param_group(param_group)
        if any(group is param_group for part in self.optimizers for group in part.param_groups):
            return  # this is the constructor, which has them all
        try:
            self.optimizers[-1].add_param_group(param_group)
        except Exception:
            self.param_groups.pop()
            raise

    def _share(self) -> None:
        """Makes the optimizers' states one state."""
        for part in self.optimizers:
            self.state.update(part.state)
            part.state = self.state

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"optimizers": self.optimizers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Takes over loaded groups and state, here and in the optimizers."""
        super().__setstate__(state)
        groups = iter(self.param_groups)
        for part in self.optimizers:
            own = [next(groups) for _ in part.param_groups]
            part.__setstate__({"param_groups": own, "state": self.state})
