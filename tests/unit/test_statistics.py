import pytest
import torch

from nnunetv2_genseg.synthesis.statistics import SAMPLE, class_sums, sample_voxels


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_few_voxels_are_all_taken():
    values = noise(2, 3, SAMPLE)
    assert sample_voxels(values) is values


@pytest.mark.parametrize("spatial", [(128, 128, 128), (64, 192, 160), (160, 128, 112), (512, 512)])
def test_a_sample_is_spread_over_every_axis(spatial, outside_random_state_untouched):
    flat = torch.arange(torch.tensor(spatial).prod())
    taken = sample_voxels(flat)
    assert len(taken.unique()) == len(taken) == SAMPLE
    assert torch.equal(taken, sample_voxels(flat))
    for extent in reversed(spatial):
        counts = torch.bincount(taken % extent, minlength=extent)
        assert counts.min() > 0.5 * SAMPLE / extent
        assert counts.max() < 1.6 * SAMPLE / extent
        taken = taken // extent


@pytest.mark.parametrize("spatial", [(3, 5), (40, 60), (6, 10, 12)])
def test_sums_are_those_of_each_class(spatial):
    values, labels = noise(2, 3, *spatial), torch.randint(4, (2, *spatial), generator=torch.Generator().manual_seed(0))
    found = class_sums(values, labels, 5)
    assert found.shape == (2, 5, 3)
    for i in range(2):
        for k in range(5):
            torch.testing.assert_close(found[i, k], values[i][:, labels[i] == k].sum(dim=1), rtol=1e-4, atol=1e-4)


def test_a_sum_of_millions_is_precise():
    values = 1 + noise(1, 1, 96, 128, 128).abs()
    found = class_sums(values, torch.zeros(1, 96, 128, 128, dtype=torch.long), 1)
    torch.testing.assert_close(found.double().flatten(), values.double().sum().view(1), rtol=2e-6, atol=0)
