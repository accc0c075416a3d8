"""How good synthetic pairs are: a module a measure."""

from nnunetv2_genseg.quality.base import MEASURES, Measure, Samples

__all__ = ["MEASURES", "Measure", "Samples"]
