"""How the hypergradient is computed; a module a method."""

from nnunetv2_genseg.bilevel.methods.base import METHODS, FeedbackMethod

__all__ = ["METHODS", "FeedbackMethod"]
