"""Pictures of what a training does."""

from matplotlib import style

own_style = style.context("default", after_reset=True)
"""For what draws a picture: nnU-Net's own leaves large fonts as the default."""
