"""What a user may set, how it is read, and the errors that a user can correct."""

from nnunetv2_genseg.config.errors import GenSegError, GenSegFileError
from nnunetv2_genseg.config.loading import checked, merged, resolve
from nnunetv2_genseg.config.schema import (
    DeformationConfig,
    FeedbackConfig,
    GeneratorConfig,
    GenSegConfig,
    IntensityConfig,
    MaskConfig,
    MixingConfig,
    PasteConfig,
    RedrawConfig,
    ReviewConfig,
    ScheduleConfig,
    Settings,
    UnlabelledConfig,
    flattened,
)

__all__ = [
    "DeformationConfig",
    "FeedbackConfig",
    "GenSegConfig",
    "GenSegError",
    "GenSegFileError",
    "GeneratorConfig",
    "IntensityConfig",
    "MaskConfig",
    "MixingConfig",
    "PasteConfig",
    "RedrawConfig",
    "ReviewConfig",
    "ScheduleConfig",
    "Settings",
    "UnlabelledConfig",
    "checked",
    "flattened",
    "merged",
    "resolve",
]
