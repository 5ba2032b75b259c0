"""Any float model as a binary one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection

from torch import nn

from bnn_ext.nn.binary import BINARY_OF, make_binary
from bnn_ext.quantizers import Quantizer

_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6)


def first_and_last(model: nn.Module) -> set[str]:
    """Names of the first and the last linear layer or convolution, in order of registration.

    They hold few of the weights and most of the accuracy that binarizing loses: the first meets the
    image, the last gives the answer.
    """
    names = _replaceable(model)
    return {*names[:1], *names[-1:]}


def binarize(
    model: nn.Module,
    skip: Collection[str] | Callable[[nn.Module], Collection[str]] = first_and_last,
    *,
    input_quantizer: str | Quantizer | None = "ste_sign",
    weight_quantizer: str | Quantizer | None = "magnitude_aware_sign",
    activation: Callable[[], nn.Module] | None = nn.Hardtanh,
) -> nn.Module:
    """A copy of a float model with binary layers in place of linear layers and convolutions.

    The binary layers hold the same weights, now as latent ones, so a trained model is a start for
    training the binary one. ReLU and ReLU6 give way too: no value behind them is negative, so all
    signs would be +1 and the network would answer the same to everything. Only modules can be
    replaced, not calls of `torch.nn.functional.relu`.

        binary = bnn.binarize(torchvision.models.resnet18(weights="DEFAULT"))
        binary = bnn.binarize(model, skip=["stem.conv", "classifier"])
        binary = bnn.binarize(model, skip=())

    Args:
        model: any model; it stays as it is. Exactly `torch.nn.Linear` and `torch.nn.Conv1d/2d/3d`
            are replaced, layers derived from them are not.
        skip: names of layers to leave real, as in `model.named_modules()`, or a function that finds
            them.
        input_quantizer, weight_quantizer: of the binary layers. The default weight quantizer keeps
            the mean magnitude of each output channel, and so the scale of what follows.
        activation: makes what stands in the place of ReLU and ReLU6; None leaves them.

    Returns:
        The binary model, in the same mode (training or eval) and on the same device.

    Raises:
        ValueError: no layer is left to replace, `skip` names something that is none of them, a
            layer pads with anything but zeros, or a quantizer's name is unknown.
        TypeError: a quantizer is neither a name nor a callable.
    """
    skipped = set(skip(model) if callable(skip) else skip)
    found = _replaceable(model)
    if unknown := skipped.difference(found):
        raise ValueError(
            f"skip must name linear layers or convolutions of the model, found {min(unknown)!r}"
        )
    if len(skipped) == len(found):
        raise ValueError(
            f"model must hold a linear layer or convolution that is not skipped, found "
            f"{len(found)} in {type(model).__name__}, all skipped"
        )
    model = copy.deepcopy(model)
    for name in found:
        if name in skipped:
            continue
        try:
            make_binary(model.get_submodule(name), input_quantizer, weight_quantizer)
        except (TypeError, ValueError) as error:
            raise type(error)(f"layer {name or '(model)'}: {error}") from None
    if activation is not None:
        for module in list(model.modules()):
            for name, child in module._modules.items():  # with all names of a shared one
                if child is not None and type(child) in _NEVER_NEGATIVE:
                    setattr(module, name, activation().train(child.training))
    return model


def _replaceable(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if type(module) in BINARY_OF]
