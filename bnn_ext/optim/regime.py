"""Regimes: which optimizer with which settings, from which epoch on."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from bnn_ext.optim.combined import Combined

_OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    kind.__name__: kind
    for kind in (
        torch.optim.ASGD,
        torch.optim.Adadelta,
        torch.optim.Adagrad,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adamax,
        torch.optim.RMSprop,
        torch.optim.Rprop,
        torch.optim.SGD,
    )
}


class Regime:
    """A table of epochs and what changes when they begin; all else stays as it was.

        regime = Regime({0: {"optimizer": "Adam", "lr": 5e-3}, 40: {"lr": 1e-3}, 80: {"lr": 5e-4}})
        regime.at(50)                                     # ("Adam", {"lr": 1e-3})
        Regime(json.loads(json.dumps(regime.entries)))    # an equal one

    Args:
        entries: from epoch, counted from 0, to settings: `optimizer`, the name of a class of
            `torch.optim`, and arguments of its constructor. Epoch 0 names the optimizer. Where a
            later epoch names another, the settings go on that both know.

    Raises:
        ValueError: an epoch is no integer of at least 0, epoch 0 names no optimizer, or an
            optimizer or a setting is unknown.

    Source: the `regime` of the models of itayhubara/BinaryNet.pytorch.
    """

    def __init__(self, entries: Mapping[Any, Mapping[str, Any]]) -> None:
        # JSON knows no keys but strings.
        self.entries = {_epoch(key): dict(entry) for key, entry in entries.items()}
        self.entries = dict(sorted(self.entries.items()))
        if "optimizer" not in self.entries.get(0, {}):
            raise ValueError(
                f"entries must name the optimizer of epoch 0, found {self.entries.get(0)}"
            )
        for epoch, entry in self.entries.items():
            if "optimizer" in entry and entry["optimizer"] not in _OPTIMIZERS:
                raise ValueError(
                    f"optimizer must be one of {', '.join(_OPTIMIZERS)}, found "
                    f"{entry['optimizer']!r} at epoch {epoch}"
                )
            name, _ = self.at(epoch)
            known = _settings_of(name)
            for setting in entry:
                if setting != "optimizer" and setting not in known:
                    raise ValueError(
                        f"settings of {name} must be among {', '.join(known)}, found {setting!r} "
                        f"at epoch {epoch}"
                    )

    def at(self, epoch: int) -> tuple[str, dict[str, Any]]:
        """The optimizer's name and all settings that hold in an epoch, counted from 0."""
        name, settings = "", dict[str, Any]()
        for start, entry in self.entries.items():
            if start > epoch:
                break
            name = entry.get("optimizer", name)
            settings |= {key: value for key, value in entry.items() if key != "optimizer"}
            settings = {key: settings[key] for key in settings if key in _settings_of(name)}
        return name, settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Regime) and self.entries == other.entries

    def __repr__(self) -> str:
        return f"Regime({self.entries})"


class RegimeOptimizer(Combined):
    """An optimizer that follows a regime; it stays the same object when the regime changes.

        optimizer = RegimeOptimizer(model.parameters(), regime)
        bnn.clip_weights(optimizer, model)                # hooks stay, too
        for epoch in range(epochs):
            optimizer.set_epoch(epoch)
            ...an epoch of optimizer.zero_grad(), loss.backward(), optimizer.step()...

    New settings leave the state alone, Adam's moments above all; only another class of optimizer
    starts afresh. The state_dict knows the epoch, so a resumed run goes on the same.

    Args:
        params: parameters or groups of them. What a group says itself, the regime does not change;
            `lr_scale` in a group is a factor of its learning rate, as `glorot_groups` makes them.
        regime: a `Regime`, or the entries of one.
        reset_each_epoch: whether every epoch forgets the state, as in the reference, which builds
            the optimizer anew each time. It costs Adam its moments and is no good idea.

    Raises:
        ValueError: the regime is not valid.

    Source: `adjust_optimizer` of itayhubara/BinaryNet.pytorch, without its reset of the state.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        regime: Regime | Mapping[Any, Mapping[str, Any]],
        *,
        reset_each_epoch: bool = False,
    ) -> None:
        self.regime = regime if isinstance(regime, Regime) else Regime(regime)
        self.reset_each_epoch = reset_each_epoch
        self.epoch = 0
        given: list[Any] = list(params)
        groups = given if given and isinstance(given[0], dict) else [{"params": given}]
        self._own = [{key: g[key] for key in g if key != "params"} for g in groups]
        self._name, settings = self.regime.at(0)
        super().__init__(_OPTIMIZERS[self._name]([dict(g) for g in groups], **settings))
        self._apply(settings)

    def set_epoch(self, epoch: int) -> None:
        """Takes the settings of an epoch, counted from 0; call it when the epoch begins.

        Raises:
            ValueError: `epoch` is negative.
        """
        _epoch(epoch)
        name, settings = self.regime.at(epoch)
        if name != self._name:
            groups = [
                {"params": group["params"], **own}
                for group, own in zip(self.param_groups, self._own, strict=True)
            ]
            self.optimizers = [_OPTIMIZERS[name](groups, **settings)]
            self.param_groups = list(self.optimizers[0].param_groups)
            self.state = self.optimizers[0].state
            self._name = name
        elif self.reset_each_epoch and epoch != self.epoch:
            self.state.clear()
        self._apply(settings)
        self.epoch = epoch

    def _apply(self, settings: dict[str, Any]) -> None:
        for group, own in zip(self.param_groups, self._own, strict=True):
            group.update({key: value for key, value in settings.items() if key not in own})
            if "lr" in settings and "lr" not in own:
                group["lr"] = settings["lr"] * own.get("lr_scale", 1)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group; what it says itself, the regime does not change."""
        own = {key: value for key, value in param_group.items() if key != "params"}
        super().add_param_group(param_group)
        if len(self._own) < len(self.param_groups):
            self._own.append(own)
            self._apply(self.regime.at(self.epoch)[1])

    def __getstate__(self) -> dict[str, Any]:
        own = ("regime", "reset_each_epoch", "epoch", "_own", "_name")
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def state_dict(self) -> dict[str, Any]:
        """As of any optimizer, with the epoch."""
        return super().state_dict() | {"epoch": self.epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from a state_dict of an optimizer with the same regime.

        Raises:
            ValueError: it holds no epoch, or does not fit the parameters.
        """
        if "epoch" not in state_dict:
            raise ValueError(
                f"state_dict must hold the epoch, found only {', '.join(state_dict)}: it is not of "
                "a RegimeOptimizer"
            )
        self.set_epoch(state_dict["epoch"])
        super().load_state_dict(state_dict)


def _epoch(key: Any) -> int:
    text = str(key)
    if not text.isdecimal():
        raise ValueError(f"an epoch must be an integer of at least 0, found {key!r}")
    return int(text)


def _settings_of(name: str) -> list[str]:
    return [key for key in inspect.signature(_OPTIMIZERS[name]).parameters if key != "params"]
