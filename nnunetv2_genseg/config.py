"""What a user may set: one frozen model a topic, checked when built, JSON or YAML in and JSON out.

Nothing has to be set. Precedence: the preset trainer's class, then the file named in the environment variable
`nnUNet_genseg_config`, then nothing else.

What each default rests on: docs/benchmarks.md, section Defaults, a line a setting.
"""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

ENVIRONMENT_VARIABLE = "nnUNet_genseg_config"
ADJUSTABLE = ("feedback.interval", "feedback.method", "feedback.patches")
"""What may be changed when a training is resumed: how much time and memory the feedback takes."""

Settings = dict[str, Any]


class Topic(BaseModel):
    """Common behaviour of all topics: frozen, strictly typed, no unknown keys, field docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", use_attribute_docstrings=True)


class ScheduleConfig(Topic):
    """When the synthetic pairs enter and leave, in fractions of the number of epochs."""

    warmup: float = Field(0.2, ge=0, lt=1)
    """Fraction at the start in which the segmenter sees real data alone while the generator learns."""
    ramp: float = Field(0.1, ge=0, lt=1)
    """Fraction after the warm-up in which the weight of the synthetic pairs rises from 0 to `mixing.gamma`."""
    tail: float = Field(0.15, ge=0, lt=1)
    """Fraction at the end in which the segmenter sees real data alone again."""

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.warmup + self.ramp + self.tail >= 1:
            raise ValueError(
                f"warmup + ramp + tail is {self.warmup + self.ramp + self.tail:g}, which leaves no epoch for synthetic "
                "pairs at full weight; make the sum smaller than 1"
            )
        return self


class MixingConfig(Topic):
    """How many synthetic patches a batch gets and what they weigh."""

    share: float = Field(1.0, gt=0, le=4)
    """Synthetic patches per real patch of a batch; at least one patch is drawn."""
    sources: Literal["other", "batch"] = "other"
    """Real patches that synthetic pairs are drawn from. `other`: a further batch of nnU-Net's loader, so that the segmenter sees
    other cases in them. `batch`: those that it sees beside them, at half the loader's work."""
    gamma: float = Field(1.0, gt=0, le=10)
    """Weight of the synthetic loss beside the real loss, after the ramp."""


class MaskConfig(Topic):
    """How new masks are made out of the real ones."""

    source: Literal["deformation", "learned"] = "deformation"
    """`deformation`: real masks, changed as the settings below say. `learned`: before that, each patch's structures get new
    shapes from a small variational autoencoder, which learns in the same training. Not in mode `deformation`."""
    spread: float = Field(0.5, gt=0, le=1)
    """How far a new shape is from the patch's own: the share of noise in its latents, 1 draws them from the prior
    (`source: learned`)."""
    elastic: float = Field(0.04, ge=0, le=0.3)
    """Standard deviation of the displacement at a control point, as a fraction of the patch extent of its axis."""
    control_points: int = Field(5, ge=4, le=32)
    """Control points of the cubic B-spline displacement field along every axis."""
    rotation: float = Field(10.0, ge=0, le=180)
    """Largest rotation, in degrees."""
    scaling: float = Field(0.1, ge=0, lt=0.9)
    """Largest relative change of size, log-uniform in [1 - scaling, 1 / (1 - scaling)]."""
    growth: float = Field(0.0, ge=0, lt=0.5)
    """Largest bias for or against a class when its boundary is moved; 0.5 would move it by one voxel. Not in mode
    `deformation`."""
    recombination: float = Field(0.0, ge=0, le=1)
    """Probability that a patch receives structures of a patch of the batch (another, or itself), turned and resized."""
    margin: float = Field(0.05, ge=0, le=0.5)
    """Largest width of the surroundings that come along, as a fraction of the longest patch extent."""
    smallest: float = Field(0.3, gt=0, le=1)
    """A structure that keeps less than this fraction of its voxels makes the new mask be discarded for the real one; of
    structures that the patch's border cuts, only if all structures together keep less."""

    @model_validator(mode="after")
    def _read_by_the_source(self) -> MaskConfig:
        if self.source != "learned" and self.spread != type(self).model_fields["spread"].default:
            raise ValueError(f"masks.spread is not read by masks.source {self.source!r}; remove it, or choose source 'learned'")
        return self


