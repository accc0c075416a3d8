import math

import pytest
import torch

from nnunetv2_genseg.bilevel.meter import Meter


def test_means_are_by_name_and_empty_the_record():
    meter = Meter()
    meter.add({"a": 1.0, "b": 7.0})
    meter.add({"a": torch.tensor(4.0)})
    meter.add({"c": torch.tensor(2.0)})
    meter.add({"c": torch.tensor(3.0)})
    means = meter.means()
    assert means == {"a": 2.5, "b": 7.0, "c": 2.5}
    assert all(isinstance(mean, float) for mean in means.values())
    assert meter.means() == {}


def test_clear_empties_the_record():
    meter = Meter()
    meter.add({"a": 1.0})
    meter.clear()
    assert meter.means() == {}


def test_many_small_values_are_not_lost_beside_a_large_one():
    meter = Meter()
    for value in [1e8, *[1.0] * 100]:
        meter.add({"a": torch.tensor(value)})
    assert meter.means()["a"] == pytest.approx((1e8 + 100) / 101, rel=1e-12)


def test_a_value_that_is_not_finite_shows():
    meter = Meter()
    meter.add({"a": torch.tensor(float("nan"))})
    meter.add({"a": torch.tensor(1.0)})
    assert math.isnan(meter.means()["a"])
