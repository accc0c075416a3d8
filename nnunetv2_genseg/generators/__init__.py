"""Generator families; importing this package registers those that it ships."""

from nnunetv2_genseg.generators import gan as gan
from nnunetv2_genseg.generators import gmm as gmm
from nnunetv2_genseg.generators.base import Generator, build_generator, register, registered
from nnunetv2_genseg.generators.networks import NetworkPlan

__all__ = ["Generator", "NetworkPlan", "build_generator", "register", "registered"]
