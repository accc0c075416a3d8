"""What GenSeg takes from the trainer that it is added to: its network, and its loss, built again for other uses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel

from nnunetv2_genseg.trainers.batches import BatchCodec
from nnunetv2_genseg.trainers.guarding import GuardedTraining


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
        """nnU-Net's loss for one process, not compiled: feedback differentiates it twice, which neither would survive."""
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
            network: gives outputs to try the loss with; in evaluation, so that nothing of it changes.
        """
        if self.label_manager.has_ignore_label:
            return self.loss
        image = torch.zeros(2, self.num_input_channels, *self.configuration_manager.patch_size, device=self.device)
        with torch.no_grad():
            output = network(image)
        self._compiles = False
        try:
            tried = self._loss_with_ignore_label().cpu()  # labels that a loss does not know end a GPU's work for good
            can = _kinds(tried) == _kinds(self.loss) and _ignores(tried, output, self._batches)
        except Exception:  # whatever a loss raises that expects no ignore label
            can = False
        finally:
            self._compiles = True
        return self._loss_with_ignore_label() if can else None

    def _loss_with_ignore_label(self) -> nn.Module:
        manager = self.label_manager
        self.label_manager = copy.copy(manager)
        self.label_manager._ignore_label = max(manager.all_labels) + 1
        try:
            loss: nn.Module = self._build_loss()
        finally:
            self.label_manager = manager
        return loss


def _kinds(loss: Any) -> list[type]:
    return [type(part) for part in (loss, getattr(loss, "loss", None))]


def _ignores(loss: Callable[[Any, Any], Tensor], output: Any, batches: BatchCodec) -> bool:
    """Whether a loss on the CPU is finite and the same whatever the network's output is at voxels with the ignore label."""
    several = not isinstance(output, Tensor)
    levels = [level.float().cpu() for level in (output if several else [output])]
    labels = torch.randint(
        batches.pseudo.classes, (len(levels[0]), *levels[0].shape[2:]), generator=torch.Generator().manual_seed(0)
    )
    target = batches.to_target(labels, batches.pseudo)
    changed = []
    for level, truth in zip(levels, target if isinstance(target, list) else [target], strict=True):
        ignored = truth[:, -1:] if batches.pseudo.regions is not None else truth == batches.pseudo.foreground + 1
        changed.append(torch.where(ignored.bool(), 3 - 2 * level, level))
    first, second = (loss(found if several else found[0], target) for found in (levels, changed))
    return bool(first.isfinite()) and torch.allclose(first, second, rtol=1e-4)
