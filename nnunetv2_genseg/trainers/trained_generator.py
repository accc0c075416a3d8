"""The trained generator of a fold folder, or of `generator.pretrained`, for work after the training."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.file_path_utilities import convert_trainer_plans_config_to_identifier

from nnunetv2_genseg import checkpoint
from nnunetv2_genseg.config import GenSegConfig, GenSegError, Settings, checked
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.generators import Generator
from nnunetv2_genseg.generators.pretrained import CONFIG, TRAINED_ON, Pretrainable, identity, load_pretrained
from nnunetv2_genseg.synthesis.sources.redraw import RedrawSource
from nnunetv2_genseg.trainers.planning import image_kind, network_plan
from nnunetv2_genseg.trainers.preflight import warn_of_seen
from nnunetv2_genseg.trainers.resuming import CONFIG_FILE, STAMPS
from nnunetv2_genseg.trainers.standalone import Standalone
from nnunetv2_genseg.trainers.unlabelled_cases import FILE_NAME as UNLABELLED

STEMS = ("checkpoint_final", "checkpoint_best", "checkpoint_latest")
"""nnU-Net's checkpoints, in the order in which the generator is taken from those of the same epoch."""

TRAIN_ONE = "train this fold (genseg train) or a generator alone (genseg pretrain, and --set generator.pretrained=FOLDER)"


@dataclass(frozen=True)
class Origin:
    """Where a generator comes from."""

    family: str
    sha256: str | None
    """Of its weights: of the file `model.safetensors` that `genseg pretrain` would write; None for a family without any."""
    file: str
    """The file of the fold folder, or the folder, that it was loaded from; empty for a family without weights."""


def fold_folder(settings: Standalone) -> Path | None:
    """The folder of a fold's training, if nnUNet_results is set and it is there."""
    results = os.environ.get("nnUNet_results")
    if not results:
        return None
    training = convert_trainer_plans_config_to_identifier(settings.trainer, settings.plans, settings.configuration)
    folder = Path(results) / maybe_convert_to_dataset_name(settings.dataset) / training / f"fold_{settings.fold}"
    return folder if folder.is_dir() else None


def settings_of(folder: Path | None) -> Settings | None:
    """The settings of the training in a fold folder; None if there is none."""
    if folder is None or not (folder / CONFIG_FILE).is_file():
        return None
    content = read_json(folder / CONFIG_FILE, dict[str, Any], "a mapping of settings")
    return {key: value for key, value in content.items() if key not in STAMPS}


def load_generator(trainer: Any, source: RedrawSource, folder: Path | None) -> Origin | None:
    """Loads the newest state of the fold's training, or else what `generator.pretrained` names.

    Args:
        trainer: a GenSeg trainer of nnU-Net; it is read alone.
        source: its generator is loaded.
        folder: of the fold's training; None: there was none.

    Returns:
        Where the generator comes from; None if it is untrained.

    Raises:
        GenSegError: a file is damaged or does not fit.
    """
    config: GenSegConfig = trainer.genseg
    state = newest_state(folder)
    if state is not None:
        path, epoch = state
        own = identity_of_fold(
            trainer.plans_manager, trainer.configuration_name, trainer.fold, trainer.dataset_json, settings_of(folder)
        )
        _restore(source, checkpoint.load_sibling(own, path, epoch), checkpoint.sibling(path, epoch))
        return Origin(config.generator.name, digest(source.generator), checkpoint.sibling(path, epoch).name)
    if config.generator.pretrained is not None:
        images = image_kind(trainer.dataset_json, trainer.configuration_manager)
        own = identity(config.generator, network_plan(trainer.configuration_manager), source.layout, images)
        load_pretrained(source.generator, Path(config.generator.pretrained), own)
        return Origin(config.generator.name, digest(source.generator), config.generator.pretrained)
    if source.generator.weights():
        return None
    return Origin(config.generator.name, None, "")


