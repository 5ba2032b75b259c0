"""Training on Lightning, and the demonstration (needs the extra `train`)."""

from bnn_ext.training.classifier import Classifier
from bnn_ext.training.fit import fit

__all__ = ["Classifier", "fit"]
