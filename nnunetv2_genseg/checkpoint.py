"""Saves and restores the generator's state, in a sibling file of nnU-Net's checkpoint.

The sibling `checkpoint_latest.genseg-0050.pt` belongs to the `checkpoint_latest.pth` of epoch 50. It is written first.
Siblings of other epochs are removed when nnU-Net's file is in place. So the newest complete `.pth` has its sibling,
whenever a process is killed. The sibling holds tensors, numbers, strings, lists and dictionaries only, and is read with
`weights_only=True`.
"""

from __future__ import annotations

import lzma
import pickle
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.files.atomic import replacing

FORMAT = 10
UNREADABLE: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError)
UNREADABLE += (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
"""What reading a damaged file raises."""
REMEDY = "restore that file, or train anew, without --c"


def save_atomically(content: Any, path: Path) -> None:
    """`torch.save` through `replacing`."""
    with replacing(path) as file:
        torch.save(content, file)


def sibling(checkpoint: Path, epoch: int) -> Path:
    """Where the generator's state for a checkpoint of `epoch` is."""
    return checkpoint.with_name(f"{checkpoint.stem}.genseg-{epoch:04d}.pt")


def save_sibling(state: dict[str, Any], identity: dict[str, Any], checkpoint: Path, epoch: int) -> None:
    """Writes the generator's state for the checkpoint that will be written next.

    Args:
        state: from `BilevelLoop.state_dict`, with what else a resumed training needs.
        identity: what the state belongs to, JSON-like; must be equal when it is loaded.
        checkpoint: nnU-Net's file.
        epoch: the epoch that nnU-Net's file will hold.
    """
    save_atomically({"format": FORMAT, "epoch": epoch, "identity": identity, "state": state}, sibling(checkpoint, epoch))


def remove_siblings(checkpoint: Path, keep: int | None = None) -> None:
    """Removes the generator's states of a checkpoint, but for that of epoch `keep`."""
    for path in checkpoint.parent.glob(f"{checkpoint.stem}.genseg-*.pt"):
        if keep is None or path != sibling(checkpoint, keep):
            path.unlink(missing_ok=True)


def require_intact(path: Path) -> None:
    """Compares a file that `torch.save` wrote with its checksums, which `torch.load` does not read.

    Raises:
        GenSegError: the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                raise ValueError("checksum")
    except UNREADABLE as error:
        raise GenSegError(f"{path} is corrupt ({type(error).__name__}: {error}); {REMEDY}") from error


def load_sibling(identity: dict[str, Any], checkpoint: Path, epoch: int) -> dict[str, Any]:
    """The state that `save_sibling` wrote, on the CPU: Adam's step counters belong there whatever the device.

    Raises:
        GenSegError: it is missing, corrupt, of another version, of another epoch, or belongs to something else than `identity`.
    """
    path = sibling(checkpoint, epoch)
    if not path.is_file():
        raise GenSegError(f"{checkpoint.name} is of epoch {epoch}, but its generator state {path} is missing; {REMEDY}")
    require_intact(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        form, found_epoch, found, state = (content[key] for key in ("format", "epoch", "identity", "state"))
    except UNREADABLE as error:
        raise GenSegError(f"generator state {path} is corrupt ({type(error).__name__}); {REMEDY}") from error
    if form != FORMAT:
        raise GenSegError(
            f"generator state {path} has format {form}, this version reads {FORMAT}; go on with the version of "
            "nnunetv2-genseg that wrote it, or train anew, without --c"
        )
    if not (isinstance(found, dict) and isinstance(state, dict)):
        raise GenSegError(f"generator state {path} is corrupt; {REMEDY}")
    for key, here in [*identity.items(), ("epoch", epoch)]:
        there = found_epoch if key == "epoch" else found.get(key)
        if there != here:
            raise GenSegError(f"generator state {path} belongs to another training: {_told(key, there, here)}; {REMEDY}")
    return state


def _told(key: str, there: Any, here: Any) -> str:
    """A difference in words; of lists of names what is in one of them alone."""
    if isinstance(there, list) and isinstance(here, list) and all(isinstance(name, str) for name in there + here):
        gone, new = (sorted(set(one) - set(other)) for one, other in ((there, here), (here, there)))
        parts = [
            f"{', '.join(names[:5])}{', ...' * (len(names) > 5)} {only}"
            for names, only in ((gone, "only there"), (new, "only here"))
            if names
        ]
        return f"{key} differ, {', '.join(parts)}" if parts else f"{key} differ in their order"
    return f"{key} is {there!r} there, {here!r} here"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Inside the block, what a state of another form raises becomes a message with the path."""
    try:
        yield
    except UNREADABLE as error:
        raise GenSegError(f"generator state {path} does not fit ({type(error).__name__}: {error}); {REMEDY}") from error


OF_OPTIMISER = {"params", "lr"}
"""Keys of a parameter group in the state of every optimiser of torch."""


def first_difference(own: Any, there: Any, place: str = "") -> str | None:
    """Where a state does not have the form of another one: names, types, shapes of tensors; None if it has.

    Args:
        own: the state of what shall load the other one. An empty dictionary or list stands for any, and None for everything.
        there: the state to be loaded.
        place: of both in a larger state.
    """
    if own is None or there is None:
        return None
    if isinstance(own, Tensor):
        return None if isinstance(there, Tensor) and (own.shape, own.dtype) == (there.shape, there.dtype) else place
    if isinstance(own, (dict, list, tuple)):
        kind = dict if isinstance(own, dict) else (list, tuple)
        if not isinstance(there, kind):
            return place
        if isinstance(own, dict) and own.keys() >= OF_OPTIMISER:  # versions of torch have other options beside
            own = {key: value for key, value in own.items() if key in OF_OPTIMISER or key in there}
        elif own and len(own) != len(there):
            return place
        items = own.items() if isinstance(own, dict) else enumerate(own)
        for key, value in items:
            if isinstance(own, dict) and key not in there:
                return f"{place}.{key}"
            found = first_difference(value, there[key], f"{place}.{key}")
            if found is not None:
                return found
        return None
    numbers = (int, float)
    alike = isinstance(there, numbers) if isinstance(own, numbers) else isinstance(there, type(own))
    return None if alike else place
