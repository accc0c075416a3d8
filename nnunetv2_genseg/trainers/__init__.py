"""Trainers for nnU-Net v2.

Raises:
    ImportError: the installed nnU-Net is too old.
"""

from importlib.metadata import version

from packaging.version import Version

OLDEST_NNUNET = "2.8"

# the base version: a pre-release of 2.8 has what is needed of 2.8
if Version(Version(version("nnunetv2")).base_version) < Version(OLDEST_NNUNET):
    raise ImportError(
        f"nnunetv2-genseg needs nnunetv2 {OLDEST_NNUNET} or newer, found {version('nnunetv2')}; "
        "run: pip install --upgrade nnunetv2"
    )

from nnunetv2_genseg.trainers.genseg_trainer import GenSegTrainer, GenSegTrainerDA5  # noqa: E402
from nnunetv2_genseg.trainers.mixin import GenSegMixin  # noqa: E402
from nnunetv2_genseg.trainers.presets import *  # noqa: E402, F403
from nnunetv2_genseg.trainers.presets import __all__ as _presets  # noqa: E402
from nnunetv2_genseg.trainers.short import (  # noqa: E402
    GenSegTrainerDA5Short,
    GenSegTrainerShort,
    nnUNetTrainerDA5Short,
    nnUNetTrainerShort,
)

__all__ = [
    "GenSegMixin",
    "GenSegTrainer",
    "GenSegTrainerDA5",
    "GenSegTrainerDA5Short",
    "GenSegTrainerShort",
    "nnUNetTrainerDA5Short",
    "nnUNetTrainerShort",
    *_presets,
]
