"""A generator family of your own: one convolution from the condition to the image, with noise on top.

Importing this module makes `generator: {name: linear}` available. In a package, an entry point does so: docs/how-to/generator.md.
"""

from torch import nn

from nnunetv2_genseg.generators import GENERATORS
from nnunetv2_genseg.generators.optimisation import adam, load_optimiser, optimiser_step


@GENERATORS.register("linear")
class LinearGenerator:
    """The smallest family that learns."""

    def __init__(self, config, plan, layout, *, separate_architecture, synchronise):
        convolution = nn.Conv2d if plan.dims == 2 else nn.Conv3d
        self.network = convolution(layout.channels, layout.image_channels, 3, padding=1)
        self.optimizer = adam(self.weights(), config.learning_rate)
        self.image_channels = layout.image_channels
        self.synchronise = synchronise

    def style_shape(self, spatial):
        """A noise value for every voxel."""
        return (self.image_channels, *spatial)

    def sample(self, condition, style):
        """Draws images."""
        return self.network(condition) + 0.05 * style

    def training_step(self, condition, image, style):
        """One step of Adam on the distance to the real image."""
        loss = (self.sample(condition, style) - image).abs().mean()
        finite = optimiser_step(self.optimizer, loss, self.weights(), self.synchronise)
        return {"l1": loss.detach(), "finite": finite}

    def architecture(self):
        """Nothing that chooses between operations."""
        return []

    def weights(self):
        """All parameters."""
        return list(self.network.parameters())

    def state_dict(self):
        """What a resumed training needs."""
        return {"network": dict(self.network.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        """The inverse of `state_dict`."""
        self.network.load_state_dict(state["network"])
        load_optimiser(self.optimizer, state["optimizer"])
