"""Names what only moves values: selections of channels (slices, shuffles) and flattened maps.

Views, transpositions, slices and splits come in endless spellings. What a run of them does is seen
by moving the numbers of the positions instead of values.
"""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor
from torch.fx import Graph, Node

from bnn_ext.convert import ir
from bnn_ext.convert.ir import aten

_MOVES = {
    getattr(aten, name)
    for name in "reshape permute transpose slice split split_with_sizes squeeze unsqueeze select t "
    "unbind chunk channel_shuffle expand flip roll index_select".split()
}


def name_moves(graph: Graph) -> None:
    """Rewrites the graph in place: runs of moves become `ir.select` or `ir.flatten`."""
    for node in list(graph.nodes):
        if not _is_move(node) or not isinstance(node.meta.get("shape"), tuple):
            continue
        for source in _sources(node):
            moved = _positions(node, source)
            if moved is not None and _name(graph, node, source, moved):
                break
    graph.eliminate_dead_code()


def _is_move(node: Node) -> bool:
    if ir.calls(node, operator.getitem):
        return isinstance(node.args[0], Node) and _is_move(node.args[0])
    if ir.calls(node, ir.select):
        return True
    return node.op == "call_function" and getattr(node.target, "overloadpacket", None) in _MOVES


def _sources(node: Node) -> list[Node]:
    """What the node's values may come from, the farthest first."""
    sources = []
    while _is_move(node):
        node = node.args[0]
        if isinstance(node.meta.get("shape"), tuple):
            sources.append(node)
    return sources[::-1]


def _positions(node: Node, source: Node) -> Tensor | None:
    """For each position of the node's result, the position in the source that it comes from."""
    path = []
    step = node
    while step is not source:
        path.append(step)
        step = step.args[0]
    shape = source.meta["shape"]
    values: dict[Node, object] = {source: torch.arange(math.prod(shape)).view(shape)}
    for step in reversed(path):
        for other in step.all_input_nodes:
            if other not in values and ir.tensor_of(other) is None:
                return None
            values.setdefault(other, ir.tensor_of(other))
        values[step] = ir.compute(step, values)
    found = values[node]
    return found if isinstance(found, Tensor) else None


def _name(graph: Graph, node: Node, source: Node, moved: Tensor) -> bool:
    """Rewrites the node if it is one of the two known moves."""
    shape = source.meta["shape"]
    if len(shape) < 2 or moved.dim() < 2 or moved.numel() == 0 or len(shape) > 4:
        return False
    positions = torch.arange(math.prod(shape)).view(shape)
    with graph.inserting_before(node):
        if len(shape) == 4 and torch.equal(moved, positions.flatten(1)):
            ir.replace(node, ir.call(graph, ir.flatten, (source,), node))
            return True
        if moved.shape[:1] + moved.shape[2:] != shape[:1] + shape[2:]:
            return False
        inner = math.prod(shape[2:])
        index = moved[0].reshape(moved.shape[1], -1)[:, 0] // inner
        if int(index.max()) >= shape[1]:  # from another sample
            return False
        if not torch.equal(moved, positions.index_select(1, index)):
            return False
        if torch.equal(index, torch.arange(shape[1])):
            node.replace_all_uses_with(source)
        else:
            constant = ir.constant(graph, index, node)
            ir.replace(node, ir.call(graph, ir.select, (source, constant), node))
    return True
