"""nnU-Net's hooks: hands nnU-Net's batches, cases and files to the bilevel loop."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch import distributed as dist

from nnunetv2_genseg import checkpoint
from nnunetv2_genseg.bilevel.feedback import Segmenter
from nnunetv2_genseg.bilevel.schedule import Stage, stage_at
from nnunetv2_genseg.config import GenSegConfig, GenSegError, GenSegFileError, Settings, resolve
from nnunetv2_genseg.generators.pretrained import Cases
from nnunetv2_genseg.random_state import own_random_state
from nnunetv2_genseg.trainers import preflight, resuming
from nnunetv2_genseg.trainers.batches import Parts
from nnunetv2_genseg.trainers.building import build_batch_codec, build_loop, start_anew
from nnunetv2_genseg.trainers.dry_run import try_feedback
from nnunetv2_genseg.trainers.heldout_cases import HeldOutCases
from nnunetv2_genseg.trainers.host import HostAccess
from nnunetv2_genseg.trainers.inspection import inspect_cases
from nnunetv2_genseg.trainers.memory_check import try_largest_steps
from nnunetv2_genseg.trainers.optimiser_step import modelled_step
from nnunetv2_genseg.trainers.pseudo_labelling import PseudoLabelling
from nnunetv2_genseg.trainers.recording import Recorder
from nnunetv2_genseg.trainers.saving import host_trainer


class GenSegMixin(HostAccess):
    """Adds GenSeg to a trainer of nnU-Net: `class MyTrainer(GenSegMixin, AnyTrainer)`.

    The trainer's own step gets batches like any other; some of their patches are synthetic. Until the warm-up is over, the
    segmentation network trains bit for bit as with the other trainer on the same cases.
    """

    preset: ClassVar[Settings] = {}
    """Settings of a preset trainer; the file that `nnUNet_genseg_config` names overrides them."""
    preset_epochs: ClassVar[int | None] = None
    """Number of epochs of a preset trainer; nnU-Net's if None."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        self.genseg: GenSegConfig = resolve(self.preset)
        preflight.require_description(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.output_folder is not None and not os.access(self.output_folder, os.W_OK):
            raise GenSegFileError(f"{self.output_folder} is not writable; correct the permissions of the results folder")
        if not self.label_manager.foreground_labels:
            raise GenSegError("dataset.json declares no foreground label: there is nothing to segment or to draw")
        if self.preset_epochs is not None:
            self.num_epochs = self.preset_epochs
        self.recorder = Recorder(self.print_to_log_file, self.local_rank == 0, self.logger.loggers)
        self.logger.plot_progress_png = self.recorder.by_product("progress.png", self.logger.plot_progress_png)
        self._held_out = HeldOutCases(self)
        self._generator_saw: Cases = {}
        self._pseudo: PseudoLabelling | None = None
        self._resume_from: tuple[Path, int] | None = None
        self._iteration = 0
        self._checked_batch = False

    # ------------------------------------------------------------------ building

    def initialize(self) -> None:
        """Builds the bilevel loop beside nnU-Net's network."""
        super().initialize()
        self._feedback_loss = self._build_feedback_loss()
        self.loop = build_loop(self)
        self._batches = build_batch_codec(self)
        synchronised = any(isinstance(module, nn.SyncBatchNorm) for module in self.network.modules())
        if self.is_ddp and self.genseg.feedback.enabled and synchronised:
            raise GenSegError(
                "feedback cannot differentiate batch norm that is synchronised over processes; train on one, or without feedback"
            )

    # ------------------------------------------------------------------ cases

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, less the cases that are held out for feedback at this moment.

        Raises:
            GenSegError: the fold has too few cases.
        """
        if self.fold != "all":
            base = Path(self.preprocessed_dataset_folder_base)
            preflight.require_cases(base, list(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder)))
        training, validation = super().do_split()
        return self._held_out.split(training, validation), list(dict.fromkeys(validation))

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's datasets, after a look at every training case before the training begins.

        Raises:
            GenSegError: a case, or in a cascade its previous segmentation, cannot be read, or none holds foreground.
        """
        training, validation = super().get_tr_and_val_datasets()
        if self.dataloader_train is None:
            inspect_cases(self)
            seen = self._generator_saw.get(self.plans_manager.dataset_name, ())
            unseen = set(validation.identifiers) - set(training.identifiers)
            preflight.warn_of_seen(unseen, seen, self.genseg.generator.pretrained, self.print_to_log_file)
        return training, validation

    def _exchange_cases_if_due(self) -> None:
        """Loads from the cases that train from this iteration on."""
        if self._held_out.move_to(self._progress_of(self._global_iteration())):
            self._finish_loaders()
            self.loop.forget_donors()
            self.dataloader_train, self.dataloader_val = self.get_dataloaders()
            self.print_to_log_file(f"GenSeg: training continues with these cases held out: {self._held_out.described()}")

    def _own_random_state(self) -> Any:
        return own_random_state(self.genseg.seed + self._global_iteration() * 131 + self.local_rank)

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """nnU-Net's preparations; the generator is loaded or, after `--c`, restored, and the configuration recorded.

        Raises:
            GenSegError: what the generator is to start from, or go on from, is missing, damaged or does not fit, or the GPU's
                memory does not hold the training to its end.
        """
        if not self.was_initialized:
            self.initialize()
        if resumed := self._resume_from is not None:
            resuming.require_same_configuration(Path(self.output_folder), self.genseg)
        # as before the first epoch began: if cases are exchanged now, that happens after the random state is restored
        before = max(0, self.current_epoch * self.num_iterations_per_epoch - 1)
        self._held_out.move_to(self._progress_of(before))
        early = self.is_ddp or resumed or self.genseg.unlabelled.images or self.genseg.review.file
        if self.local_rank == 0 and early:  # all processes would make and read splits_final.json at once
            self.do_split()
        if self.is_ddp:
            dist.barrier()
            self.do_split()
        self._pseudo = PseudoLabelling(self) if self.genseg.unlabelled.images else None
        if self._resume_from is None:
            self._generator_saw = start_anew(self)
            super().on_train_start()
        else:
            state = resuming.load_state(self, *self._resume_from)
            super().on_train_start()
            resuming.restore(self, state, self._resume_from[0])
        if self.local_rank == 0:
            resuming.record(self, resumed)
        resuming.announce(self)
        (try_largest_steps if self.device.type == "cuda" else try_feedback)(self)

    def on_train_epoch_start(self) -> None:
        """Exchanges the held-out cases where a rotation, or the feedback, begins or ends."""
        super().on_train_epoch_start()
        self._iteration = 0
        self._exchange_cases_if_due()
        self.recorder.begin_epoch(self.current_epoch, self.num_iterations_per_epoch)

    def _global_iteration(self) -> int:
        return int(self.current_epoch * self.num_iterations_per_epoch) + self._iteration

    def _progress_of(self, iteration: int) -> float:
        return iteration / max(1, int(self.num_epochs * self.num_iterations_per_epoch))

    def _stage(self) -> Stage:
        return stage_at(self._progress_of(self._global_iteration()), self.genseg)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The trainer's own step on a batch with pairs in some of its slots; then generator and feedback on the real patches.

        Raises:
            FloatingPointError: the generator's numbers were NaN or infinite again and again.
            GenSegError: the first batch holds maps that cannot follow a deformation.
        """
        if not self._checked_batch:
            self._batches.require_known(batch, self._pseudo is not None)
            self._checked_batch = True
        stage = self._stage()
        if stage.tail:
            result = self.host_step(batch)
        else:
            self._log(self.loop.check())
            parts = self._batches.parts(batch)
            result, ground = self._mixed_step(batch, parts, stage.share, stage.unlabelled)
            self._tune_generator(parts, ground, stage)
        self._iteration += 1
        if self._iteration < self.num_iterations_per_epoch:
            self._exchange_cases_if_due()
        self.recorder.step()
        return result

    def _mixed_step(self, batch: dict[str, Any], parts: Parts, share: float, unlabelled: float) -> tuple[dict[str, Any], Parts]:
        """The trainer's own step on a batch, some of whose patches are synthetic; also what these were made from.

        Args:
            batch: nnU-Net's.
            parts: its parts.
            share: probability of a patch to become synthetic.
            unlabelled: probability of a synthetic patch to be made from an unlabelled image.
        """
        chosen, images = self.loop.choose(len(parts.image), share), self._pseudo
        ground = parts if images is None else images.ground(parts, chosen, unlabelled)
        replacement = self.loop.sample(ground.image, ground.labels, ground.cases, chosen)
        mixed = self._batches.replaced(batch, parts, replacement)
        if images is None:
            return self.host_step(mixed), ground
        with nullcontext() if replacement is None else images.loss_that_ignores():
            result = self.host_step(mixed)
        images.step()
        return result, ground

    def host_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The training step of the trainer that GenSeg is added to."""
        return super().train_step(batch)  # type: ignore[no-any-return]

    def _tune_generator(self, parts: Parts, ground: Parts, stage: Stage) -> None:
        """The generator's own step, on what pairs were made from, and that of the feedback, on labelled patches, where due."""
        iteration = self._global_iteration()
        if iteration % self.genseg.generator.interval == 0:
            self.loop.training_step(ground.image, ground.labels)
        if stage.feedback and self._held_out.rotation is not None and iteration % self.genseg.feedback.interval == 0:
            self._feedback_step(parts.image, parts.labels)

    def _feedback_step(self, image: Tensor, labels: Tensor) -> None:
        network, patches = self._plain_network(), self._held_out.patches
        rate, shares = modelled_step(network, self.optimizer)
        if rate > 0:  # else the segmentation network does not move, whatever the pairs are
            segmenter = Segmenter(network, self._feedback_loss, self._batches.to_input, self._batches.to_target, shares)
            held_out = self._held_out.next_batch()
            # the last patches, which nnU-Net draws around foreground
            self._log(self.loop.feedback_step(segmenter, image[-patches:], labels[-patches:], held_out, rate))

    def _log(self, text: str) -> None:
        self.recorder.message(text, self.current_epoch, self._iteration)

    # ------------------------------------------------------------------ records and files

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """A line about the generator in nnU-Net's log, and the record for the progress picture."""
        super().on_train_epoch_end(train_outputs)
        self._log(self.loop.check())
        self._log(self.loop.end_epoch())
        last = self._progress_of(self._global_iteration() - 1)
        self.recorder.end_epoch(self.current_epoch, stage_at(last, self.genseg).share, self.loop.means())

    def on_epoch_end(self) -> None:
        """Refreshes the pictures in the fold folder."""
        folder = Path(self.output_folder)
        self.recorder.refresh(folder, self.current_epoch, self.num_epochs, self._real_patches, self.loop)
        super().on_epoch_end()

    def _real_patches(self) -> tuple[Tensor, Tensor]:
        """Real images and class maps for a picture: of held-out cases, or else of nnU-Net's validation loader."""
        if self.genseg.feedback.enabled:
            held_out = self._held_out.next_batch()
            return held_out.network_input[:, : self._batches.image_channels], held_out.labels
        with own_random_state(self.genseg.seed):
            parts = self._batches.parts(next(self.dataloader_val))
        return parts.image, parts.labels

    def save_checkpoint(self, filename: str) -> None:
        """Saves nnU-Net's checkpoint atomically, after the generator's state in a file beside it.

        Raises:
            OSError: it could not be written; the older checkpoint is intact.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
        else:
            resuming.save(self, Path(filename), super().save_checkpoint, host_trainer(type(self), GenSegMixin))

    def load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        """Loads nnU-Net's checkpoint; the generator's state follows when the training starts again.

        Raises:
            GenSegError: the file is damaged.
        """
        if isinstance(filename_or_checkpoint, str):
            checkpoint.require_intact(Path(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            self._resume_from = (Path(filename_or_checkpoint), self.current_epoch)

    def on_train_end(self) -> None:
        """Removes the file beside the checkpoint that nnU-Net removes."""
        super().on_train_end()
        if self.local_rank == 0:
            checkpoint.remove_siblings(Path(self.output_folder) / "checkpoint_latest.pth")
