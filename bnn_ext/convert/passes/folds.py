"""BatchNorm behind a real convolution or linear layer goes into its weight and bias."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.ir import aten


def fold_batch_norms(graph: Graph) -> None:
    """Rewrites the graph in place. Sums round elsewhere than before: not for exact networks."""
    for node in list(graph.find_nodes(op="call_function", target=aten.batch_norm.default)):
        layer = node.args[0]
        if (
            ir.calls(layer, aten.convolution.default, aten.linear.default)
            and len(layer.users) == 1
            and len(layer.meta["shape"]) in (2, 4)
            and ir.tensor_of(layer.args[1]) is not None
            and not (layer.target == aten.convolution.default and layer.args[6])
            and not ir.is_variable(ir.argument(layer, 2, "bias", None))
            and not node.args[5]
            and node.args[3] is not None
        ):
            _fold(graph, layer, node)
    graph.eliminate_dead_code()


def _fold(graph: Graph, layer: Node, norm: Node) -> None:
    weight = ir.tensor_of(layer.args[1])
    bias = ir.tensor_of(ir.argument(layer, 2, "bias", None))
    gamma, beta, mean, variance = (ir.tensor_of(value) for value in norm.args[1:5])
    assert weight is not None and mean is not None and variance is not None
    # In float64, so that each new value is rounded once.
    factor = (variance.double() + norm.args[7]).rsqrt()
    factor = factor if gamma is None else factor * gamma.double()
    addend = -mean.double() if bias is None else bias.double() - mean.double()
    addend = addend * factor if beta is None else addend * factor + beta.double()
    scaled = weight.double() * factor.view(-1, *[1] * (weight.dim() - 1))

    def rounded(values: Tensor) -> Tensor:
        return values.to(weight.dtype)

    with graph.inserting_before(norm):
        arguments = [
            layer.args[0],
            ir.constant(graph, rounded(scaled), layer),
            ir.constant(graph, rounded(addend), layer),
            *layer.args[3:],
        ]
        folded = ir.call(
            graph,
            layer.target,
            tuple(arguments),
            norm,
            layer=layer.meta["layer"],
            kind=layer.meta["kind"],
            absorbed=(norm,),
            rounds=True,
        )
    ir.replace(norm, folded)
    graph.erase_node(norm)
    graph.erase_node(layer)