class ConditioningConfig(Topic):
    """What the generator is told about the image that it shall draw."""

    mode: Literal["deformation", "mask", "tissue", "differential"] = "differential"
    """`deformation`: real image and mask deformed together, without a generator. `mask`: drawn from the labels alone
    (the paper's way). `tissue`: from labels and tissue classes of the unlabelled part. `differential`: the deformed real
    image plus the difference of two generated ones, after and before the change."""
    tissue_classes: int = Field(6, ge=2, le=32)
    """Intensity clusters of the unlabelled part (modes `tissue` and `differential`)."""
    intensity_shift: float = Field(0.1, ge=0, le=3)
    """Standard deviation of the shift of every class's mean intensity, relative to that within the real patches (modes `tissue`
    and `differential`)."""
    tone: float = Field(0.25, ge=0, le=2)
    """Standard deviation of the log slopes of a random monotone curve over the synthetic image's intensities; 0: none."""


class DiffusionConfig(Topic):
    """What generator `diffusion` alone reads."""

    sampling_steps: int = Field(2, ge=1, le=50)
    """Steps from noise to image; a pair takes as many passes of the network, in mode `differential` of two patches each."""
    feedback_steps: int = Field(1, ge=1, le=50)
    """The last steps that feedback is propagated through; the steps before are constants to it."""
    ema: float = Field(0.999, ge=0, lt=1)
    """Decay of the moving average of the weights that images are drawn with, lower in the first iterations; 0: none."""

    @model_validator(mode="after")
    def _fits(self) -> DiffusionConfig:
        if self.feedback_steps > self.sampling_steps:
            raise ValueError(
                f"feedback_steps is {self.feedback_steps}, but there are {self.sampling_steps} sampling_steps; choose no more"
            )
        return self


class VaeConfig(Topic):
    """What generator `vae` alone reads."""

    kl: float = Field(0.1, gt=0, le=100)
    """Weight of the Kullback-Leibler divergence of the latents (nats a patch) beside `l1` times the L1 distance."""
    introspection: float = Field(1.0, ge=0, le=10)
    """Weight of the encoder as a judge of drawn images; 0 makes a plain conditional VAE."""


