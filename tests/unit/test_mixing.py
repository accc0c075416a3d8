import pytest
import torch
from torch import nn
from torch.nn import functional

from nnunetv2_genseg.trainers.mixing import MixedLoss, joined


class DeepCrossEntropy(nn.Module):
    """Batch-dependent, and over lists as nnU-Net's deep supervision."""

    def forward(self, output, target):
        if isinstance(output, list):
            return sum(self(a, b) / 2**i for i, (a, b) in enumerate(zip(output, target, strict=True)))
        return functional.cross_entropy(output, target[:, 0]) + output.mean() ** 2


def batch(dims, listed, count=5, seed=0):
    noise = torch.Generator().manual_seed(seed)
    levels = [
        (torch.randn(count, 3, *(n,) * dims, generator=noise), torch.randint(3, (count, 1, *(n,) * dims), generator=noise))
        for n in (6, 3)
    ]
    output, target = [list(part) for part in zip(*levels)]
    return (output, target) if listed else (output[0], target[0])


def part(values, chosen):
    return [value[chosen] for value in values] if isinstance(values, list) else values[chosen]


CASES = [pytest.mark.parametrize("listed", [False, True]), pytest.mark.parametrize("dims", [2, 3])]


@CASES[0]
@CASES[1]
def test_outside_of_mixing_it_is_the_wrapped_loss(dims, listed):
    output, target = batch(dims, listed)
    assert torch.equal(MixedLoss(DeepCrossEntropy())(output, target), DeepCrossEntropy()(output, target))


@CASES[0]
@CASES[1]
@pytest.mark.parametrize("real, gamma", [(3, 0.3), (1, 2.0), (4, 1.0)])
def test_inside_it_is_real_plus_gamma_times_synthetic(dims, listed, real, gamma):
    output, target = batch(dims, listed)
    loss, own = MixedLoss(DeepCrossEntropy()), DeepCrossEntropy()
    with loss.mixing(real, gamma):
        mixed = loss(output, target)
    first = own(part(output, slice(real)), part(target, slice(real)))
    second = own(part(output, slice(real, None)), part(target, slice(real, None)))
    torch.testing.assert_close(mixed, first + gamma * second)
    torch.testing.assert_close(loss.real, first)
    torch.testing.assert_close(loss.synthetic, second)


@CASES[0]
@CASES[1]
def test_each_synthetic_patch_weighs_what_it_is_worth(dims, listed):
    output, target = batch(dims, listed)
    loss, worth = MixedLoss(DeepCrossEntropy()), torch.tensor([0.5, 3.0])
    with loss.mixing(3, 0.7, worth):
        mixed = loss(output, target)
    single = [DeepCrossEntropy()(part(output, slice(i, i + 1)), part(target, slice(i, i + 1))) for i in (3, 4)]
    expected = DeepCrossEntropy()(part(output, slice(3)), part(target, slice(3))) + 0.7 * (0.5 * single[0] + 3 * single[1]) / 2
    torch.testing.assert_close(mixed, expected)
    assert torch.equal(loss(output, target), DeepCrossEntropy()(output, target))


def test_after_mixing_it_is_the_wrapped_loss_again_also_after_an_error():
    output, target = batch(2, False)
    loss, own = MixedLoss(DeepCrossEntropy()), DeepCrossEntropy()(output, target)
    with loss.mixing(3, 0.3):
        assert not torch.equal(loss(output, target), own)
    assert torch.equal(loss(output, target), own)
    with pytest.raises(KeyError), loss.mixing(3, 0.3):
        raise KeyError
    assert torch.equal(loss(output, target), own)


def test_gradients_of_synthetic_patches_are_scaled_by_gamma():
    output, target = batch(2, False)
    loss = MixedLoss(DeepCrossEntropy())
    slopes = []
    for gamma in (1.0, 0.25):
        leaf = output.clone().requires_grad_()
        with loss.mixing(3, gamma):
            loss(leaf, target).backward()
        slopes.append(leaf.grad)
    assert slopes[0][3:].any()
    assert torch.equal(slopes[0][:3], slopes[1][:3])
    torch.testing.assert_close(slopes[0][3:] * 0.25, slopes[1][3:])
    assert not loss.real.requires_grad
    assert not loss.synthetic.requires_grad


@CASES[0]
@CASES[1]
def test_joined_targets_are_the_first_then_the_second(dims, listed):
    first, second = batch(dims, listed, 2)[1], batch(dims, listed, 3, seed=1)[1]
    both = joined(first, second)
    assert isinstance(both, list) == listed
    for found, expected in ((part(both, slice(2)), first), (part(both, slice(2, None)), second)):
        pairs = zip(found, expected, strict=True) if listed else [(found, expected)]
        assert all(torch.equal(a, b) for a, b in pairs)


def test_targets_with_different_numbers_of_levels_are_refused():
    first = batch(2, True)[1]
    with pytest.raises(ValueError, match="zip"):
        joined(first, first[:1])
