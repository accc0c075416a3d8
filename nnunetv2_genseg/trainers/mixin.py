"""nnU-Net's side of the door: hooks that hand nnU-Net's batches, loss and files to the coupling."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, ClassVar

import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgeneratorsv2.transforms.utils.deep_supervision_downsampling import DownsampleSegForDSTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.helpers import empty_cache
from torch import Tensor, nn
from torch import distributed as dist
from torch._dynamo import OptimizedModule
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from nnunetv2_genseg import __version__, checkpoint
from nnunetv2_genseg.config import GenSegConfig, Settings, checked, resolve
from nnunetv2_genseg.coupling import Coupling, Segmenter, Stage, stage_at
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import Cases, ImageKind
from nnunetv2_genseg.labels import LabelCodec
from nnunetv2_genseg.pictures.progress import ProgressRecord
from nnunetv2_genseg.pictures.samples import save_samples
from nnunetv2_genseg.trainers.carving import Carving, carve
from nnunetv2_genseg.trainers.cascade import PreviousStage
from nnunetv2_genseg.trainers.checks import (
    PREPROCESS,
    first_of,
    read_json,
    require_description,
    require_previous_stage,
    require_splits,
)
from nnunetv2_genseg.trainers.mixing import MixedLoss, Target, joined
from nnunetv2_genseg.trainers.rehearsal import memory_is_full, undone

CONFIG_FILE = "genseg_config.json"
SAMPLES_FILE = "genseg_samples.png"
COMPILED_SHAPES = 64
"""Graphs that torch may compile for one function: the loss is called for every level of deep supervision and batch size."""
PICTURES = 12
"""The pictures in the fold folder are refreshed about this often during a training."""


class GenSegMixin(nnUNetTrainer):
    """Adds GenSeg to a trainer of nnU-Net: `class MyTrainer(GenSegMixin, AnyTrainer)`.

    Until synthetic pairs are mixed in, the segmenter trains bit for bit as the other trainer's would on the same cases.
    """

    is_ddp: bool
    preset: ClassVar[Settings] = {}
    """Settings of a preset trainer; the file named in `nnUNet_genseg_config` goes before them."""
    preset_epochs: int | None = None
    """Number of epochs of a preset trainer; nnU-Net's if None."""

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),
    ) -> None:
        self.genseg = resolve(self.preset)
        require_description(dataset_json)
        super().__init__(plans, configuration, fold, dataset_json, device)
        if self.output_folder is not None and not os.access(self.output_folder, os.W_OK):
            raise PermissionError(f"{self.output_folder} is not writable; correct the permissions of the results folder")
        if not self.label_manager.foreground_labels:
            raise ValueError("dataset.json declares no foreground label: there is nothing to segment or to draw")
        if self.preset_epochs is not None:
            self.num_epochs = self.preset_epochs
        self.coupling: Coupling | None = None
        self.progress = ProgressRecord()
        self._carving: Carving | None = None
        self._generator_saw: Cases = {}
        self._feedback_loader: nnUNetDataLoader | None = None
        self._previous_stage: PreviousStage | None = None
        self._building_feedback_loss = False
        self._resume_from: tuple[Path, int] | None = None
        self._iteration = 0
        self._turn: int | None = 0
        self._bar: tqdm[Any] | None = None

    # ------------------------------------------------------------------ building

    def initialize(self) -> None:
        """Builds the generator beside nnU-Net's network."""
        super().initialize()
        self._feedback_loss = self._build_feedback_loss()
        self.coupling = self._build_coupling()
        if self.is_cascaded:
            self._previous_stage = PreviousStage(self._cascade_transforms(), self.coupling.codec.labels)
        if self._do_i_compile():
            # two batch sizes occur, real and mixed: compile each once instead of one slower graph for any size
            settings = torch._dynamo.config
            settings.automatic_dynamic_shapes = False
            limit = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
            setattr(settings, limit, max(getattr(settings, limit), COMPILED_SHAPES))
        if self.is_ddp and self.genseg.feedback.enabled and any(isinstance(m, nn.SyncBatchNorm) for m in self.network.modules()):
            raise NotImplementedError(
                "feedback on several processes cannot look through synchronised batch norm; train on one, or without feedback"
            )

    def _build_coupling(self) -> Coupling:
        return Coupling(
            self.genseg,
            self._network_plan(),
            self._codec(),
            self._image_channels,
            self.device,
            rank=self.local_rank,
            synchronise=_average if self.is_ddp else lambda tensors: None,
            masked_channels=tuple(i for i, masked in enumerate(self._image_kind.masked) if masked),
        )

    @property
    def _image_channels(self) -> int:
        """Channels of the network's input that are image; in a cascade the previous stage's segmentation follows them."""
        return len(self._image_kind.channels)

    @property
    def _image_kind(self) -> ImageKind:
        description, configuration = self.dataset_json, self.configuration_manager
        channels = description["modality" if "modality" in description else "channel_names"]
        return ImageKind(
            channels=tuple(channels.values()),
            normalization=tuple(configuration.normalization_schemes),
            masked=tuple(map(bool, configuration.use_mask_for_norm)),
            spacing=tuple(float(extent) for extent in configuration.spacing),
        )

    def _start_from_pretrained(self) -> None:
        """Takes over the trained generator that `generator.pretrained` names, on every process."""
        assert self.coupling is not None
        folder = self.genseg.generator.pretrained
        if folder is not None:
            self._generator_saw = self.coupling.start_from(Path(folder), self._image_kind)
            self.print_to_log_file(f"GenSeg: the generator starts from {folder}")

    def _build_loss(self) -> nn.Module:
        return MixedLoss(super()._build_loss(), self._on_any_process)

    def _build_feedback_loss(self) -> nn.Module:
        """nnU-Net's loss for one process, not compiled: feedback differentiates it twice, which neither would survive."""
        distributed, self.is_ddp, self._building_feedback_loss = self.is_ddp, False, True
        try:
            loss: nn.Module = super()._build_loss()
            return loss
        finally:
            self.is_ddp, self._building_feedback_loss = distributed, False

    def _do_i_compile(self) -> bool:
        return not self._building_feedback_loss and bool(super()._do_i_compile())

    def _on_any_process(self, flag: bool) -> bool:
        if not self.is_ddp:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def _cascade_transforms(self) -> Any:
        labels = self.label_manager
        patch_size = self.configuration_manager.patch_size
        return self.get_training_transforms(
            patch_size, 0.0, None, None, False, is_cascaded=True, foreground_labels=labels.foreground_labels
        )

    def _network_plan(self) -> NetworkPlan:
        arguments = self.configuration_manager.network_arch_init_kwargs
        dims = len(self.configuration_manager.patch_size)

        def per_axis(values: Any) -> tuple[tuple[int, ...], ...]:
            return tuple((int(v),) * dims if isinstance(v, int) else tuple(int(n) for n in v) for v in values)

        return NetworkPlan(
            patch_size=tuple(int(n) for n in self.configuration_manager.patch_size),
            features=tuple(int(n) for n in arguments["features_per_stage"]),
            strides=per_axis(arguments["strides"]),
            kernels=per_axis(arguments["kernel_sizes"]),
        )

    def _codec(self) -> LabelCodec:
        labels = self.label_manager
        if labels.has_regions:
            return LabelCodec.from_regions(labels.foreground_regions, labels.has_ignore_label)
        return LabelCodec.from_labels(labels.foreground_labels, labels.ignore_label)

    # ------------------------------------------------------------------ cases

    def do_split(self) -> tuple[list[str], list[str]]:
        """nnU-Net's split, less the cases that are held aside for feedback at this moment.

        Raises:
            ValueError: the fold has too few cases.
        """
        self._require_cases()
        training, validation = super().do_split()
        if not self.genseg.feedback.enabled:
            return training, validation
        self._carving = carve(training, self.genseg.feedback.cases, self.genseg.seed, self._turn or 0)
        return (training if self._turn is None else self._carving.training), validation

    def _turn_at(self, iteration: int) -> int | None:
        """Which part of the cases is held aside; None if all of them train."""
        feedback, (start, end) = self.genseg.feedback, self.genseg.feedback_span
        progress = self._progress_of(iteration)
        before = feedback.turns > 1 and progress < start
        if not feedback.enabled or before or (feedback.release and progress >= end):
            return None
        elapsed = (progress - start) / (end - start)
        return min(max(0, int(elapsed * feedback.turns + 1e-6)), feedback.turns - 1)

    def _require_cases(self) -> None:
        if self.fold == "all":
            return
        cases = list(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        splits = Path(self.preprocessed_dataset_folder_base) / "splits_final.json"
        if splits.is_file():
            require_splits(splits, cases)
        elif len(cases) < 5:
            raise ValueError(
                f"the dataset has {len(cases)} cases, too few for nnU-Net's five-fold cross-validation; train on all of them "
                "with fold `all`, or write your own splits_final.json"
            )

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's datasets, after a look whether there is anything to segment in the training cases.

        Raises:
            ValueError: there is not.
        """
        previous = self.folder_with_segs_from_previous_stage
        training, validation = super().get_tr_and_val_datasets()
        if previous is not None:
            stage = self.configuration_manager.previous_stage_name
            require_previous_stage(Path(previous), training.identifiers, stage, type(self).__name__)
        first = self.dataloader_train is None and not self._turn  # a later turn may do without, for a while
        if first:
            # all are opened, so that one that cannot be is named now and not whenever it happens to be drawn
            shown = [_has_foreground(training, case) for case in training.identifiers]
            if not any(shown):
                raise ValueError(
                    "no training case of this fold holds a voxel of a foreground class; check labelsTr and dataset.json"
                )
            self._warn_of_seen(set(validation.identifiers) - set(training.identifiers))
        return training, validation

    def _warn_of_seen(self, validation: set[str]) -> None:
        seen = sorted(validation.intersection(self._generator_saw.get(self.plans_manager.dataset_name, ())))
        if seen:
            self.print_to_log_file(
                f"GenSeg WARNING: the generator in {self.genseg.generator.pretrained} was trained on {len(seen)} of the "
                f"{len(validation)} validation cases of this fold ({first_of(seen)}), so "
                "validation cannot judge it; train one for this fold with genseg pretrain -f FOLD"
            )

    def _feedback_batch(self) -> tuple[Tensor, Tensor]:
        """A micro-batch of held-aside cases, not augmented: (B', C, *spatial) network inputs, (B', *spatial) class maps."""
        assert self._carving is not None
        if self._feedback_loader is None:
            labels = self.label_manager
            transforms = self.get_validation_transforms(
                None,
                is_cascaded=self.is_cascaded,
                foreground_labels=labels.foreground_labels,
                regions=labels.foreground_regions if labels.has_regions else None,
                ignore_label=labels.ignore_label,
            )
            patch_size = self.configuration_manager.patch_size
            self._feedback_loader = nnUNetDataLoader(
                self.dataset_class(
                    self.preprocessed_dataset_folder,
                    self._carving.feedback,
                    folder_with_segs_from_previous_stage=self.folder_with_segs_from_previous_stage,
                ),
                min(self.genseg.feedback.patches, self.batch_size),
                patch_size,
                patch_size,
                labels,
                oversample_foreground_percent=1.0,
                transforms=transforms,
            )
        # nnU-Net's loader draws from the global generators: lend it its own, so that the training's stay as they are
        with self._own_random_state():
            batch = next(self._feedback_loader)
        network_input, _, _, labels = self._parts_of(batch)
        return network_input, labels

    def _own_random_state(self) -> Any:
        return checkpoint.own_random_state(self.genseg.seed + self._global_iteration() * 131 + self.local_rank)

    def _parts_of(self, batch: dict[str, Any]) -> tuple[Tensor, Target, Tensor, Tensor]:
        """Of a batch of nnU-Net's, on the device: network input, target, image (B, C, *spatial), class maps (B, *spatial)."""
        network_input, target = batch["data"].to(self.device, non_blocking=True), _to_device(batch["target"], self.device)
        return network_input, target, network_input[:, : self._image_channels], self._codec_on_device(target)

    def _codec_on_device(self, target: Target) -> Tensor:
        assert self.coupling is not None
        return self.coupling.codec.to_classes(target if isinstance(target, Tensor) else target[0])

    # ------------------------------------------------------------------ training

    def on_train_start(self) -> None:
        """nnU-Net's preparations; the generator is loaded or, after `--c`, restored, and the configuration recorded.

        On a GPU the largest steps of the training are tried at once.

        Raises:
            ValueError: what the generator is to start from, or go on from, is missing, damaged or does not fit.
            torch.cuda.OutOfMemoryError: the GPU's memory does not hold the training to its end.
        """
        if not self.was_initialized:
            self.initialize()
        folder = Path(self.output_folder)
        if self._resume_from is not None:
            self._require_same_configuration(folder / CONFIG_FILE)
        # as before the first epoch began: if cases are exchanged now, that happens after the random state is restored
        self._turn = self._turn_at(max(0, self.current_epoch * self.num_iterations_per_epoch - 1))
        if self.is_ddp:  # all processes would make and read splits_final.json at once
            if self.local_rank == 0:
                self.do_split()
            dist.barrier()
        state = None
        if self._resume_from is None:
            self._start_from_pretrained()
        else:
            path, epoch = self._resume_from
            state = checkpoint.load_sibling(self._identity(), path, epoch)
        super().on_train_start()
        assert self.coupling is not None
        if state is not None:
            self.coupling.restore(state["coupling"])
            self.progress.restore(state["progress"])
            if self.local_rank == 0:
                checkpoint.set_global_random_state(state["random"], self.device)
        if self.local_rank == 0:
            settings = {"genseg_version": __version__, "trainer": type(self).__name__, **self.genseg.to_json()}
            checkpoint.remove_partial(folder)
            checkpoint.write_text_atomically(json.dumps(settings, indent=2) + "\n", folder / CONFIG_FILE)
            if self._carving is not None and self._resume_from is None:
                feedback = self.genseg.feedback
                self._carving.write(folder, feedback.cases, self.genseg.seed, feedback.turns)
        self._announce()
        if self.device.type == "cuda":
            self._rehearse()

    def _rehearse(self) -> None:
        """Takes the largest steps, which come hours later, once and undoes them.

        A host trainer that counts or averages in its `train_step` counts one more.

        Raises:
            torch.cuda.OutOfMemoryError: memory does not hold one of them.
        """
        assert self.coupling is not None
        progress, feedback = self._progress_of(self._global_iteration()), self.genseg.feedback
        if stage_at(progress, self.genseg).tail:
            return
        parts = [self._plain_network(), self.optimizer, *([] if self.grad_scaler is None else [self.grad_scaler])]
        gamma, full, fault = self.genseg.mixing.gamma, "", ""
        remedy = "start anew with mixing: {share: 0.5} or lower, or with a smaller batch"
        with undone(self.coupling, self.device, *parts):
            try:
                self.coupling.pairs.largest.fill_(torch.inf)  # or new masks would be discarded
                batch = next(self.dataloader_train)
                real_input, target, image, labels = self._parts_of(batch)
                _, fault = self._segmenter_step(batch, real_input, target, image, labels, gamma)
                remedy = "start anew with a smaller generator: {width: ...}"
                self.coupling.learn(image, labels)
                if feedback.enabled and progress < self.genseg.feedback_span[1]:
                    remedy = "feedback: {patches: 1}, {method: last_layers} and {method: finite_difference} need less"
                    self._feedback_step(image, labels, gamma)
            except FloatingPointError as error:
                fault = str(error)
            except RuntimeError as error:
                if not memory_is_full(error):
                    raise
                full = str(error)
            self.optimizer.zero_grad(set_to_none=True)
        # raised here, where nothing holds what filled the memory any more
        if full:
            raise torch.cuda.OutOfMemoryError(f"GPU memory does not hold this training to its end; {remedy} ({full})")
        if fault:
            self.print_to_log_file(f"GenSeg: not all of the largest steps could be tried: {fault}")
        empty_cache(self.device)

    def _announce(self) -> None:
        held = f"{len(self._carving.feedback)} of its training cases held aside" if self._carving else "no feedback"
        self.print_to_log_file(
            f"GenSeg {__version__}: generator {self.genseg.generator.name}, mode {self.genseg.conditioning.mode}, "
            f"{held}, {self.num_epochs} epochs"
        )

    def _require_same_configuration(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"cannot resume: {path} is missing, so this fold was not trained by GenSeg; start without --c")
        settings = read_json(path)
        settings = {key: value for key, value in settings.items() if key not in ("genseg_version", "trainer")}
        differences = checked(GenSegConfig, settings, str(path)).differences(self.genseg)
        if differences:
            raise ValueError(
                f"cannot resume with another configuration. In {path}:\n  " + "\n  ".join(differences) + "\n"
                "Restore the old settings, or start anew without --c"
            )

    def on_train_epoch_start(self) -> None:
        """Exchanges the cases held aside where a turn, or the feedback, begins or ends."""
        super().on_train_epoch_start()
        self._iteration = 0
        self._exchange_cases_if_due()
        if self.local_rank == 0:
            self._bar = tqdm(total=self.num_iterations_per_epoch, desc=f"epoch {self.current_epoch}", disable=None, leave=False)

    def _exchange_cases_if_due(self) -> None:
        """Loads from the cases that train from this iteration on."""
        turn = self._turn_at(self._global_iteration())
        if turn == self._turn:
            return
        self._turn = turn
        self._finish_loaders()
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        self._feedback_loader = None
        held = "none" if self._turn is None or self._carving is None else ", ".join(self._carving.feedback)
        self.print_to_log_file(f"GenSeg: training goes on with these cases of the fold held aside: {held}")

    def _finish_loaders(self) -> None:
        """Ends the processes that load and augment."""
        for loader in (self.dataloader_train, self.dataloader_val):
            if isinstance(loader, NonDetMultiThreadedAugmenter):
                loader._finish()

    def _global_iteration(self) -> int:
        return int(self.current_epoch * self.num_iterations_per_epoch) + self._iteration

    def _stage_of(self, iteration: int) -> Stage:
        return stage_at(self._progress_of(iteration), self.genseg)

    def _progress_of(self, iteration: int) -> float:
        total = int(self.num_epochs * self.num_iterations_per_epoch)
        return iteration / max(1, total)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's step on the real patches and, after the warm-up, synthetic ones; then generator and feedback.

        Raises:
            FloatingPointError: the generator's numbers were NaN or infinite again and again.
        """
        stage = self._stage_of(self._global_iteration())
        if stage.tail:
            result: dict[str, Any] = super().train_step(batch)
        else:
            real_input, target, image, labels = self._parts_of(batch)
            result, fault = self._segmenter_step(batch, real_input, target, image, labels, stage.gamma)
            fault = fault or self._generator_step(image, labels, stage)
            if fault:
                self._undo(fault)
        self._iteration += 1
        if self._iteration < self.num_iterations_per_epoch:
            self._exchange_cases_if_due()
        if self._bar is not None:
            self._bar.update()
        return result

    def _segmenter_step(
        self, batch: dict[str, Any], real_input: Tensor, target: Target, image: Tensor, labels: Tensor, gamma: float
    ) -> tuple[dict[str, Any], str]:
        """nnU-Net's step, on real patches alone if the synthetic ones are not finite; what was wrong with them."""
        assert self.coupling is not None and isinstance(self.loss, MixedLoss)
        if gamma == 0:
            return super().train_step(batch), ""
        pairs, fault = None, ""
        try:
            pairs = self.coupling.draw(*self._sources(image, labels), self.coupling.synthetic_count(len(image)))
        except FloatingPointError as error:
            fault = str(error)
        if self._on_any_process(pairs is None) or pairs is None:
            return super().train_step(batch), fault or "a synthetic image of another process holds NaN or infinity"
        synthetic_input = self._to_input(pairs.image, pairs.labels)
        mixed = {"data": torch.cat([real_input, synthetic_input]), "target": joined(target, self._to_target(pairs.labels))}
        worth = self.coupling.worth(pairs.labels)
        with self.loss.mixing(len(image), gamma, None if worth is None else worth.detach()):
            result = super().train_step(mixed)
        real, synthetic = float(self.loss.real), float(self.loss.synthetic)
        self.coupling.note("synthetic", synthetic)
        self.coupling.note("new masks", pairs.kept)
        if pairs.learned is not None:
            self.coupling.note("learned masks", pairs.learned)
        if self.loss.left_out:
            fault = f"the segmentation loss of synthetic patches is {synthetic:g}, that of the real ones {real:g}"
        return {**result, "loss": self.loss.real.cpu().numpy()}, fault

    def _sources(self, image: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Image patches (B, C, *spatial) and class maps that synthetic pairs are drawn from, given those of the batch."""
        if self.genseg.mixing.sources == "batch":
            return image, labels
        _, _, further_image, further_labels = self._parts_of(next(self.dataloader_train))
        return further_image, further_labels

    def _generator_step(self, image: Tensor, labels: Tensor, stage: Stage) -> str:
        """The generator's own step and that of the feedback, where they are due; what was wrong with them."""
        assert self.coupling is not None
        iteration = self._global_iteration()
        try:
            if iteration % self.genseg.generator.interval == 0:
                self.coupling.learn(image, labels)
            if stage.feedback and self._turn is not None and iteration % self.genseg.feedback.interval == 0:
                self._feedback_step(image, labels, stage.gamma)
        except FloatingPointError as error:
            return str(error)
        return ""

    def _undo(self, cause: str) -> None:
        """Puts the generator back to its last good state; the segmenter has seen nothing of the fault."""
        assert self.coupling is not None
        self.print_to_log_file(
            f"GenSeg: epoch {self.current_epoch}, iteration {self._iteration}: {cause}. The generator goes back to its last "
            "good state"
        )
        self.coupling.recovery.undo(cause)

    def _to_input(self, image: Tensor, labels: Tensor) -> Tensor:
        """(B, C, *spatial) images to the network's input: in a cascade with a previous stage's segmentation of `labels`."""
        if self._previous_stage is None:
            return image
        with self._own_random_state():
            return torch.cat([image, self._previous_stage.draw(labels)], dim=1)

    def _to_target(self, labels: Tensor) -> Target:
        """(B, *spatial) class maps to targets, down-sampled for deep supervision by nnU-Net's own transform."""
        assert self.coupling is not None
        dtype = torch.bool if self.label_manager.has_regions else torch.int16
        target = self.coupling.codec.to_target(labels, dtype)
        scales = self._get_deep_supervision_scales()
        if scales is None:
            return target
        levels = DownsampleSegForDSTransform(scales)(segmentation=target.flatten(0, 1))["segmentation"]
        return [level.unflatten(0, target.shape[:2]) for level in levels]

    def _feedback_step(self, image: Tensor, labels: Tensor, gamma: float) -> None:
        assert self.coupling is not None
        segmenter = Segmenter(self._plain_network(), self._feedback_loss, self._to_input, self._to_target)
        patches = min(self.genseg.feedback.patches, len(image))  # of the end, where nnU-Net puts those with foreground
        held_input, held_labels = self._feedback_batch()
        step_size = self.optimizer.param_groups[0]["lr"]
        self.coupling.feedback(segmenter, image[-patches:], labels[-patches:], held_input, held_labels, gamma, step_size)

    def _plain_network(self) -> nn.Module:
        network: nn.Module = self.network
        if isinstance(network, DistributedDataParallel):
            network = network.module
        if isinstance(network, OptimizedModule):
            network = network._orig_mod
        return network

    # ------------------------------------------------------------------ what is seen

    def on_train_epoch_end(self, train_outputs: list[dict[str, Any]]) -> None:
        """A line about the generator in nnU-Net's log, and the record for the progress picture."""
        super().on_train_epoch_end(train_outputs)
        assert self.coupling is not None
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        try:
            self.coupling.recovery.end_stretch()
        except FloatingPointError as error:
            self._undo(str(error))
        values = self.coupling.report()
        self.progress.add(self.current_epoch, self._stage_of(self._global_iteration() - 1).gamma, values)
        if values:
            self.print_to_log_file("GenSeg", ", ".join(f"{name} {value:.4g}" for name, value in values.items()))

    def on_epoch_end(self) -> None:
        """Refreshes the pictures in the fold folder before nnU-Net saves."""
        every = max(1, self.num_epochs // PICTURES)
        if self.local_rank == 0 and (self.current_epoch % every == 0 or self.current_epoch == self.num_epochs - 1):
            self._refresh_pictures()
        super().on_epoch_end()

    def _refresh_pictures(self) -> None:
        folder = Path(self.output_folder)
        self.progress.plot(folder / "genseg_progress.png", self.num_epochs)
        self._save_samples(folder / SAMPLES_FILE, f"epoch {self.current_epoch}")

    def _save_samples(self, path: Path, title: str) -> None:
        assert self.coupling is not None
        if self.genseg.feedback.enabled:
            image, labels = self._feedback_batch()
        else:
            with checkpoint.own_random_state(self.genseg.seed):
                batch = next(self.dataloader_val)
            image, _, _, labels = self._parts_of(batch)
        image = image[:4, : self._image_channels]
        kept = self.coupling.rng.get_state()
        try:
            pairs = self.coupling.draw(image, labels[:4], len(image))
        except FloatingPointError as error:
            self.print_to_log_file(f"GenSeg: no picture of samples: {error}")
            return
        finally:
            self.coupling.rng.set_state(kept)
        save_samples(path, image, labels[:4], pairs, self.coupling.codec.foreground, title)

    # ------------------------------------------------------------------ files

    def _identity(self) -> dict[str, Any]:
        assert self.coupling is not None
        return {
            "dataset": self.plans_manager.dataset_name,
            "plans": self.plans_manager.plans_name,
            "configuration": self.configuration_name,
            "fold": str(self.fold),
            "image_channels": int(self.num_input_channels),
            "classes": self.coupling.codec.classes,
            "settings": self.genseg.lasting(),
        }

    def save_checkpoint(self, filename: str) -> None:
        """Saves nnU-Net's checkpoint atomically, after the generator's state in a sibling file.

        The checkpoint names the trainer that GenSeg was added to, so that everybody can predict with it.

        Raises:
            OSError: it could not be written; the older checkpoint is intact.
        """
        if self.local_rank != 0 or self.disable_checkpointing:
            super().save_checkpoint(filename)
            return
        assert self.coupling is not None
        path, epoch = Path(filename), self.current_epoch + 1
        buffer = io.BytesIO()
        super().save_checkpoint(buffer)
        buffer.seek(0)
        content = torch.load(buffer, map_location="cpu", weights_only=False)
        content["trainer_name"] = self._host_trainer()
        state = {
            "coupling": self.coupling.state(),
            "progress": self.progress.state(),
            "random": checkpoint.global_random_state(self.device),
        }
        checkpoint.save_sibling(state, self._identity(), path, epoch)
        checkpoint.save_atomically(content, path)
        checkpoint.remove_siblings(path, keep=epoch)

    def _host_trainer(self) -> str:
        order = type(self).__mro__
        return order[order.index(GenSegMixin) + 1].__name__

    def load_checkpoint(self, filename_or_checkpoint: str | dict[str, Any]) -> None:
        """Loads nnU-Net's checkpoint; the generator's state follows when the training starts again.

        Raises:
            ValueError: the file is damaged.
        """
        if isinstance(filename_or_checkpoint, str):
            checkpoint.require_intact(Path(filename_or_checkpoint))
        super().load_checkpoint(filename_or_checkpoint)
        if isinstance(filename_or_checkpoint, str):
            self._resume_from = (Path(filename_or_checkpoint), self.current_epoch)

    def on_train_end(self) -> None:
        """Removes the sibling of the checkpoint that nnU-Net removes."""
        super().on_train_end()
        if self.local_rank == 0:
            checkpoint.remove_siblings(Path(self.output_folder) / "checkpoint_latest.pth")


class GenSegTrainer(GenSegMixin, nnUNetTrainer):
    """nnU-Net's default trainer with GenSeg."""


def _to_device(target: Any, device: torch.device) -> Target:
    if isinstance(target, list):
        return [level.to(device, non_blocking=True) for level in target]
    on_device: Tensor = target.to(device, non_blocking=True)
    return on_device


def _average(tensors: Any) -> None:
    for tensor in tensors:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def _has_foreground(dataset: Any, case: str) -> bool:
    try:
        _, _, _, properties = dataset.load_case(case)
    except checkpoint.UNREADABLE as error:
        raise ValueError(f"preprocessed case {case} cannot be read ({error}); run {PREPROCESS}") from error
    return any(len(voxels) > 0 for key, voxels in properties["class_locations"].items() if not _is_annotated_key(key))


def _is_annotated_key(key: Any) -> bool:
    """With an ignore label nnU-Net lists all annotated voxels, background too, under a tuple with a negative label."""
    return isinstance(key, tuple) and any(int(label) <= 0 for label in key)
