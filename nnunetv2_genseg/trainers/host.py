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

    def _build_ignoring_loss(self) -> Any:
        """The trainer's loss for targets with an ignore label; None if it can be built for none, or is not the trainer's own."""
        if self.label_manager.has_ignore_label:
            return self.loss
        manager = self.label_manager
        self.label_manager = copy.copy(manager)
        self.label_manager._ignore_label = max(manager.all_labels) + 1
        try:
            loss = self._build_loss()
        except Exception:  # whatever a trainer that expects no ignore label raises
            return None
        finally:
            self.label_manager = manager
        return loss if _kinds(loss) == _kinds(self.loss) else None


def _kinds(loss: Any) -> list[type]:
    return [type(part) for part in (loss, getattr(loss, "loss", None))]


@torch.no_grad()
def ignores(loss: Callable[[Any, Any], Tensor], network: nn.Module, image: Tensor, batches: BatchCodec) -> bool:
    """Whether a loss is finite and the same whatever the network's output is at voxels with the ignore label.

    Args:
        loss: of the network's output and a target.
        network: the segmentation network.
        image: (B, channels, *spatial) any input.
        batches: makes the targets.
    """
    rng = torch.Generator().manual_seed(0)
    shape = (len(image), *image.shape[2:])
    labels = torch.randint(0, batches.pseudo.classes, shape, generator=rng).to(image.device)
    target = batches.to_target(labels, batches.pseudo)
    output = network(image)
    several = isinstance(output, (list, tuple))
    levels = list(output) if several else [output]
    changed = []
    for level, truth in zip(levels, target if isinstance(target, list) else [target], strict=True):
        ignored = truth[:, -1:] if batches.pseudo.regions is not None else truth == batches.pseudo.foreground + 1
        changed.append(torch.where(ignored.bool(), 3 - 2 * level, level))
    first, second = (loss(found if several else found[0], target) for found in (levels, changed))
    return bool(first.isfinite()) and torch.allclose(first, second, rtol=1e-4)
