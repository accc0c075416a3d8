"""How the image of a pair is made from what the generator draws; a module a mode."""

from nnunetv2_genseg.synthesis.modes.base import MODES, Mode, Redrawing

__all__ = ["MODES", "Mode", "Redrawing"]
