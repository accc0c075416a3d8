"""A bilevel loop beside a tiny network of nnU-Net's, with nnU-Net's loss, for tests of several files."""

import io

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from nnunetv2_genseg.bilevel.feedback import HeldOutBatch, Segmenter
from nnunetv2_genseg.bilevel.loop import BilevelLoop
from nnunetv2_genseg.config import GenSegConfig, checked
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.synthesis.conditioning import condition
from nnunetv2_genseg.synthesis.intensity_variation import PATCHES
from nnunetv2_genseg.synthesis.labels import LabelCodec

CPU = torch.device("cpu")
ETA = 0.01
CODECS = {
    "labels": LabelCodec.from_labels([1, 2], None),
    "regions": LabelCodec.from_regions([[1, 2], 2], False),
    "ignore": LabelCodec.from_labels([1, 2], 3),
    "regions+ignore": LabelCodec.from_regions([[1, 2], 2], True),
}
MODES = ["mask", "tissue", "residual"]
FAMILIES = ["diffusion", "gan", "gmm", "vae"]
REDRAW = {"sources": {"redraw": 1.0}}
DEFORMATION = {"sources": {"deformation": 1.0}}
STILL = {"displacement": 0.0, "rotation": 0.0, "scaling": 0.0}


def configured(**sections):
    """Settings; each section overrides those that make a small generator."""
    settings = {"redraw": {"tissue_classes": 3}}
    for name, values in sections.items():
        settings[name] = {**settings.get(name, {}), **values} if isinstance(values, dict) else values
    return checked(GenSegConfig, settings, "test")


def planned(dims):
    return NetworkPlan((16,) * dims if dims == 2 else (8,) * dims, (8, 8), ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def real_pairs(codec, dims, channels, count=3, seed=0):
    """Images whose intensity follows the class, with noise; the ignore label in a corner where the codec has one."""
    spatial = planned(dims).patch_size
    labels = torch.zeros(count, *spatial, dtype=torch.long)
    quarter = spatial[0] // 4
    for i in range(count):
        start = quarter // 2 + i % 2
        labels[(i, *(slice(start, start + 2 * quarter),) * dims)] = 1
        labels[(i, *(slice(start, start + quarter),) * dims)] = 2
        if codec.has_ignore:
            labels[(i, *(slice(-quarter, None),) * dims)] = 3
    image = torch.randn(count, channels, *spatial, generator=seeded(seed)) * 0.3 + labels[:, None] % 3
    return image, labels


def network(dims, channels, outputs, features=(4, 8), deep=False, smooth=False):
    """nnU-Net's plain network as its planner configures it, or with SiLU if `smooth`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return PlainConvUNet(
            channels, len(features), features, nn.Conv2d if dims == 2 else nn.Conv3d, 3, (1, *(2,) * (len(features) - 1)), 1,
            outputs, 1, conv_bias=True, norm_op=nn.InstanceNorm2d if dims == 2 else nn.InstanceNorm3d,
            norm_op_kwargs={"affine": True, "eps": 1e-5}, nonlin=nn.SiLU if smooth else nn.LeakyReLU,
            nonlin_kwargs={"inplace": True}, deep_supervision=deep,
        )  # fmt: skip


def nnunet_loss(codec):
    dice = {"batch_dice": True, "smooth": 1e-5, "ddp": False}
    if codec.regions is not None:
        return DC_and_BCE_loss(
            {}, {**dice, "do_bg": True}, use_ignore_label=codec.has_ignore, dice_class=MemoryEfficientSoftDiceLoss
        )
    ignore = codec.foreground + 1 if codec.has_ignore else None
    return DC_and_CE_loss({**dice, "do_bg": False}, {}, ignore_label=ignore, dice_class=MemoryEfficientSoftDiceLoss)


class Setting:
    """A bilevel loop, a segmentation network, training patches and held-out patches."""

    def __init__(self, dims=2, channels=1, codec="labels", rank=0, masked_channels=(), count=3, smooth=False, **sections):
        self.codec = CODECS[codec]
        self.loop = BilevelLoop(
            configured(**sections), planned(dims), self.codec, channels, CPU, rank=rank, masked_channels=masked_channels
        )
        self.network = network(dims, channels, 2 if self.codec.regions is not None else 3, smooth=smooth)
        self.loss = nnunet_loss(self.codec)
        self.image, self.labels = real_pairs(self.codec, dims, channels, count)
        self.held_out = HeldOutBatch(*real_pairs(self.codec, dims, channels, count=2, seed=1))
        if "redraw" in self.sampler.sources:
            self.vary()
        self.sampler.observe(self.labels)
        self.sampler.observe(self.held_out.labels)

    @property
    def sampler(self):
        return self.loop.sampler

    @property
    def redraw(self):
        return self.sampler.sources["redraw"]

    @property
    def generator(self):
        return self.redraw.generator

    def vary(self):
        """The class intensities of real patches vary, independently of each other."""
        layout, scene = self.redraw.layout, torch.arange(self.redraw.layout.scene_classes).repeat_interleave(10)
        means = 0.5 * torch.randn(PATCHES, layout.scene_classes, layout.image_channels, generator=seeded(3))
        self.redraw.variation.observe(means, scene.expand(PATCHES, -1))

    def real_condition(self, image, labels):
        """The condition of standardised real images, as the generator learns it."""
        return condition(*self.redraw._scene(image, labels), self.redraw.layout)

    def to_target(self, labels):
        return self.codec.to_target(labels, torch.bool if self.codec.regions is not None else torch.int16)

    @property
    def segmenter(self):
        return Segmenter(self.network, self.loss, lambda image, labels: image, self.to_target)

    def feedback(self, count=None):
        """A feedback step on the first patches, as `BilevelLoop.feedback_step` says."""
        return self.loop.feedback_step(self.segmenter, self.image[:count], self.labels[:count], self.held_out, ETA)

    def sample(self, cases=None, share=1.0):
        """Pairs in place of some of the patches, as `BilevelLoop.sample` says."""
        return self.loop.sample(self.image, self.labels, cases, self.loop.choose(len(self.image), share))

    def learn(self, steps=1):
        for _ in range(steps):
            self.loop.training_step(self.image, self.labels)

    def tensors(self):
        """All parameters of the generator, its discriminator and the policy, by what they belong to."""
        groups = {"policy": list(self.sampler.policy.parameters())}
        if "redraw" in self.sampler.sources:
            groups |= {"architecture": self.generator.architecture(), "weights": self.generator.weights()}
            if hasattr(self.generator, "discriminator"):
                groups["discriminator"] = list(self.generator.discriminator.parameters())
        return {name: [part.detach().clone() for part in parts] for name, parts in groups.items()}


def through_a_file(state):
    """What a checkpoint makes of it; fails for anything but plain tensors, numbers, strings, lists and dictionaries."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


def cosine(first, second):
    return float(torch.cosine_similarity(flat(first).double(), flat(second).double(), dim=0))
