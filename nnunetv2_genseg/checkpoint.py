"""Atomic writing of every file, and save and restore: nnU-Net's checkpoint and, in a sibling file, the generator's state.

The sibling `checkpoint_latest.genseg-0050.pt` belongs to the `checkpoint_latest.pth` of epoch 50. It is written first.
Siblings of other epochs are removed when nnU-Net's file is in place. So the newest complete `.pth` has its sibling,
whenever a process is killed. The sibling holds tensors, numbers, strings, lists and dictionaries only, and is read with
`weights_only=True`.
"""

from __future__ import annotations

import contextlib
import lzma
import os
import pickle
import random
import shutil
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from nnunetv2_genseg.config import GenSegError, GenSegFileError
from nnunetv2_genseg.config.errors import of_writing

FORMAT = 10
UNREADABLE: tuple[type[Exception], ...] = (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, AttributeError)
UNREADABLE += (pickle.UnpicklingError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
"""What reading a damaged file raises."""
CPU = torch.device("cpu")
REMEDY = "restore that file, or train anew, without --c"
PARTIAL = ".partial"
"""Ending of a file that is being written."""
_in_progress: set[Path] = set()
"""What this process is writing."""


def save_atomically(content: Any, path: Path) -> None:
    """`torch.save` through `replacing`."""
    with replacing(path) as file:
        torch.save(content, file)


def write_text_atomically(text: str, path: Path) -> None:
    """Writes text in UTF-8 through `replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to write to, which replaces `path` when the block ends.

    It has a temporary name beside `path`, is flushed to the disk and then renamed. Its mode follows the umask.

    Raises:
        GenSegFileError: it could not be written (disk full, no permission); what was at `path` before is intact.
    """
    partial = partial_of(path)
    with writing(path, partial):
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)


@contextlib.contextmanager
def writing(path: Path, partial: Path) -> Iterator[None]:
    """Inside the block `partial`, a file or folder, is written, which shall replace `path`; after an error it is removed.

    Raises:
        GenSegFileError: a file could not be written.
    """
    _in_progress.add(partial)
    try:
        yield
    except BaseException as error:
        _remove(partial)
        interruption = _interruption(error)
        if interruption is not None:
            raise interruption from None
        unwritten = isinstance(error, (OSError, SafetensorError)) or of_writing(error)
        if not unwritten or isinstance(error, GenSegFileError):
            raise
        raise GenSegFileError(
            f"could not write {path}: {error}. What was saved there before is intact; free space or correct the "
            "permissions and continue (a training with --c)"
        ) from error
    finally:
        _in_progress.discard(partial)


def _interruption(error: BaseException | None) -> BaseException | None:
    """What ended the process if an error only follows from it: torch's writer fails when SIGTERM interrupts it."""
    while error is not None and isinstance(error, Exception):
        error = error.__cause__ or error.__context__
    return error


def put_in_place(written: Path, target: Path) -> None:
    """Flushes a whole file that a library has written to the disk, and moves it to `target` on the same file system.

    Raises:
        OSError: it could not be flushed or moved.
    """
    with open(written, "rb+") as file:
        os.fsync(file.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(written, target)


def partial_of(path: Path) -> Path:
    """Where this process writes a file that shall replace `path`."""
    return path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")


def remove_partial(folder: Path) -> None:
    """Removes what processes had begun to write that are no longer there. No other one may write into the folder."""
    for path in folder.glob(f"*{PARTIAL}"):
        if path not in _in_progress:
            _remove(path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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
        content = torch.load(path, map_location=CPU, weights_only=True)
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


@contextlib.contextmanager
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


def global_random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and torch's global generators, which nnU-Net's augmentation draws from."""
    version, internal, gauss = random.getstate()
    legacy = np.random.get_state(legacy=True)
    assert isinstance(legacy, tuple)
    _, keys, position, has_gauss, cached = legacy
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def set_global_random_state(state: dict[str, Any], device: torch.device) -> None:
    """The inverse of `global_random_state`."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    assert isinstance(keys, Tensor)
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextlib.contextmanager
def own_random_state(seed: int, device: torch.device = CPU) -> Any:
    """Seeds Python's, NumPy's and torch's global generators, `device`'s too, inside the block and puts them back after it."""
    kept = global_random_state(device)
    if device.type == "cuda":
        torch.cuda.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.set_rng_state(torch.Generator().manual_seed(seed).get_state())
    try:
        yield
    finally:
        set_global_random_state(kept, device)
