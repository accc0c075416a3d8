"""Trainers for nnU-Net v2.

Raises:
    ImportError: the installed nnU-Net is too old.
"""

from importlib.metadata import version

OLDEST_NNUNET = (2, 8)

if tuple(int(part) for part in version("nnunetv2").split(".")[:2]) < OLDEST_NNUNET:
    raise ImportError(
        f"nnunetv2-genseg needs nnunetv2 {'.'.join(map(str, OLDEST_NNUNET))} or newer, found {version('nnunetv2')}; "
        "run: pip install --upgrade nnunetv2"
    )

from nnunetv2_genseg.trainers.genseg_trainer import GenSegMixin, GenSegTrainer  # noqa: E402
from nnunetv2_genseg.trainers.presets import *  # noqa: E402, F403
from nnunetv2_genseg.trainers.presets import __all__ as _presets  # noqa: E402
from nnunetv2_genseg.trainers.short import GenSegTrainerShort, nnUNetTrainerDA5Short, nnUNetTrainerShort  # noqa: E402

__all__ = ["GenSegMixin", "GenSegTrainer", "GenSegTrainerShort", "nnUNetTrainerDA5Short", "nnUNetTrainerShort", *_presets]
