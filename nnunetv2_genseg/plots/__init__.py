"""Pictures of a training."""

from matplotlib import style

own_style = style.context("default", after_reset=True)
"""For functions that draw a picture: nnU-Net's plots leave large fonts as the default."""
