import math

import pytest
import torch
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from toy import CPU, configured, seeded

from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.trainers.planning import network_plan

U_NET = {
    "features_per_stage": [8, 16],
    "strides": [[1, 1, 1], [1, 2, 2]],
    "kernel_sizes": [[1, 3, 3], [3, 3, 3]],
}


def configuration(arguments, spacing, patch_size):
    return ConfigurationManager({
        "architecture": {"network_class_name": "a.Network", "arch_kwargs": arguments, "_kw_requires_import": []},
        "spacing": spacing,
        "patch_size": patch_size,
    })  # fmt: skip


def test_the_segmentation_networks_stages_are_followed():
    plan = network_plan(configuration(U_NET, [3.0, 1.0, 1.0], [4, 8, 8]))
    assert plan.patch_size == (4, 8, 8)
    assert plan.features == (8, 16)
    assert plan.strides == ((1, 1, 1), (1, 2, 2))
    assert plan.kernels == ((1, 3, 3), (3, 3, 3))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"width": 8},
        {key: value for key, value in U_NET.items() if key != "kernel_sizes"},
        U_NET | {"features_per_stage": 8},
        U_NET | {"features_per_stage": [8, 16, 32]},
        U_NET | {"strides": [[1, 1], [2, 2]]},
        U_NET | {"strides": [[2, 2, 2], [2, 2, 2]]},  # a stem that down-samples: the drawn image would be smaller
        U_NET | {"strides": [[1, 1, 1], [3, 3, 3]]},  # which the patch cannot be divided by
    ],
)
def test_stages_that_a_generator_cannot_follow_are_nnunets_for_spacing_and_patch(arguments):
    plan = network_plan(configuration(arguments, [5.0, 0.5, 0.5], [16, 64, 64]))
    assert plan.strides == ((1, 1, 1), (1, 2, 2), (1, 2, 2), (1, 2, 2), (2, 2, 2))
    assert plan.features == (32, 64, 128, 256, 320)
    assert plan.kernels[0] == (1, 3, 3), "thick slices are not convolved over"
    assert plan.movable_axes == (False, True, True)


@pytest.mark.parametrize(
    "patch_size", [(96, 160), (20, 100), (33, 7), (32, 1), (24, 40, 40), (9, 17, 24), (1, 16, 16), (16, 8, 1)]
)
def test_pairs_are_drawn_and_learned_from_patches_of_any_extent(patch_size):
    spacing = [1.0] * len(patch_size)
    plan = network_plan(configuration({}, spacing, list(patch_size)))
    for axis, size in enumerate(patch_size):
        assert size % math.prod(stage[axis] for stage in plan.strides) == 0
    settings = configured(generator={"width": 0.01}, mixing={"share": 1.0})
    loop = BilevelLoop(settings, plan, LabelCodec.from_labels([1], None), 1, CPU)
    image = torch.randn(2, 1, *patch_size, generator=seeded())
    labels = (image[:, 0] > 0.3).long()
    loop.training_step(image, labels)
    pairs = loop.sample(image, labels, None, loop.choose(len(image), 1.0)).pairs
    assert loop.check() == ""
    assert pairs.image.shape == image.shape
    assert pairs.labels.shape == labels.shape
