"""How a part of another case's patch gets into a patch; a module a way."""

from nnunetv2_genseg.synthesis.pasting.base import PASTES, Paste, PasteContext

__all__ = ["PASTES", "Paste", "PasteContext"]
