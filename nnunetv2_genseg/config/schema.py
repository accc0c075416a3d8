"""All settings: one frozen model a section, checked when built.

Nothing has to be set. What each default rests on: docs/benchmarks.md, section Defaults, a line a setting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

ADJUSTABLE = ("feedback.interval", "feedback.patches")
"""What may be changed when a training is resumed: how much time and memory the feedback takes."""

Settings = dict[str, Any]


class Section(BaseModel):
    """Common behaviour of all sections: frozen, strictly typed, no unknown keys, field docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


def weights(chosen: dict[str, float]) -> dict[str, float]:
    """Checks how often names are drawn, and leaves out those that never are."""
    if not chosen or not all(0 <= weight < math.inf for weight in chosen.values()) or not any(chosen.values()):
        raise ValueError("every weight must be 0 or more and finite, and at least one above 0")
    return {name: weight for name, weight in chosen.items() if weight > 0}


class ScheduleConfig(Section):
    """When the synthetic pairs begin and end, in fractions of the training's iterations."""

    warmup: float = Field(0.2, ge=0, lt=1)
    """Fraction at the start in which the segmentation network sees real pairs only, while the generator learns."""
    ramp: float = Field(0.1, ge=0, lt=1)
    """Fraction after the warm-up in which the share of synthetic pairs rises from 0 to `mixing.share`."""
    tail: float = Field(0.15, ge=0, lt=1)
    """Fraction at the end in which the segmentation network sees real pairs only."""

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.warmup + self.ramp + self.tail >= 1:
            raise ValueError(
                f"warmup + ramp + tail is {self.warmup + self.ramp + self.tail:g}, which leaves no iteration for the full share "
                "of synthetic pairs; make the sum smaller than 1"
            )
        return self


class MixingConfig(Section):
    """How many patches of a batch are synthetic, and where they come from."""

    share: float = Field(0.5, gt=0, le=1)
    """Probability that a patch of the batch is replaced by a synthetic pair made from it, after the ramp."""
    sources: dict[str, float] = {"deformation": 0.5, "redraw": 0.5}
    """How often each pair source is drawn, relative to the others. `deformation`: image and mask are deformed together.
    `redraw`: the generator changes the intensities of the deformed image as well."""

    _weights = field_validator("sources")(weights)


class PasteConfig(Section):
    """What real patches get from other cases before pairs are made from them."""

    probability: float = Field(0.5, ge=0, le=1)
    """Probability that a part of another case's patch is pasted into a patch from which a pair is made; 0: never. Nothing is
    pasted where batches do not name their cases or hold further maps of the patch."""
    kinds: dict[str, float] = {"box": 1.0}
    """How often each way to paste is drawn, relative to the others. `box`: a box at the same place of the patch (CutMix).
    `carve`: the structures at their place in the patch, with a margin (CarveMix). `lesion`: a structure of a class that occurs
    at any place, turned and scaled, at another place; it is searched for on the CPU."""

    _weights = field_validator("kinds")(weights)


class DeformationConfig(Section):
    """How far the masks of synthetic pairs are deformed."""

    displacement: float = Field(0.04, ge=0, le=0.2)
    """Standard deviation of the elastic displacement, as a fraction of the patch extent of its axis. Displacements are limited
    so that space does not fold."""
    rotation: float = Field(30.0, ge=0, le=180)
    """Largest rotation, in degrees."""
    scaling: float = Field(0.25, ge=0, lt=0.9)
    """Largest relative change of size, log-uniform in [1 - scaling, 1 / (1 - scaling)]."""


class IntensityConfig(Section):
    """How the intensities of synthetic pairs are changed."""

    tone: float = Field(0.25, ge=0, le=2)
    """Standard deviation of the log slopes of a random monotone curve over the intensities of a pair; 0: none."""
    shift: float = Field(1.0, ge=0, le=3)
    """Size of the shift of the classes' mean intensities, relative to how these vary between real patches (source `redraw`,
    modes `tissue` and `residual`)."""


