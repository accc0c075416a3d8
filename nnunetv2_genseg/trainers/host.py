"""What GenSeg takes from the trainer that it is added to: its network, and its loss, built again for other uses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.trainers.batches import BatchCodec, Target
from nnunetv2_genseg.trainers.guarding import GuardedTraining

Loss = Callable[[Any, Any], Tensor]
"""Of a network's output and a target."""
SMALLEST = 8
"""Extent of the patches that a loss is tried with, voxels; larger with deep supervision."""


class HostAccess(GuardedTraining):
    """A trainer of nnU-Net whose network and loss GenSeg can use beside its own training."""

    is_ddp: bool
    label_manager: Any
    _batches: BatchCodec
    _compiles = True
    """False while a loss is built that must not be compiled."""

    def _plain_network(self) -> nn.Module:
        """The network, neither compiled nor distributed."""
        network: nn.Module = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        return network._orig_mod if isinstance(network, OptimizedModule) else network

    def _build_feedback_loss(self) -> nn.Module:
        """nnU-Net's loss for one process, not compiled: feedback calls it outside of both."""
        distributed, self.is_ddp, self._compiles = self.is_ddp, False, False
        try:
            loss: nn.Module = self._build_loss()
            return loss
        finally:
            self.is_ddp, self._compiles = distributed, True

    def _do_i_compile(self) -> bool:
        return self._compiles and bool(super()._do_i_compile())

    def _build_ignoring_loss(self, network: nn.Module) -> Any:
        """The trainer's loss for targets with an ignore label; None if the trainer has none that ignores.

        Args:
            network: the loss is tried with as many levels and channels as it gives; in evaluation, so that nothing of it changes.
        """
        if self.label_manager.has_ignore_label:
            return self.loss
        image = torch.zeros(1, self.num_input_channels, *self.configuration_manager.patch_size, device=self.device)
        with torch.no_grad():
            output = network(image)
        try:
            with self._with_ignore_label():
                tried = self._balanced(self._build_feedback_loss())
            # on the CPU: labels that a loss does not know end a GPU's work for good
            own = self._build_feedback_loss().cpu()
            can = _kinds(tried) == _kinds(own) and _ignores(tried.cpu(), own, output, self._batches)
        except Exception:  # whatever a loss raises that expects no ignore label
            can = False
        if not can:
            return None
        with self._with_ignore_label():
            return self._balanced(self._build_loss())

    def _balanced(self, loss: Any) -> Any:
        """With an ignore label, nnU-Net's loss for regions adds up the cross-entropies of the regions instead of their mean."""
        own = getattr(loss, "loss", loss)
        if isinstance(own, DC_and_BCE_loss):
            own.weight_ce /= len(self.label_manager.foreground_regions)
        return loss

    @contextmanager
    def _with_ignore_label(self) -> Iterator[None]:
        """Inside the block the dataset seems to have an ignore label."""
        manager = self.label_manager
        self.label_manager = copy.copy(manager)
        self.label_manager._ignore_label = max(manager.all_labels) + 1
        try:
            yield
        finally:
            self.label_manager = manager


def _kinds(loss: Any) -> list[type]:
    return [type(part) for part in (loss, getattr(loss, "loss", None))]


def _levels(target: Target) -> list[Tensor]:
    return target if isinstance(target, list) else [target]


def _ignores(loss: Loss, own: Loss, output: Any, batches: BatchCodec) -> bool:
    """Whether a loss is that of the trainer where nothing is ignored, and does not see voxels with the ignore label.

    Args:
        loss: for targets with an ignore label, on the CPU.
        own: that of the trainer, on the CPU.
        output: of the network; neither its values nor its extents matter.
        batches: makes targets.
    """
    several, rng = not isinstance(output, Tensor), torch.Generator().manual_seed(0)
    given = output if several else [output]
    # as small as the levels allow: with many classes, whole patches would need much memory
    ratio = zip(given[0].shape[2:], given[-1].shape[2:], strict=True)
    shape = (2, *(max(SMALLEST, 2 * (full // least)) for full, least in ratio))
    shown = torch.randint(batches.codec.classes, shape, generator=rng)
    levels = [
        torch.randn(2, level.shape[1], *truth.shape[2:], generator=rng)
        for level, truth in zip(given, _levels(batches.to_target(shown)), strict=True)
    ]

    def value(of: Loss, outputs: list[Tensor], codec: LabelCodec, labels: Tensor) -> Tensor:
        return of(outputs if several else outputs[0], batches.to_target(labels, codec))

    whole = [value(loss, levels, batches.pseudo, shown), value(own, levels, batches.codec, shown)]
    labels = torch.randint(batches.pseudo.classes, shape, generator=rng)
    target = batches.to_target(labels, batches.pseudo)
    changed = []
    for level, truth in zip(levels, _levels(target), strict=True):
        ignored = truth[:, -1:] if batches.pseudo.regions is not None else truth == batches.pseudo.foreground + 1
        other = level.clone()
        other[:, 0] += 10  # background everywhere, or one region, so that what classes lose and gain does not cancel out
        changed.append(torch.where(ignored.bool(), other, level))
    part = [value(loss, outputs, batches.pseudo, labels) for outputs in (levels, changed)]
    return all(bool(one.isfinite()) and torch.allclose(one, other, rtol=1e-5) for one, other in (whole, part))
