"""Generator families, each in a module that is imported when the family is built."""

from nnunetv2_genseg.generators.base import GENERATORS, Generator, build_generator
from nnunetv2_genseg.generators.networks import NetworkPlan

__all__ = ["GENERATORS", "Generator", "NetworkPlan", "build_generator"]
