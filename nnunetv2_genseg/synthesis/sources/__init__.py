"""Where synthetic pairs come from; a module a source."""

from nnunetv2_genseg.synthesis.sources.base import PAIR_SOURCES, PairSource, SourceContext, merged_losses

__all__ = ["PAIR_SOURCES", "PairSource", "SourceContext", "merged_losses"]
