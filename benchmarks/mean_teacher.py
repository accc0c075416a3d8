"""A rival: stock nnU-Net that also learns to agree with a moving average of itself on unlabelled patches.

Mean teachers (Tarvainen and Valpola, 2017) with the settings that Yu et al. (2019, UA-MT) give for segmentation, without their
uncertainty: half of each batch is unlabelled, student and teacher see the same patches with different noise, and the mean squared
difference of their probabilities is added to the loss of the labelled half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

DECAY = 0.99
"""Of the moving average."""
WEIGHT = 0.1
"""Of the consistency, after the ramp."""
RAMP = 0.2
"""Fraction of the iterations in which the weight rises."""
NOISE = 0.1, 0.2
"""Standard deviation and bound of the noise on intensities that nnU-Net normalised."""


def weight_at(iteration: int, iterations: int) -> float:
    """The Gaussian ramp of both papers."""
    missing = 1 - min(1.0, iteration / (RAMP * iterations))
    return WEIGHT * math.exp(-5 * missing**2)


def learn_to_agree(trainer: Any, folders: Sequence[Path], iterations: int, seed: int) -> None:
    """Makes a trainer of nnU-Net a mean teacher's student; its checkpoints and its validation stay nnU-Net's.

    Args:
        trainer: not initialised.
        folders: of images without labels.
        iterations: of the whole training.
        seed: of the noise.
    """
    import torch
    from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    from nnunetv2_genseg.trainers.loading import augmented
    from nnunetv2_genseg.trainers.unlabelled import preprocess_beside

    trainer.initialize()
    unlabelled = trainer.batch_size // 2
    trainer.batch_size -= unlabelled
    store, images = preprocess_beside(trainer, folders)
    trainer.oversample_foreground_percent, kept = 0.0, trainer.oversample_foreground_percent
    loader = augmented(trainer, infer_dataset_class(str(store))(str(store), sorted(images)), unlabelled)
    trainer.oversample_foreground_percent = kept
    teacher = AveragedModel(trainer.network, multi_avg_fn=get_ema_multi_avg_fn(DECAY))
    rng = torch.Generator(trainer.device).manual_seed(seed)
    step, taken = trainer.train_step, 0

    def noisy(image: Any) -> Any:
        deviation, bound = NOISE
        drawn = torch.randn(image.shape, generator=rng, device=image.device)
        return image + (deviation * drawn).clamp(-bound, bound)

    def probabilities(output: Any) -> Any:
        logits = (output[0] if isinstance(output, (list, tuple)) else output).float()
        return logits.sigmoid() if trainer.label_manager.has_regions else logits.softmax(dim=1)

    @contextmanager
    def consistency(expected: Any) -> Any:
        """Inside the block the loss is that of the first patches of a batch, plus the consistency of the others."""
        own = trainer.loss

        def loss(output: Any, target: Any) -> Any:
            levels = output if isinstance(output, (list, tuple)) else [output]
            labelled, others = ([level.tensor_split([-unlabelled])[part] for level in levels] for part in (0, 1))
            whole = own(labelled if isinstance(output, (list, tuple)) else labelled[0], target)
            return whole + weight_at(taken, iterations) * (probabilities(others) - expected).square().mean()

        trainer.loss = loss
        try:
            yield
        finally:
            trainer.loss = own

    def train_step(batch: dict[str, Any]) -> dict[str, Any]:
        nonlocal taken
        image, patches = (values.to(trainer.device, non_blocking=True) for values in (batch["data"], next(loader)["data"]))
        with torch.no_grad(), torch.autocast(trainer.device.type, enabled=trainer.device.type == "cuda"):
            expected = probabilities(teacher(noisy(patches)))
        with consistency(expected):
            result: dict[str, Any] = step(batch | {"data": torch.cat([image, noisy(patches)])})
        teacher.update_parameters(trainer.network)
        taken += 1
        return result

    trainer.train_step = train_step
