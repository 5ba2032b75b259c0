"""The converter's passes, in the order they run.

moves.py        views, slices, shuffles and flattened maps get their names
products.py     binary layers and signs are found by what they compute
folds.py        BatchNorm goes into the weight of a real layer (not in exact networks)
thresholds.py   BatchNorm and activation in front of a sign go into a comparison
finishes.py     what else follows a layer joins its kernel, step by step
"""

from bnn_ext.convert.passes.finishes import join_finishes
from bnn_ext.convert.passes.folds import fold_batch_norms
from bnn_ext.convert.passes.moves import name_moves
from bnn_ext.convert.passes.products import find_products
from bnn_ext.convert.passes.thresholds import compare_at_sources

__all__ = [
    "compare_at_sources",
    "find_products",
    "fold_batch_norms",
    "join_finishes",
    "name_moves",
]
