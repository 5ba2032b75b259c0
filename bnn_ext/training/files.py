"""Files that are there as a whole or not at all, and what a checkpoint holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from bnn_ext.training.methods import set_quantizers
from bnn_ext.training.settings import Settings

FORMAT = 1


def write(path: Path, save: Callable[[IO[bytes]], object]) -> None:
    """Replaces a file by what `save` writes, at one stroke when all of it is on the disk.

    Raises:
        OSError: it cannot be written; the file that was there still is.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch.save makes RuntimeErrors of a full disk
        kept = "; the earlier file is still there" if path.exists() else ""
        raise OSError(f"{path} could not be written: {error}{kept}") from error
    finally:
        temporary.unlink(missing_ok=True)


def checkpoint_file(path: Path) -> Path:
    """The checkpoint that a file, or the folder of a run, stands for."""
    return path / "last.ckpt" if path.is_dir() else path


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint of `bnn-ext train`, read without running anything that it holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such checkpoint, or one of another format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is no file; a checkpoint or a run's folder is needed")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        about = checkpoint["bnn_ext"]
    except Exception as error:  # torch.load raises what the bytes happen to provoke
        raise ValueError(f"{path} is no checkpoint of bnn-ext train") from error
    if about["format"] != FORMAT:
        raise ValueError(f"{path} must be a checkpoint of format {FORMAT}, found {about['format']}")
    return checkpoint


def settings_in(checkpoint: Mapping[str, Any]) -> Settings:
    """What the training of a checkpoint was told to do."""
    return Settings(**checkpoint["bnn_ext"]["settings"])


def model_in(path: Path) -> nn.Sequential:
    """The model of a checkpoint, in eval mode, with its latent weights as parameters.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint.
    """
    checkpoint = read_checkpoint(path)
    about, settings = checkpoint["bnn_ext"], settings_in(checkpoint)
    model = settings.make_model(about["num_classes"], tuple(about["image"]))
    load_weights(model, checkpoint, path)
    set_quantizers(model, settings.method, trained=True)
    return model.eval()


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Puts the weights of a checkpoint into a model.

    Raises:
        ValueError: they belong to another model; the message names the first mismatch.
    """
    prefix = "model."
    stored: dict[str, Tensor] = {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint["state_dict"].items()
        if name.startswith(prefix)
    }
    expected = model.state_dict()
    for name, tensor in expected.items():
        found = tuple(stored[name].shape) if name in stored else "nothing"
        if found != tuple(tensor.shape):
            raise ValueError(
                f"{path} holds another model: {name} must have shape {tuple(tensor.shape)}, "
                f"found {found}"
            )
    for name in stored:
        if name not in expected:
            raise ValueError(f"{path} holds another model: it has {name}, the model has not")
    model.load_state_dict(stored)
