"""What the final validation leaves for others: its summary and, in a cascade, the segmentations that the next stage trains on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nnunetv2_genseg.files.atomic import partial_of, put_in_place, remove_partial

SUMMARY = Path("validation") / "summary.json"
"""In the fold folder: nnU-Net's figures of the validation cases, by the final network."""
NEXT_STAGE = "predicted_next_stage"
"""In the trainer's folder: segmentations for the next stages of a cascade, a folder a stage."""


@contextmanager
def exported_whole(trainer: Any) -> Iterator[None]:
    """Around nnU-Net's final validation: what it leaves replaces older files when it has come to its end, and only then.

    A process that is killed while it writes a segmentation for the next stage leaves a file of the right shape that shows nothing
    but background. So these are written beside the checkpoints and moved at the end. The summary of an earlier validation is
    removed first, because nnU-Net writes the validation's segmentations in place.
    """
    fold, base = Path(trainer.output_folder), trainer.output_folder_base
    partial = partial_of(fold / NEXT_STAGE)
    _forget_summary(trainer)
    if not trainer.is_ddp:  # else another process of this training may have begun
        remove_partial(fold)
    trainer.output_folder_base = str(partial)  # below it nnU-Net writes what is for the next stage
    try:
        yield
        for file in sorted(path for path in partial.rglob("*") if path.is_file()):
            put_in_place(file, Path(base) / file.relative_to(partial))
    except BaseException:
        _forget_summary(trainer)
        raise
    finally:
        trainer.output_folder_base = base
        shutil.rmtree(partial, ignore_errors=True)


def _forget_summary(trainer: Any) -> None:
    if trainer.local_rank == 0:
        (Path(trainer.output_folder) / SUMMARY).unlink(missing_ok=True)
