"""MNIST, read and if need be downloaded by torchvision."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

from torch.utils.data import TensorDataset

from bnn_ext._extras import needs_extra
from bnn_ext.data.images import ImageData


def mnist(root: str | Path) -> ImageData:
    """60,000 real images of digits to train with and 10,000 to test with, 28x28 pixels.

    Pixels 0 .. 255 become `pixel / 128 - 1`, from -1 to 127/128: a power of two, so that sums of
    ±pixels are exact in float32, as for `digits`.

    Args:
        root: the folder that holds `MNIST/raw/`. Files that are missing there are downloaded.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
        FileNotFoundError: the files are missing and could not be downloaded.

    Source: LeCun, Bottou, Bengio, Haffner, "Gradient-Based Learning Applied to Document
    Recognition", Proceedings of the IEEE 86, 1998.
    """
    return ImageData(
        title="MNIST handwritten digits",
        train=_part(Path(root), train=True),
        test=_part(Path(root), train=False),
        num_classes=10,
        background=-1.0,
    )


def _part(root: Path, train: bool) -> TensorDataset:
    with needs_extra("train"):
        from torchvision.datasets import MNIST

    try:
        source = MNIST(root, train=train, download=True)  # downloads only what is missing
    except (RuntimeError, URLError) as error:
        raise FileNotFoundError(
            f"MNIST is not in {root / 'MNIST' / 'raw'} and could not be downloaded. "
            "Where there is a network, run: "
            f"python -c \"from torchvision.datasets import MNIST; MNIST('{root}', download=True)\""
        ) from error
    return TensorDataset(source.data.unsqueeze(1) / 128 - 1, source.targets.long())
