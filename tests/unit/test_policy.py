import pytest
import torch

from nnunetv2_genseg.synthesis.policy import Policy


def test_all_factors_are_one_at_the_start():
    policy = Policy()
    assert policy.deformation == 1
    assert policy.style == 1


@pytest.mark.parametrize("extreme, bound", [(50.0, 3.0), (-50.0, 1 / 3)])
def test_no_factor_leaves_its_limits(extreme, bound):
    policy = Policy()
    with torch.no_grad():
        policy.log_deformation.fill_(extreme)
        policy.log_style.fill_(extreme)
    for factor in (policy.deformation, policy.style):
        assert float(factor.detach()) == pytest.approx(bound, rel=1e-4)


def test_factors_are_named():
    policy = Policy()
    with torch.no_grad():
        policy.log_deformation.fill_(0.1)
        policy.log_style.fill_(-0.1)
    factors = {name: float(factor) for name, factor in policy.factors().items()}
    expected = dict(zip(("deformation_factor", "style_factor"), torch.tensor([0.1, -0.1]).exp().tolist(), strict=True))
    assert factors == pytest.approx(expected, rel=1e-3)
    assert not any(factor.requires_grad for factor in policy.factors().values())


def test_the_style_factor_grows_with_its_parameter():
    policy = Policy()
    (slope,) = torch.autograd.grad(policy.style, policy.log_style)
    assert float(slope) == pytest.approx(1.0)


def test_a_further_deformation_lasts_for_the_block():
    policy = Policy()
    with torch.no_grad():
        policy.log_deformation.fill_(0.3)
    own = float(policy.log_deformation.detach())
    for further, grows in ((0.1, True), (-0.1, False)):
        before = policy.deformation
        with pytest.raises(ZeroDivisionError), policy.deforming(further):
            assert (policy.deformation > before) == grows
            assert not policy.deformation.requires_grad
            raise ZeroDivisionError
        assert float(policy.log_deformation.detach()) == own
