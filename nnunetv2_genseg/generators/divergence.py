"""The divergence of a variational autoencoder's latents from the standard normal distribution."""

from torch import Tensor


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """(B,) Kullback-Leibler divergence of normal distributions, (B, latents) each, from the standard one, in nats.

    `torch.distributions` would check its arguments, for which the host waits for the device.
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
