"""Training batches in an order, and with augmentation, that only seed and epoch decide.

Nothing is drawn from torch's global generator: what a batch holds is a function of the seed, the
epoch and the batch's number. So an interrupted training goes on exactly where it was, and processes
that share a batch see together what one process would have seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader, Dataset, Sampler

from bnn_ext.data.images import DRAWS, ImageData, augment

_Keys = tuple[Tensor, Tensor]  # indices `[N]`, draws `[N, DRAWS]`


def derived_seed(*parts: int | str) -> int:
    """A seed for one purpose: the same for the same parts, unrelated for any others."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits


class Batches(DataLoader[Any]):
    """Shuffled batches `(images, labels)` of the training part; the incomplete last is left out.

    Lightning tells the epoch through `sampler.set_epoch` and keeps `state_dict()` in checkpoints.

    Args:
        images: the data set.
        batch_size: images of a batch over all processes.
        seed: of order and augmentation.
        input_size: height and width that images are scaled to; None leaves them as they are.
        rank, world_size: which share of each batch this process takes, of how many.
        workers: processes that prepare batches; 0 prepares them in this one.

    Raises:
        ValueError: `batch_size` is not positive, larger than the data set, or no multiple of
            `world_size`.
    """

    def __init__(
        self,
        images: ImageData,
        batch_size: int,
        *,
        seed: int,
        input_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        count = len(images.train)  # type: ignore[arg-type]
        if not 1 <= batch_size <= count:
            raise ValueError(
                f"batch_size must be in 1 .. {count}, the images there are, found {batch_size}"
            )
        if batch_size % world_size != 0:
            raise ValueError(
                f"batch_size must be a multiple of {world_size}, the processes, found {batch_size}"
            )
        self._order = _Order(count, batch_size, seed, slice(rank, None, world_size))
        super().__init__(
            _Augmented(images, input_size),
            batch_size=None,
            sampler=self._order,
            num_workers=workers,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        for batch in super().__iter__():
            # Counted as batches are used: workers prepare some in advance.
            self._order.next_batch = (self._order.next_batch + 1) % len(self)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where in the epoch it stands."""
        return {"next_batch": self._order.next_batch}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Goes on from there."""
        self._order.next_batch = state["next_batch"]


class _Order(Sampler[_Keys]):
    """Indices and draws of each batch's share of one process."""

    def __init__(self, count: int, batch_size: int, seed: int, share: slice) -> None:
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.share = share
        self.epoch = 0
        self.next_batch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[_Keys]:
        order = torch.randperm(self.count, generator=self._generator("order"))
        for batch in range(self.next_batch, len(self)):
            indices = order[batch * self.batch_size :][: self.batch_size]
            generator = self._generator("augmentation", batch)
            draws = torch.rand(self.batch_size, DRAWS, generator=generator, dtype=torch.float64)
            yield indices[self.share], draws[self.share]

    def _generator(self, purpose: str, batch: int = 0) -> torch.Generator:
        seed = derived_seed(purpose, self.seed, self.epoch, batch)
        return torch.Generator().manual_seed(seed)


class _Augmented(Dataset[Any]):
    """The training part, by indices and draws."""

    def __init__(self, source: ImageData, input_size: int | None) -> None:
        self.source = source
        self.input_size = input_size

    def __getitem__(self, keys: _Keys) -> tuple[Tensor, Tensor]:
        indices, draws = keys
        part: Any = self.source.train
        if hasattr(part, "random_crops"):  # files are augmented as they are read
            images, labels = part.random_crops(indices, draws)
        else:
            images, labels = part[indices]
            if self.source.augmentation is not None:
                images = augment(images, self.source.augmentation, self.source.background, draws)
        return resized(images, self.input_size), labels


class EvaluationBatches(DataLoader[Any]):
    """Batches `(images, labels)` of a part, in order, every image once.

    Args:
        part: of an `ImageData`.
        batch_size: images of a batch.
        input_size, rank, world_size, workers: as for `Batches`; processes take turns.
    """

    def __init__(
        self,
        part: Dataset[Any],
        batch_size: int,
        *,
        input_size: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        batches = torch.arange(len(part)).split(batch_size)  # type: ignore[arg-type]
        super().__init__(
            _Resized(part, input_size),
            batch_size=None,
            sampler=batches[rank::world_size],
            num_workers=workers,
        )


class _Resized(Dataset[Any]):
    def __init__(self, part: Any, input_size: int | None) -> None:
        self.part = part
        self.input_size = input_size

    def __getitem__(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        images, labels = self.part[indices]
        return resized(images, self.input_size), labels


def resized(images: Tensor, size: int | None) -> Tensor:
    """Scales images `[N, C, H, W]` to `size` x `size`, bilinearly; None leaves them as they are."""
    if size is None or images.shape[-2:] == (size, size):
        return images
    return interpolate(images, size=(size, size), mode="bilinear", antialias=True)
