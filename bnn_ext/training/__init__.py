"""Training on Lightning, and the demonstration (needs the extra `train`)."""

from bnn_ext.training.classifier import Classifier
from bnn_ext.training.fit import fit
from bnn_ext.training.settings import Optimization, Settings
from bnn_ext.training.train import Evaluation, convert, evaluate, train

__all__ = [
    "Classifier",
    "Evaluation",
    "Optimization",
    "Settings",
    "convert",
    "evaluate",
    "fit",
    "train",
]