class GeneratorConfig(Topic):
    """The generator and how it learns from the real pairs.

    Settings of one family stand in the topic of its name, and another family's are refused. `gmm` reads none of them.
    """

    name: str = "gan"
    """A registered generator family: `gan`, `vae`, `diffusion` (set `feedback.parameters` to `weights`), or `gmm`, which
    has no weights (`feedback.parameters`: `policy`)."""
    width: float = Field(0.5, gt=0, le=2)
    """Channels of the generator's stages relative to those that nnU-Net planned for the segmenter."""
    style_channels: int = Field(8, ge=1, le=256)
    """Length of the style noise vector (`gan`, `vae`; the style of `diffusion` is an image of noise)."""
    learning_rate: float = Field(5e-4, gt=0, le=0.1)
    """Adam's learning rate for all networks of the generator."""
    l1: float = Field(10.0, ge=0, le=1000)
    """Weight of the L1 distance to the real image beside the other losses (`gan`, `vae`)."""
    interval: int = Field(1, ge=1)
    """The generator takes a step every so many iterations (k)."""
    pretrained: str | None = None
    """Folder of a trained generator (`genseg pretrain`) that a training starts from; None: random weights. Read at the start
    alone; resuming needs the same setting, but not the folder. Cases that the generator was trained on cannot judge what it is
    worth."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """Settings of `diffusion`."""
    vae: VaeConfig = VaeConfig()
    """Settings of `vae`."""

    @model_validator(mode="after")
    def _read_by_the_family(self) -> GeneratorConfig:
        for family, default in (("diffusion", DiffusionConfig()), ("vae", VaeConfig())):
            if family != self.name and getattr(self, family) != default:
                raise ValueError(f"settings in generator.{family} are not read by generator {self.name!r}; remove them")
        return self


class FeedbackConfig(Topic):
    """How the loss on real held-aside cases tunes the generator."""

    enabled: bool = True
    """Without feedback nothing is held aside and the generator learns from the real pairs alone."""
    parameters: Literal["architecture", "weights", "policy"] = "architecture"
    """What the feedback moves (φ): the kernel mixture α, all weights of the generator, or the drawing policy."""
    method: Literal["exact", "finite_difference", "last_layers"] = "exact"
    """How the hypergradient is computed."""
    start: float = Field(0.3, ge=0, lt=1)
    """Fraction of the epochs after which feedback begins, not before the warm-up is over."""
    end: float = Field(1.0, gt=0, le=1)
    """Fraction of the epochs after which feedback ends, at the latest when the real-only tail begins. If earlier, the kernel
    mixture and the policy stay as the feedback left them, weights go on learning from the real pairs, and all cases train."""
    interval: int = Field(5, ge=1)
    """A feedback step every so many iterations (K)."""
    patches: int = Field(2, ge=1)
    """Patches in the micro-batches of a feedback step, real and synthetic each; at most the batch size. With 1 the policy leaves
    what classes are worth at 1, since it weighs the patches of a step against each other."""
    learning_rate: float = Field(3e-3, gt=0, le=1)
    """Adam's learning rate for φ."""
    cases: float = Field(0.1, gt=0, le=0.5)
    """Fraction of the fold's training cases that is held aside, at least one case."""
    turns: int = Field(5, ge=1, le=20)
    """Into how many parts of equal length the time of the feedback is divided, each with other cases held aside. With 1
    they are the same from the first iteration on and not trained on before the feedback ends. With more, all cases train
    before the feedback starts and in the other turns: little is lost to the segmenter, but it has seen what it is judged on."""
    release: bool = True
    """Give the held-aside cases back to the segmenter when the feedback has ended."""
    lookahead: bool = False
    """Take the feedback gradient one SGD step on the synthetic loss ahead instead of at the current weights."""


class GenSegConfig(Topic):
    """Everything that a user may set.

    Raises:
        ValueError: from `resolve`, for an unknown key, a wrong type or a value out of range.
    """

    schedule: ScheduleConfig = ScheduleConfig()
    mixing: MixingConfig = MixingConfig()
    masks: MaskConfig = MaskConfig()
    conditioning: ConditioningConfig = ConditioningConfig()
    generator: GeneratorConfig = GeneratorConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of everything that this package draws at random; nnU-Net's own random numbers are not touched."""

    @model_validator(mode="after")
    def _new_shapes_can_be_shown(self) -> GenSegConfig:
        if self.masks.source == "learned" and self.conditioning.mode == "deformation":
            raise ValueError(
                "masks.source is 'learned', but conditioning.mode 'deformation' has no generator that could draw an image for "
                "a new shape; choose mode 'mask', 'tissue' or 'differential', or masks.source 'deformation'"
            )
        return self

    @model_validator(mode="after")
    def _feedback_has_time(self) -> GenSegConfig:
        start, end = self.feedback_span
        if self.feedback.enabled and start >= end:
            raise ValueError(
                f"feedback would start at {start:g} of the training (feedback.start or schedule.warmup) and end at {end:g} "
                "(feedback.end or schedule.tail); leave it some time, or set feedback.enabled to false"
            )
        return self

    @property
    def feedback_span(self) -> tuple[float, float]:
        """Fractions of the epochs between which the feedback is taken."""
        return max(self.feedback.start, self.schedule.warmup), min(self.feedback.end, 1 - self.schedule.tail)

    def to_json(self) -> Settings:
        """The settings as plain dictionaries, for a JSON file."""
        return self.model_dump(mode="json")

    def flat(self) -> Settings:
        """The settings by their full names, as in `feedback.turns`."""
        return _flat(self.to_json())

    def lasting(self) -> Settings:
        """As `flat`, the settings that a training keeps when it is resumed."""
        return {key: value for key, value in self.flat().items() if key not in ADJUSTABLE}

    def differences(self, other: GenSegConfig) -> list[str]:
        """`topic.key: own value, other's value` for every lasting setting in which the two differ."""
        mine, theirs = self.lasting(), other.lasting()
        return [f"{key}: {mine[key]!r}, there {theirs[key]!r}" for key in mine if mine[key] != theirs[key]]


