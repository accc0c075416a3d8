"""Dilated convolutions by way of dense ones are what torch's own are."""

import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from nnunetv2_genseg.generators.dilation import convolve

CASES = {
    # extent, kernel, stride, whether all convolutions are dense
    "all grids": ((8, 6, 4), (3, 3, 3), (1, 1, 1), True),
    "one grid": ((8, 7, 5), (3, 3, 3), (2, 2, 2), True),
    "one grid of two axes": ((6, 8, 7), (3, 3, 3), (1, 2, 2), True),
    "flat kernel": ((5, 8, 6), (1, 3, 3), (1, 1, 1), True),
    "flat kernel with stride": ((5, 8, 6), (1, 3, 3), (2, 2, 1), True),
    "odd extent": ((5, 8, 6), (3, 3, 3), (1, 1, 1), False),
    "wide stride": ((8, 8, 8), (3, 3, 3), (4, 4, 4), False),
    "2d": ((8, 6), (3, 3), (1, 1), False),
}


class Dilations(TorchDispatchMode):
    """Records the dilation of every convolution, backward ones too."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if name in ("convolution", "convolution_backward"):
            self.found.add(max(args[5 if name == "convolution" else 6]))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("extent, kernel, stride, dense", CASES.values(), ids=CASES.keys())
def test_a_dilated_convolution_and_its_gradients_are_those_of_torch(extent, kernel, stride, dense):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, *extent, generator=rng, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, generator=rng, dtype=torch.float64, requires_grad=True)
    with Dilations() as dilations:
        own = convolve(x, weight, stride, 2)
        slopes = torch.autograd.grad(own.square().sum(), (x, weight))
    assert dilations.found == {1 if dense else 2}
    convolution = functional.conv2d if len(extent) == 2 else functional.conv3d
    expected = convolution(x, weight, None, stride, [2 * (size // 2) for size in kernel], 2)
    torch.testing.assert_close(own, expected)
    for slope, other in zip(slopes, torch.autograd.grad(expected.square().sum(), (x, weight)), strict=True):
        torch.testing.assert_close(slope, other)


def test_without_dilation_it_is_the_plain_convolution():
    x, weight = torch.randn(1, 2, 5, 6, 7), torch.randn(3, 2, 3, 3, 3)
    assert torch.equal(convolve(x, weight, (1, 1, 1), 1), functional.conv3d(x, weight, None, 1, 1))
