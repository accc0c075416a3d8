"""A pair source of your own: the patch is mirrored along its last axis, image and mask alike.

Importing this module makes `mixing: {sources: {mirror: 1}}` available. In a package, an entry point does so:
docs/how-to/pair-source.md.
"""

import torch

from nnunetv2_genseg.synthesis.masks import MaskChange
from nnunetv2_genseg.synthesis.sources import PAIR_SOURCES
from nnunetv2_genseg.synthesis.spatial import identity_grid, warp_image


@PAIR_SOURCES.register("mirror")
class MirrorSource:
    """Mirrors every patch."""

    generator = None
    shows_generator = False

    def __init__(self, context):
        self.context = context

    def training_step(self, image, labels, rng):
        """Nothing is learned."""
        return {}

    def sample(self, image, labels, rng):
        """One pair for each real patch."""
        dims = labels.ndim - 1
        grid = identity_grid(labels.shape[1:], labels.device).expand(*labels.shape, dims)
        # positions run from -1 to 1, the last axis first
        mirrored = grid * torch.tensor([-1.0] + [1.0] * (dims - 1), device=labels.device)
        accepted = torch.ones(len(labels), dtype=torch.bool, device=labels.device)
        change = MaskChange(labels, mirrored, accepted)
        return self.context.finished(warp_image(image, mirrored), image, change, rng)

    def state_dict(self):
        """Nothing."""
        return {}

    def load_state_dict(self, state):
        """Nothing."""