def newest_state(folder: Path | None) -> tuple[Path, int] | None:
    """nnU-Net's checkpoint of the last epoch that has a state of GenSeg, and this epoch; None if there is none."""
    if folder is None:
        return None
    found = [
        (folder / f"{stem}.pth", int(path.stem.rpartition("-")[2]))
        for stem in STEMS
        for path in folder.glob(f"{stem}.genseg-[0-9]*.pt")
    ]
    return max(found, key=lambda state: state[1], default=None)


def identity_of_fold(
    plans: Any, configuration: str, fold: Any, description: dict[str, Any], settings: Settings | None
) -> dict[str, Any]:
    """What the state of a training must have in common with what it is loaded into.

    Args:
        plans: nnU-Net's PlansManager.
        configuration: its name.
        fold: the training's.
        description: the content of dataset.json.
        settings: that the fold folder tells. Those of the state differ if an earlier training left it there.
    """
    lasting = {} if settings is None else {"settings": checked(GenSegConfig, settings, CONFIG_FILE).lasting()}
    return lasting | {
        "dataset": plans.dataset_name,
        "plans": plans.plans_name,
        "configuration": configuration,
        "fold": str(fold),
        "labels": {name: str(value) for name, value in description["labels"].items()},
    }


def _restore(source: RedrawSource, state: dict[str, Any], path: Path) -> None:
    with checkpoint.explained(path):
        sampler = state["loop"]["learned"]["sampler"]
        there = sampler["sources"].get("redraw")
        if there is None:
            raise ValueError("the training had no source `redraw`")
        kept = source.masks.state_dict()  # of a mask source only what draws images is needed
        require_form(source.generator.state_dict(), there["generator"])
        source.load_state_dict({**there, "masks": kept})
        source.context.policy.load_state_dict(sampler["policy"])


def require_form(own: Any, there: Any) -> None:
    """Raises ValueError, for `explained`, if a learned state has another form than that of what loads it."""
    place = checkpoint.first_difference(own, there)
    if place is not None:
        raise ValueError(f"{place or 'it'} has another form; leave the generator's settings as they were in the training")


def digest(generator: Generator) -> str | None:
    """SHA-256 of a generator's weights: of the file that `genseg pretrain` writes, or of all weights in turn."""
    if not generator.weights():
        return None
    found = hashlib.sha256()
    if isinstance(generator, Pretrainable):
        with TemporaryDirectory(prefix="genseg_weights_") as temporary:
            generator.save_weights(Path(temporary))
            for path in sorted(path for path in Path(temporary).rglob("*") if path.is_file()):
                found.update(path.read_bytes())
    else:
        for weight in [*generator.weights(), *generator.architecture()]:
            found.update(weight.detach().cpu().numpy().tobytes())
    return found.hexdigest()


def warn_of_validation(
    folder: Path | None, origin: Origin | None, validation: Collection[str], dataset: str, say: Callable[[str], None]
) -> None:
    """Says so if a generator has learned from validation cases of the fold.

    Args:
        folder: of the fold's training, or None.
        origin: of the generator, or None.
        validation: names of the cases.
        dataset: name of the dataset.
        say: tells the user.
    """
    if origin is None or not origin.file:
        return
    if (description := Path(origin.file) / CONFIG).is_file():
        seen = read_json(description, dict[str, Any], "a mapping").get(TRAINED_ON, {}).get(dataset, ())
        warn_of_seen(validation, seen, origin.file, say)
    elif folder is not None and (folder / UNLABELLED).is_file():
        seen = read_json(folder / UNLABELLED, dict[str, Any], "a mapping").get("transductive", ())
        if seen:
            say(
                f"WARNING: the generator has learned from {len(seen)} images, without their labels, that belong to this fold's "
                "validation cases or to imagesTs; do not judge what trains on these pairs by them, or say so"
            )


def require_trained(others: list[str]) -> str:
    """What is said when the generator is untrained.

    Raises:
        GenSegError: no other source is left to draw pairs.
    """
    where = "neither the fold folder nor generator.pretrained holds a trained generator"
    if not others:
        raise GenSegError(
            f"{where}, and mixing.sources names no source but `redraw`; {TRAIN_ONE}, or add --set mixing.sources.deformation=1"
        )
    return f"{where}: pairs are made by {', '.join(others)} alone"
