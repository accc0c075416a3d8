import pytest
import torch

from nnunetv2_genseg.policy import FACTORS, Policy

SIZES = torch.tensor([[5.0, 0.0], [3.0, 2.0], [0.0, 0.0]])


def test_all_factors_are_one_at_the_start():
    policy = Policy(2)
    assert policy.deformation == 1
    assert policy.style == 1
    assert policy.worth(SIZES).tolist() == [1.0, 1.0, 1.0]


def test_worth_is_in_proportion_to_the_mean_factor_of_the_classes_shown():
    policy = Policy(2)
    with torch.no_grad():
        policy.log_worth.copy_(torch.tensor([0.02, -0.01]))
    expected = torch.tensor([0.02, 0.005, 0.0]).exp()
    torch.testing.assert_close(policy.worth(SIZES), expected / expected.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("extreme, bound", [(50.0, 3.0), (-50.0, 1 / 3)])
def test_no_factor_leaves_its_limits(extreme, bound):
    policy = Policy(2)
    with torch.no_grad():
        policy.log_deformation.fill_(extreme)
        policy.log_style.fill_(extreme)
        policy.log_worth.copy_(torch.tensor([extreme, -extreme]))
    for factor in (policy.deformation, policy.style, policy.worth(SIZES)[0] / policy.worth(SIZES)[2]):
        assert float(factor.detach()) == pytest.approx(bound, rel=1e-4)


@pytest.mark.parametrize("foreground", [1, 3])
def test_what_all_pairs_weigh_is_not_the_policys(foreground):
    """Pairs that show the same classes weigh the same, whatever these are worth; others share one sum."""
    policy, some = Policy(foreground), torch.eye(foreground)[[0, 0, 0]]
    with torch.no_grad():
        policy.log_worth.copy_(torch.linspace(0.4, 2.0, foreground))
    for sizes in (some, torch.ones(3, foreground)):
        worth = policy.worth(sizes)
        assert worth.tolist() == [1.0] * 3
        (slope,) = torch.autograd.grad(worth[0], policy.log_worth)
        assert not slope.any()
    mixed = policy.worth(torch.cat([some, torch.zeros(2, foreground)]))
    assert float(mixed.detach().mean()) == pytest.approx(1)
    assert mixed[0] > 1 > mixed[-1]


def test_factors_are_named():
    policy = Policy(3)
    with torch.no_grad():
        policy.log_deformation.fill_(0.1)
        policy.log_style.fill_(-0.1)
        policy.log_worth.copy_(torch.tensor([0.02, -0.03, 0.0]))
    expected = dict(zip(FACTORS, torch.tensor([0.1, -0.1, -0.03, 0.02]).exp().tolist(), strict=True))
    assert policy.factors() == pytest.approx(expected, rel=1e-3)


def test_factors_grow_with_their_parameters():
    policy = Policy(2)
    (slope,) = torch.autograd.grad(policy.style, policy.log_style)
    assert float(slope) == pytest.approx(1.0)
    (slope,) = torch.autograd.grad(policy.worth(SIZES)[0], policy.log_worth)
    assert slope.tolist() == pytest.approx([1 - 1.5 / 3, -0.5 / 3])


def test_a_further_deformation_lasts_for_the_block():
    policy = Policy(1)
    with torch.no_grad():
        policy.log_deformation.fill_(0.3)
    own = float(policy.log_deformation)
    for further, grows in ((0.1, True), (-0.1, False)):
        before = policy.deformation
        with pytest.raises(ZeroDivisionError), policy.deforming(further):
            assert (policy.deformation > before) == grows
            assert not policy.deformation.requires_grad
            raise ZeroDivisionError
        assert float(policy.log_deformation) == own
