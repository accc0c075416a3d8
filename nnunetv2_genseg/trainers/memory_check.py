"""Takes the largest steps of a training once before it begins, so that too little GPU memory shows at once."""

from __future__ import annotations

from typing import Any

from nnunetv2.utilities.helpers import empty_cache

from nnunetv2_genseg.bilevel.schedule import stage_at
from nnunetv2_genseg.config import GenSegError
from nnunetv2_genseg.synthesis.paster import CAPACITY
from nnunetv2_genseg.trainers.dry_run import feedback_explained, memory_is_full, restored_afterwards


def try_largest_steps(trainer: Any) -> None:
    """Takes one step of everything and undoes it.

    A host trainer that counts or averages in its `train_step` counts one more.

    Raises:
        GenSegError: memory does not hold one of the steps, or the batches hold maps that cannot follow a deformation.
    """
    progress = trainer._progress_of(trainer._global_iteration())
    if stage_at(progress, trainer.genseg).tail:
        return
    further = [part for part in (trainer.grad_scaler, trainer._pseudo) if part is not None]
    full, remedy = "", "start anew with generator: {width: 0.25} or a smaller batch"
    with restored_afterwards(trainer.loop, trainer.device, trainer._plain_network(), trainer.optimizer, *further):
        try:
            trainer.loop.sampler.deformer.unbound()  # or new masks would be rejected
            if trainer._pseudo is not None:
                trainer._pseudo.quality.agreement = 1.0  # or no unlabelled patch would be drawn; restored from the counts
            batch = next(trainer.dataloader_train)
            trainer._batches.require_known(batch, trainer._pseudo is not None)
            parts = trainer._batches.parts(batch)
            for _ in range(CAPACITY if parts.cases else 0):
                trainer.loop.sampler.paster.remember(parts.image, parts.labels, parts.cases)
            trainer._mixed_step(batch, parts, 1.0, 1.0)
            trainer.loop.training_step(parts.image, parts.labels)
            if trainer.genseg.feedback.enabled and progress < trainer.genseg.feedback_span[1]:
                remedy = "feedback: {patches: 1} needs less, feedback: {enabled: false} nothing"
                with feedback_explained(trainer):
                    trainer._feedback_step(parts.image, parts.labels)
            trainer.loop.check()
        except FloatingPointError as error:
            trainer.print_to_log_file(f"GenSeg: not all of the largest steps could be tried: {error}")
        except RuntimeError as error:
            if not memory_is_full(error):
                raise
            full = str(error)
        trainer.optimizer.zero_grad(set_to_none=True)
    # raised here, where nothing holds what filled the memory any more
    if full:
        raise GenSegError(f"GPU memory does not hold this training to its end; {remedy} ({full})")
    empty_cache(trainer.device)
