"""Networks made of binary layers, ready to train and to convert."""

from bnn_ext.models.small_cnn import digits_cnn, mnist_cnn

__all__ = ["digits_cnn", "mnist_cnn"]
