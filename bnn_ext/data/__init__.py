"""Image data sets with the preprocessing of published experiments, and their batches."""

from bnn_ext.data.batches import Batches, EvaluationBatches, derived_seed
from bnn_ext.data.digits import digits
from bnn_ext.data.images import Augmentation, ImageData, augment
from bnn_ext.data.sets import load, names, preprocessings

__all__ = [
    "Augmentation",
    "Batches",
    "EvaluationBatches",
    "ImageData",
    "augment",
    "derived_seed",
    "digits",
    "load",
    "names",
    "preprocessings",
]
