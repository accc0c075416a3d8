"""Generator families, each in a module that is imported when the family is built."""

from nnunetv2_genseg.generators.base import Generator, build_generator, register, registered
from nnunetv2_genseg.generators.networks import NetworkPlan

__all__ = ["Generator", "NetworkPlan", "build_generator", "register", "registered"]
