"""Networks of binary linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

from torch import nn

from bnn_ext import nn as bnn
from bnn_ext.models.blocks import normalized, require_positive, require_probability
from bnn_ext.quantizers import dropout_sign


def mlp_mnist_binary(
    num_classes: int = 10,
    in_features: int = 784,
    *,
    hidden: int = 6144,
    layers: int = 3,
    dropout: float = 0.5,
) -> nn.Sequential:
    """BinaryNet's MLP for MNIST, three times as wide: 80.4 million parameters.

    Hidden layers with BatchNorm and Hardtanh, the first on the real image, then a real classifier.
    Dropout stands behind the sums of the last hidden layer, in front of its BatchNorm.

    Shape: `[N, ...]` of `in_features` values each to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_features: values of one image.
        hidden: units of each hidden layer; the paper has 4096 (Theano) or 2048 (Torch).
        layers: number of hidden layers.
        dropout: probability.

    Raises:
        ValueError: a size is not positive, or `dropout` is not in [0, 1].

    Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
    (arXiv:1602.02830); the widths and layers are those of itayhubara/BinaryNet.pytorch.
    """
    require_positive(num_classes=num_classes, in_features=in_features, hidden=hidden, layers=layers)
    require_probability(dropout=dropout)
    modules: list[nn.Module] = [nn.Flatten()]
    for i in range(layers):
        layer = bnn.BinaryLinear(
            in_features if i == 0 else hidden, hidden, input_quantizer="ste_sign" if i > 0 else None
        )
        modules += normalized(layer, activation=nn.Hardtanh())
    modules.insert(-2, nn.Dropout(dropout))
    return nn.Sequential(*modules, nn.Linear(hidden, num_classes))


def bnn_mlp(
    num_classes: int = 10,
    in_features: int = 784,
    *,
    hidden: int = 4096,
    layers: int = 3,
    dropout_in: float = 0.2,
    dropout: float = 0.5,
) -> nn.Sequential:
    """The BNN paper's MLP for MNIST: 36.8 million parameters, binary to the last layer.

    Each layer ends in BatchNorm; the sign that the next one takes is the nonlinearity. The first
    layer takes the real image. Weights start uniform on [-1, 1]; keep them there with
    `bnn.clip_weights`.

    Shape: `[N, ...]` of `in_features` values each to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_features: values of one image.
        hidden: units of each hidden layer.
        layers: number of hidden layers.
        dropout_in: probability of the image's values.
        dropout: probability of the signs behind each hidden layer.

    Raises:
        ValueError: a size is not positive, or a probability is not in [0, 1].

    Source: Hubara, Courbariaux, Soudry, El-Yaniv, Bengio, "Binarized Neural Networks", 2016
    (arXiv:1602.02830), as MatthieuCourbariaux/BinaryNet trains it, without its biases, which
    BatchNorm takes off again.
    """
    require_positive(num_classes=num_classes, in_features=in_features, hidden=hidden, layers=layers)
    require_probability(dropout_in=dropout_in, dropout=dropout)
    # Without dropout by its own name, as only plain signs train on packed bits.
    dropped = partial(dropout_sign, p=dropout) if dropout > 0 else "ste_sign"
    modules: list[nn.Module] = [nn.Flatten(), nn.Dropout(dropout_in)]
    for i, sizes in enumerate(pairwise((in_features, *layers * (hidden,), num_classes))):
        layer = bnn.BinaryLinear(*sizes, bias=False, input_quantizer=dropped if i > 0 else None)
        nn.init.uniform_(layer.weight, -1, 1)
        modules += normalized(layer, eps=1e-4)
    return nn.Sequential(*modules)


def binary_dense_mlp(
    num_classes: int = 10,
    in_features: int = 784,
    *,
    hidden: Sequence[int] = (128, 64),
    bias: bool = True,
    batch_norm: bool = True,
    eps: float = 1e-5,
    momentum: float = 0.01,
) -> nn.Sequential:
    """Layers of the kind `BinaryDense`: binary linear, bias, BatchNorm, and nothing else.

    The sign that the next layer takes is the nonlinearity. The first layer takes the real image,
    and the last one's BatchNorm gives the logits. Settings of the published examples:

    | example                        | settings                                                |
    | ------------------------------ | ------------------------------------------------------- |
    | TensorFlow, MNIST, 128-64-10   | the defaults                                            |
    | PyTorch, MNIST, 20-10          | `hidden=(20,)`, `bias=False`, `batch_norm=False`        |
    | eBNN, MNIST, 16-10             | `hidden=(16,)`                                          |
    | microcontroller, MNIST, 10     | `hidden=()`                                             |

    Shape: `[N, ...]` of `in_features` values each to `[N, num_classes]`.

    Args:
        num_classes: number of logits.
        in_features: values of one image.
        hidden: units of each layer but the last.
        bias: whether layers have one.
        batch_norm: whether layers end in BatchNorm.
        eps, momentum: of BatchNorm, momentum in torch's sense: the weight of the new batch.

    Raises:
        ValueError: a size is not positive.

    Source: ittuann/Binarized-Neural-Networks, after "Binarized Neural Networks", 2016
    (arXiv:1602.02830).
    """
    require_positive(num_classes=num_classes, in_features=in_features)
    require_positive(**{f"hidden[{i}]": units for i, units in enumerate(hidden)})
    modules: list[nn.Module] = [nn.Flatten()]
    for i, (inputs, outputs) in enumerate(pairwise((in_features, *hidden, num_classes))):
        layer = bnn.BinaryLinear(
            inputs, outputs, bias, input_quantizer="ste_sign" if i > 0 else None
        )
        nn.init.xavier_uniform_(layer.weight)
        if bias:
            nn.init.zeros_(layer.bias)
        modules += normalized(layer, eps=eps, momentum=momentum) if batch_norm else [layer]
    return nn.Sequential(*modules)