_ConfigT = TypeVar("_ConfigT", bound=Topic)


def resolve(preset: Settings | None = None, environment: dict[str, str] | None = None) -> GenSegConfig:
    """The configuration that a training uses.

    Args:
        preset: settings of the preset trainer, nested as in the JSON file.
        environment: where `nnUNet_genseg_config` is looked up; the process's environment by default.

    Raises:
        ValueError: the file is missing, not JSON or YAML, or holds a setting that is unknown or not allowed.
    """
    environment = dict(os.environ) if environment is None else environment
    path = environment.get(ENVIRONMENT_VARIABLE, "").strip()
    settings = _merged(preset or {}, _read(Path(path)) if path else {})
    return checked(GenSegConfig, settings, origin=path or "preset")


def checked(model: type[_ConfigT], settings: Settings, origin: str) -> _ConfigT:
    """Builds `model`; every fault becomes one line that names the key, what was found and what is allowed.

    Raises:
        ValueError: for anything that is wrong in `settings`.
    """
    try:
        return model.model_validate(settings)
    except ValidationError as error:
        lines = [_explain(model, dict(fault)) for fault in error.errors()]
        raise ValueError(f"GenSeg configuration ({origin}) is not valid:\n  " + "\n  ".join(lines)) from None


def _explain(model: type[BaseModel], fault: dict[str, Any]) -> str:
    path = [str(part) for part in fault["loc"]]
    key = ".".join(path) or "configuration"
    if fault["type"] != "extra_forbidden":
        return f"{key}: {fault['msg']}; found {fault['input']!r}"
    for part in path[:-1]:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    known = list(model.model_fields)
    near = difflib.get_close_matches(path[-1], known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known here: {', '.join(known)}"
    return f"{key}: unknown key; {hint}"


def _read(path: Path) -> Settings:
    if not path.is_file():
        raise ValueError(f"{ENVIRONMENT_VARIABLE} names {path}, which is not a file; correct or unset it")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8: {error}") from None
    try:
        settings = json.loads(text, object_pairs_hook=_mapping) if path.suffix == ".json" else yaml.load(text, _Loader)
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is neither valid JSON nor YAML: {error}") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ValueError(f"{path} must hold a mapping of topics to settings, found {type(settings).__name__}")
    return settings


class _Loader(yaml.SafeLoader):
    """YAML as its version 1.2 has it where PyYAML keeps to an older one: 1e-4 is a number, and no key is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        _refuse_twice([self.construct_object(key, deep=True) for key, _ in node.value])
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)


def _mapping(items: list[tuple[str, Any]]) -> Settings:
    _refuse_twice([key for key, _ in items])
    return dict(items)


def _refuse_twice(keys: list[Any]) -> None:
    """Python's readers of JSON and YAML would keep the last value and say nothing."""
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"{key} is there twice; join the two")


def _merged(first: Settings, second: Settings) -> Settings:
    result = dict(first)
    for key, value in second.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


def _flat(settings: Settings, prefix: str = "") -> Settings:
    flat: Settings = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