class MaskConfig(Section):
    """Where the masks of synthetic pairs come from before they are deformed."""

    source: str = "real"
    """`real`: the patch's own mask. `shape_vae`: each structure gets a new shape from a small variational autoencoder that learns
    in the same training; only pairs of the source `redraw` can show it."""


class RedrawConfig(Section):
    """How the generator makes the image of a synthetic pair."""

    mode: str = "residual"
    """`mask`: drawn from the labels alone, as in GenSeg. `tissue`: drawn from labels and tissue classes of the unlabelled part.
    `residual`: the deformed real image plus the difference of two drawn images, after and before the change."""
    tissue_classes: int = Field(6, ge=2, le=32)
    """Intensity clusters of the unlabelled part (modes `tissue` and `residual`)."""


class DiffusionConfig(Section):
    """What the generator `diffusion` alone reads."""

    sampling_steps: int = Field(2, ge=1, le=50)
    """Steps from noise to image; each takes a pass of the network."""


class GeneratorConfig(Section):
    """The generator and how it learns from the real pairs."""

    name: str = "gan"
    """A registered generator family: `gan`, `vae`, `diffusion` (set `feedback.parameters` to `weights`), or `gmm`, which
    has no weights (`feedback.parameters`: `policy`)."""
    width: float = Field(0.5, gt=0, le=2)
    """Channels of the generator's stages relative to those that nnU-Net planned for the segmentation network."""
    learning_rate: float = Field(5e-4, gt=0, le=0.1)
    """Adam's learning rate for all networks of the generator."""
    l1: float = Field(10.0, ge=0, le=1000)
    """Weight of the L1 distance to the real image beside the other losses (`gan`, `vae`)."""
    interval: int = Field(2, ge=1)
    """The generator takes a step every so many iterations."""
    pretrained: str | None = None
    """Folder of a trained generator (`genseg pretrain`) that a training starts from; None: random weights."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Settings of `diffusion`."""

    @model_validator(mode="after")
    def _read_by_the_family(self) -> GeneratorConfig:
        if self.name != "diffusion" and self.diffusion != DiffusionConfig():
            raise ValueError(f"settings in generator.diffusion are not read by generator {self.name!r}; remove them")
        return self


class FeedbackConfig(Section):
    """How the segmentation loss on real held-out training cases tunes the generator."""

    enabled: bool = True
    """Without feedback no case is held out and the generator learns from the real pairs alone."""
    parameters: Literal["architecture", "weights", "policy"] = "architecture"
    """What the feedback moves (φ): the kernel mixture α, all weights of the generator, or the sampling policy."""
    start: float = Field(0.3, ge=0, lt=1)
    """Fraction of the iterations after which feedback begins, not before the warm-up is over. It ends with the tail."""
    interval: int = Field(20, ge=1)
    """A feedback step every so many iterations."""
    patches: int | None = Field(None, ge=1)
    """Patches in the micro-batches of a feedback step, held-out and synthetic each; at most the batch size. None: 2 in 2D and 1
    in 3D, where no other step needs as much memory."""
    learning_rate: float | None = Field(None, gt=0, le=1)
    """Adam's learning rate for φ; None: 3e-3 for the architecture and the policy, 1e-5 for weights, which the generator's own
    training moves too."""
    cases: float | list[str] = 0.1
    """Training cases that are held out: a fraction of the fold's, at least one case, or a list of names."""
    rotations: int = Field(5, ge=1, le=20)
    """Into how many parts of equal length the time of the feedback is divided, each with other cases held out. With 1
    they are the same from the first iteration on and not trained on before the feedback ends. With more, all cases train
    before the feedback starts and in the other parts: the segmentation network has seen what it is judged on."""

    @field_validator("cases")
    @classmethod
    def _some(cls, cases: float | list[str]) -> float | list[str]:
        if isinstance(cases, list):
            if not cases or len(set(cases)) < len(cases):
                raise ValueError("name at least one case, and each once")
        elif not 0 < cases <= 0.5:
            raise ValueError("a fraction must be above 0 and at most 0.5")
        return cases

    @model_validator(mode="after")
    def _named_cases_do_not_rotate(self) -> FeedbackConfig:
        default = type(self).model_fields["rotations"].default
        if isinstance(self.cases, list) and self.rotations not in (1, default):  # the file of a training holds the default
            raise ValueError("feedback.rotations draws cases, but feedback.cases names them; remove one of the two")
        return self

    @property
    def parts(self) -> int:
        """Parts of the feedback's time with other cases held out; 1 if the cases are named."""
        return 1 if isinstance(self.cases, list) else self.rotations

    @property
    def rate(self) -> float:
        """Adam's learning rate for φ."""
        if self.learning_rate is not None:
            return self.learning_rate
        return 1e-5 if self.parameters == "weights" else 3e-3


