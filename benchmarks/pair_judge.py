"""What a pair is worth to a network: its loss, its gradient, and what one step on it changes on the validation part's cases."""

from __future__ import annotations

from typing import Any

import numpy as np
from acvl_utils.cropping_and_padding.bounding_boxes import crop_and_pad_nd

from cells import Cell
from preparing import Place
from raw_datasets import part_of


def validation_patches(trainer: Any, cell: Cell, place: Place) -> tuple[Any, Any]:
    """(B, C, *spatial) images and (B, *spatial) class maps: a patch from the middle of each validation case."""
    import torch

    images, labels = part_of(cell, "validation", place.raw, place.work / cell.scale / "parts")
    preprocessor = trainer.configuration_manager.preprocessor_class(verbose=False)
    ending, size = trainer.dataset_json["file_ending"], trainer.configuration_manager.patch_size
    found = []
    for path in sorted(labels.glob(f"*{ending}")):
        case = path.name.removesuffix(ending)
        channels = sorted(map(str, images.glob(f"{case}_[0-9][0-9][0-9][0-9]{ending}")))
        plans = (trainer.plans_manager, trainer.configuration_manager, trainer.dataset_json)
        data, segmentation, _ = preprocessor.run_case(channels, str(path), *plans)
        flat = zip(data.swapaxes(0, 1), segmentation.swapaxes(0, 1), strict=True)
        for values in flat if len(size) == 2 else [(data, segmentation)]:
            found.append([torch.from_numpy(np.ascontiguousarray(centred(part, size))) for part in values])
    return torch.stack([image for image, _ in found]).float(), torch.stack([label[0] for _, label in found]).clamp(min=0).long()


def centred(values: Any, size: list[int]) -> Any:
    """The middle of (C, *spatial) values, padded by zeros where it is smaller."""
    start = [(have - n) // 2 for n, have in zip(size, values.shape[1:], strict=True)]
    return crop_and_pad_nd(values, [[first, first + n] for first, n in zip(start, size, strict=True)], 0)


class PairJudge:
    """Losses, gradients and single steps of the network at the trainer's present weights, which stay as they are."""

    def __init__(self, trainer: Any) -> None:
        self.network = trainer._plain_network()
        self.loss, self.to_target, self.size = trainer._feedback_loss, trainer._batches.to_target, trainer.batch_size
        self.rate = trainer.optimizer.param_groups[0]["lr"]

    def value(self, network: Any, image: Any, labels: Any) -> Any:
        """Mean loss over patches, a batch of nnU-Net's size at a time."""
        import torch

        parts = zip(torch.split(image, self.size), torch.split(labels, self.size), strict=True)
        losses = [self.loss(network(part), self.to_target(own)) * len(part) for part, own in parts]
        return torch.stack(losses).sum() / len(image)

    def gradient(self, image: Any, labels: Any) -> list[Any]:
        """Of the loss by the weights."""
        import torch

        weights = list(self.network.parameters())
        value = self.value(self.network, image, labels)
        return list(torch.autograd.grad(value, weights, allow_unused=True, materialize_grads=True))

    def gain_of_a_step(self, gradient: list[Any], image: Any, labels: Any, before: float) -> float:
        """By how much a step along a gradient lowers the loss on some patches."""
        import torch

        weights = list(self.network.parameters())
        kept = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            torch._foreach_add_(weights, gradient, alpha=-self.rate)
            after = float(self.value(self.network, image, labels))
            torch._foreach_copy_(weights, kept)
        return before - after


def product(first: list[Any], second: list[Any]) -> float:
    """Of two gradients."""
    return float(sum((a * b).sum() for a, b in zip(first, second, strict=True)))
