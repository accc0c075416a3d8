"""nnU-Net's checkpoint under the name of a trainer that stock nnU-Net can build for prediction."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from nnunetv2_genseg.checkpoint import save_atomically
from nnunetv2_genseg.files.atomic import partial_of, writing

OWN_PACKAGE = __name__.split(".")[0]
NETWORK = "build_network_architecture"
"""The static method of a trainer class that prediction builds the network with."""


def host_trainer(kind: type, mixin: type) -> str:
    """The name of the trainer that prediction shall build the network with.

    Prediction finds a trainer class by the name in the checkpoint and calls its static `build_network_architecture`. That is the
    first class after `mixin` in the MRO that builds the same network as `kind` and is not of this package: prediction then
    needs this package no more. A trainer with a network of its own keeps its name, since no class after `mixin` builds it.

    Args:
        kind: the trainer's class.
        mixin: `GenSegMixin`, one of its bases.
    """
    order = kind.__mro__
    for host in order[order.index(mixin) + 1 :]:
        own = host.__module__.split(".")[0] == OWN_PACKAGE
        if not own and issubclass(host, nnUNetTrainer) and _builder(host) is _builder(kind):
            return host.__name__
    return kind.__name__


def _builder(kind: type) -> object:
    """The static method itself, the same object for all classes that inherit it."""
    return inspect.getattr_static(kind, NETWORK)


def save_with_trainer_name(save: Callable[[str], None], path: Path, trainer_name: str) -> None:
    """Writes nnU-Net's checkpoint atomically, with another trainer's name in it and without a copy of it in memory.

    Args:
        save: the host's `save_checkpoint`, which writes a checkpoint to the file that it is given.
        path: where the checkpoint shall be.
        trainer_name: of a trainer that prediction can find.

    Raises:
        GenSegFileError: it could not be written; the older checkpoint is intact.
    """
    partial = partial_of(path.with_name(f"host_{path.name}"))
    with writing(path, partial):
        save(str(partial))
        content = torch.load(str(partial), map_location="cpu", mmap=True, weights_only=False)
        content["trainer_name"] = trainer_name
        save_atomically(content, path)
        del content  # some systems do not remove a file that is mapped
        partial.unlink()
