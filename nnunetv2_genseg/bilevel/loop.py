"""The bilevel training loop: pairs, the steps of the generator, and feedback. It knows nothing of nnU-Net."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunetv2_genseg.bilevel.feedback import ZERO_STEPS, Feedback, HeldOutBatch, Segmenter
from nnunetv2_genseg.bilevel.meter import Meter
from nnunetv2_genseg.bilevel.rollback import Rollback
from nnunetv2_genseg.config import GenSegConfig, GenSegError
from nnunetv2_genseg.generators import NetworkPlan
from nnunetv2_genseg.generators.pretrained import Cases, ImageKind, identity, load_pretrained, pretrainable, save_pretrained
from nnunetv2_genseg.synthesis.labels import LabelCodec
from nnunetv2_genseg.synthesis.pairs import Pairs
from nnunetv2_genseg.synthesis.preference import Preference
from nnunetv2_genseg.synthesis.sampler import PairSampler, Replacement
from nnunetv2_genseg.synthesis.sources.redraw import RedrawSource

RANK_SEED = 7919
"""Distance of the seeds of two processes."""
OFF = (
    f"feedback was zero {ZERO_STEPS} times in a row, so nothing is learned from the held-out cases; it is switched off. Change "
    "how pairs are drawn, for example intensity.shift or redraw.mode"
)
CAUSES = ("a synthetic image is not finite or far brighter than the real ones", "a gradient of the generator is not finite")


class BilevelLoop:
    """Owns the pair sampler and the feedback; the segmentation network is read, never changed.

    Args:
        config: all settings.
        plan: the segmentation network's plan.
        codec: the dataset's classes.
        image_channels: channels of the image.
        device: where everything lives.
        rank: number of this process in a distributed training; processes draw differently and learn alike.
        synchronise: averages tensors over the processes, in place.
        masked_channels: indices of image channels that are 0 outside of the subject.

    Raises:
        GenSegError: the settings do not fit each other, or name something that is not registered.
    """

    def __init__(
        self,
        config: GenSegConfig,
        plan: NetworkPlan,
        codec: LabelCodec,
        image_channels: int,
        device: torch.device,
        rank: int = 0,
        synchronise: Callable[[Iterable[Tensor]], None] = lambda tensors: None,
        masked_channels: Sequence[int] = (),
    ) -> None:
        self.config = config
        self.plan = plan
        self.codec = codec
        self.rank = rank
        self.synchronise = synchronise
        self.sampler = PairSampler(config, plan, codec, image_channels, device, masked_channels, synchronise)
        self.rng = torch.Generator(device).manual_seed(config.seed + RANK_SEED * rank)
        """Of all that is drawn on the device."""
        self.slot_rng = torch.Generator().manual_seed(config.seed + RANK_SEED * rank)
        """Of the slots of a batch and their sources; on the CPU, so that nothing waits for the device."""
        self.feedback = Feedback(config.feedback, self.sampler, synchronise) if config.feedback.enabled else None
        trains_policy = self.feedback is not None and config.feedback.parameters == "policy"
        self.sampler.policy.requires_grad_(trains_policy)
        self.rollback = Rollback(self._learned, self._load_learned)
        self.meter = Meter()
        self._finite = torch.ones(len(CAUSES), device=device)
        """Of each of `CAUSES`, 1 as long as it did not happen since `check` was last called."""

    # ------------------------------------------------------------------ one iteration

    def choose(self, count: int, share: float) -> dict[str, list[int]]:
        """The slots of a batch of `count` patches that become synthetic, each with the probability `share`, by pair source."""
        return self.sampler.choose(count, share, self.slot_rng)

    @torch.no_grad()
    def sample(
        self, image: Tensor, labels: Tensor, cases: Sequence[str] | None, chosen: dict[str, list[int]]
    ) -> Replacement | None:
        """Synthetic pairs for some slots of a batch; None if there are none.

        Args:
            image: (B, C, *spatial) the batch's images.
            labels: (B, *spatial) int64 their class maps.
            cases: the case of each patch; None if nothing is to be pasted from case to case.
            chosen: from `choose`.
        """
        self.sampler.observe(labels)
        if cases is not None:
            self.sampler.paster.remember(image, labels, cases)
        if not chosen:
            return None
        if cases is not None:
            slots = [slot for of_source in chosen.values() for slot in of_source]
            image, labels = self.sampler.paster.paste(image, labels, cases, slots, self.rng, self.slot_rng)
            self.sampler.observe(labels)  # a mask with a pasted structure may be larger than any real one
        replacement = self.sampler.replace_as_preferred(image, labels, chosen, self.rng)
        self._note_finite(0, replacement.finite)
        self.meter.add(replacement.measured)
        return replacement

    def forget_donors(self) -> None:
        """Pastes nothing of the patches seen so far any more, since their cases may be held out from now on."""
        self.sampler.paster.donors.clear()

    def free(self, classes: Sequence[int]) -> None:
        """Allows to paste classes at another place: those that occur at any place of the images."""
        self.sampler.paster.context.free_classes = tuple(classes)

    @torch.no_grad()
    def preview(self, image: Tensor, labels: Tensor) -> Pairs:
        """A pair for every real patch, sources in turn; random states stay as they are. Arguments as in `sample`."""
        names, count = list(self.sampler.sources), len(image)
        chosen = {name: list(range(k, count, len(names))) for k, name in enumerate(names)}
        chosen = {name: slots for name, slots in chosen.items() if slots}
        kept, slot_rng = self.rng.get_state(), torch.Generator().manual_seed(self.config.seed)
        try:
            image, labels = self.sampler.paster.paste(image, labels, [""] * count, range(count), self.rng, slot_rng)
            replacement = self.sampler.replace_as_preferred(image, labels, chosen, self.rng)
        finally:
            self.rng.set_state(kept)
        order = sorted(range(len(image)), key=replacement.slots.__getitem__)
        pairs = replacement.pairs
        return Pairs(pairs.image[order], pairs.labels[order], pairs.grid[order], pairs.accepted[order])

    def training_step(self, image: Tensor, labels: Tensor) -> None:
        """One step of the generator, and of all else that learns, on the real pairs of a batch; arguments as in `sample`."""
        losses = self.sampler.training_step(image, labels, self.rng)
        self._note_finite(1, losses.pop("finite", None))
        self.meter.add(losses)

    def feedback_step(self, segmenter: Segmenter, image: Tensor, labels: Tensor, held_out: HeldOutBatch, step_size: float) -> str:
        """One feedback step; see `Feedback.step`.

        Returns:
            What is to be said of it: it was not finite, and the generator returned to its last finite state, or feedback is
            switched off from now on; else nothing.

        Raises:
            FloatingPointError: it was not finite too often.
        """
        if self.feedback is None or not self.feedback.active:
            return ""
        chosen = self.feedback.choose(len(image), self.slot_rng)
        try:
            self.meter.add(self.feedback.step(segmenter, image, labels, held_out, step_size, chosen, self.rng))
        except FloatingPointError as error:
            return self._undo(str(error))
        return "" if self.feedback.active else OFF

    def check(self) -> str:
        """What was not finite since the last call, or nothing; the generator then returned to its last finite state.

        With the default settings, and between feedback steps, the only place of an iteration that waits for the device. Called an
        iteration later, it hardly waits.

        Raises:
            FloatingPointError: that happened too often.
        """
        self.synchronise([self._finite])
        finite = self._finite.cpu()
        self._finite = torch.ones_like(self._finite)
        found = [cause for cause, flag in zip(CAUSES, finite.tolist(), strict=True) if not flag >= 1]
        return self._undo(found[0]) if found else ""

    def _undo(self, cause: str) -> str:
        self._finite = torch.ones_like(self._finite)  # what the flags tell of is undone as well
        self.rollback.undo(cause)
        return f"{cause}; the generator returns to its last finite state"

    def _note_finite(self, place: int, flag: Tensor | None) -> None:
        if flag is not None:
            self._finite[place] = torch.minimum(self._finite[place], flag.to(self._finite))

    def end_epoch(self) -> str:
        """Takes the present state as the last finite one; if it is not finite, returns to the last one and says so.

        Raises:
            FloatingPointError: that happened too often.
        """
        try:
            self.rollback.end_epoch()
        except FloatingPointError as error:
            return self._undo(str(error))
        return ""

    def means(self) -> dict[str, float]:
        """Mean of every measured value since the last call, by name."""
        return self.meter.means()

    # ------------------------------------------------------------------ trained generators

    def trainable_generator(self) -> RedrawSource:
        """The source of the generator, if it can be trained alone and kept.

        Raises:
            GenSegError: there is none, or it has no weights.
        """
        source = self.sampler.sources.get("redraw")
        if not isinstance(source, RedrawSource):
            raise GenSegError(
                "mixing.sources has no `redraw`, so there is no generator to train or load; add it, without generator.pretrained "
                "if it is set"
            )
        pretrainable(source.generator, self.config.generator.name)
        return source

    def start_from(self, folder: Path, images: ImageKind) -> Cases:
        """Starts with the weights of a trained generator, also after a rollback; all else of its training begins anew.

        Args:
            folder: from `keep_generator`.
            images: what the training's images are.

        Returns:
            What it was trained on.

        Raises:
            GenSegError: the folder holds no trained generator, or one that does not fit or is not finite.
        """
        source = self.trainable_generator()
        trained_on = load_pretrained(source.generator, folder, self._identity(source, images))
        self.rollback.keep()
        return trained_on

    def keep_generator(self, folder: Path, images: ImageKind, cases: Cases, further: Mapping[str, Any] | None = None) -> None:
        """Writes the generator, trained on `cases`, for `start_from`; see there and `save_pretrained` for the arguments."""
        source = self.trainable_generator()
        save_pretrained(source.generator, folder, self._identity(source, images), cases, further)

    def _identity(self, source: RedrawSource, images: ImageKind) -> dict[str, Any]:
        return identity(self.config.generator, self.plan, source.layout, images)

    # ------------------------------------------------------------------ state

    def _learned(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict(), "feedback": self.feedback.state_dict() if self.feedback else None}

    def _load_learned(self, state: dict[str, Any]) -> None:
        self.sampler.load_state_dict(state["sampler"])
        if self.feedback is not None:
            self.feedback.load_state_dict(state["feedback"])

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed training needs, in tensors, numbers, strings, lists and dictionaries."""
        preference = self.sampler.preference
        return {
            "learned": self._learned(),
            "preference": None if preference is None else preference.state_dict(),
            "paster": self.sampler.paster.state_dict(),
            "rollback": self.rollback.state_dict(),
            "rng": self.rng.get_state(),
            "slot_rng": self.slot_rng.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of `state_dict`; other processes than the first, whose state it is, draw on with seeds of their own."""
        self._load_learned(state["learned"])
        preference = state["preference"]
        self.sampler.preference = None if preference is None else Preference.from_state(preference, self.rng.device)
        self.sampler.paster.load_state_dict(state["paster"], self.rng.device)
        self.rollback.load_state_dict(state["rollback"])
        for own, name in ((self.rng, "rng"), (self.slot_rng, "slot_rng")):
            own.set_state(state[name])
            if self.rank:
                drawn = int(torch.randint(2**31, (), generator=own, device=own.device))
                own.manual_seed(drawn + RANK_SEED * self.rank)
