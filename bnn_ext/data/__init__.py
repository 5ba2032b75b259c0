"""Image data sets in memory, and loaders that cut them into batches."""

from bnn_ext.data.digits import digits
from bnn_ext.data.images import ImageData, loader, random_shift
from bnn_ext.data.mnist import mnist

__all__ = ["ImageData", "digits", "loader", "mnist", "random_shift"]