class UnlabelledConfig(Section):
    """Images without labels from which pairs are made as well, with labels from a moving average of the segmentation network."""

    images: list[str] = []
    """Folders of raw images in nnU-Net's naming, CASE_0000.EXT, with the dataset's channels; none: labelled cases alone."""
    share: float = Field(0.5, gt=0, le=1)
    """Probability that a synthetic patch is made from one of these images. It rises over the first fifth of the training after
    the warm-up."""
    confidence: float = Field(0.8, ge=0.5, lt=1)
    """Voxels whose label has a lower probability than this are ignored by the loss."""


class ReviewConfig(Section):
    """What reviewers think of pairs that `genseg generate` wrote."""

    file: str | None = None
    """A review.csv in the folder of these pairs: pairs like the accepted ones are preferred; None: all pairs are alike."""


class GenSegConfig(Section):
    """Everything that a user may set."""

    schedule: ScheduleConfig = ScheduleConfig()
    mixing: MixingConfig = MixingConfig()
    paste: PasteConfig = PasteConfig()
    deformation: DeformationConfig = DeformationConfig()
    intensity: IntensityConfig = IntensityConfig()
    masks: MaskConfig = MaskConfig()
    unlabelled: UnlabelledConfig = UnlabelledConfig()
    review: ReviewConfig = ReviewConfig()
    redraw: RedrawConfig = RedrawConfig()
    generator: GeneratorConfig = GeneratorConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything that this package draws at random; nnU-Net's own random numbers are not touched."""

    @model_validator(mode="after")
    def _new_shapes_can_be_shown(self) -> GenSegConfig:
        if self.masks.source != "real" and "redraw" not in self.mixing.sources:
            raise ValueError(
                f"masks.source is {self.masks.source!r}, but no source in mixing.sources can draw an image for a new shape; add "
                "`redraw`, or choose masks.source 'real'"
            )
        return self

    @model_validator(mode="after")
    def _feedback_has_time(self) -> GenSegConfig:
        start, end = self.feedback_span
        if self.feedback.enabled and start >= end:
            raise ValueError(
                f"feedback would start at {start:g} of the training (feedback.start or schedule.warmup) and end at {end:g} "
                "(schedule.tail); leave it some time, or set feedback.enabled to false"
            )
        return self

    @property
    def feedback_span(self) -> tuple[float, float]:
        """Fractions of the iterations between which the feedback is taken."""
        return max(self.feedback.start, self.schedule.warmup), 1 - self.schedule.tail

    def to_json(self) -> Settings:
        """The settings as plain dictionaries, for a JSON file."""
        return self.model_dump(mode="json")

    def flat(self) -> Settings:
        """The settings by their full names, as in `feedback.rotations`."""
        return flattened(self.to_json())

    def lasting(self) -> Settings:
        """As `flat`, the settings that a training keeps when it is resumed."""
        return {key: value for key, value in self.flat().items() if key not in ADJUSTABLE}

    def differences(self, other: GenSegConfig) -> list[str]:
        """`section.key: own value there, other's value now` for every lasting setting in which the two differ."""
        mine, theirs = self.lasting(), other.lasting()
        keys = sorted({*mine, *theirs}, key=[*mine, *theirs].index)
        return [f"{key}: {mine.get(key)!r} there, {theirs.get(key)!r} now" for key in keys if mine.get(key) != theirs.get(key)]


def flattened(content: Mapping[str, Any], prefix: str = "") -> Settings:
    """Nested values by their full names, as in `feedback.rotations`."""
    flat: Settings = {}
    for key, value in content.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
