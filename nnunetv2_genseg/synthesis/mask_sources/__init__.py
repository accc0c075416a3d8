"""Where the masks of synthetic pairs come from before they are deformed; a module a source."""

from nnunetv2_genseg.synthesis.mask_sources.base import MASK_SOURCES, MaskSource

__all__ = ["MASK_SOURCES", "MaskSource"]
