"""The files of a training: what it was configured with, its checkpoints, and how it is resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nnunetv2_genseg import __version__, checkpoint
from nnunetv2_genseg.config import GenSegConfig, GenSegError, checked
from nnunetv2_genseg.config.reading import read_json
from nnunetv2_genseg.files.atomic import remove_partial, write_text_atomically
from nnunetv2_genseg.random_state import global_random_state, set_global_random_state
from nnunetv2_genseg.trainers.preferring import warn_of_changes
from nnunetv2_genseg.trainers.saving import save_with_trainer_name
from nnunetv2_genseg.trainers.unlabelled_cases import FILE_NAME as UNLABELLED_FILE

CONFIG_FILE = "genseg_config.json"
"""All settings of the training, the version of this package and the trainer."""
STAMPS = ("genseg_version", "trainer")
"""What the configuration file holds beside the settings."""


def record(trainer: Any, resumed: bool) -> None:
    """Writes the configuration of a training into its fold folder, and at its start which cases are held out."""
    folder = Path(trainer.output_folder)
    settings = dict(zip(STAMPS, (__version__, type(trainer).__name__), strict=True)) | trainer.genseg.to_json()
    remove_partial(folder)
    write_text_atomically(json.dumps(settings, indent=2) + "\n", folder / CONFIG_FILE)
    if not resumed:
        trainer._held_out.write(folder)
    if trainer._pseudo is not None:
        trainer._pseudo.write()
    else:
        (folder / UNLABELLED_FILE).unlink(missing_ok=True)


def announce(trainer: Any) -> None:
    """Logs what is trained and how."""
    held_out = trainer._held_out.cases
    cases = f"{len(held_out.held_out)} of its training cases held out" if held_out else "no feedback"
    sources = ", ".join(f"{name} {weight:g}" for name, weight in trainer.genseg.mixing.sources.items())
    trainer.print_to_log_file(f"GenSeg {__version__}: pairs from {sources}; {cases}; {trainer.num_epochs} epochs")
    if trainer._pseudo is not None:
        trainer._pseudo.announce()
    if trainer.genseg.feedback.enabled:
        trainer.print_to_log_file(f"GenSeg: held out at this moment: {trainer._held_out.described()}")
        trainer.print_to_log_file(
            f"GenSeg: the feedback models a step of {type(trainer.optimizer).__name__} as learning rate times gradient, for the "
            "weights that move; momentum, adaptive scaling and weight decay are left out"
        )


def require_same_configuration(folder: Path, config: GenSegConfig) -> None:
    """Compares the settings with those that the training in a fold folder began with.

    Raises:
        GenSegError: they differ, or the fold was not trained by GenSeg.
    """
    path = folder / CONFIG_FILE
    if not path.is_file():
        raise GenSegError(f"cannot resume: {path} is missing, so this fold was not trained by GenSeg; start without --c")
    content = read_json(path, dict[str, Any], "a mapping of settings")
    settings = {key: value for key, value in content.items() if key not in STAMPS}
    differences = checked(GenSegConfig, settings, str(path)).differences(config)
    if differences:
        raise GenSegError(
            f"cannot resume with another configuration. In {path}:\n  " + "\n  ".join(differences) + "\n"
            "Restore the old settings, or start anew without --c"
        )


def save(trainer: Any, path: Path, host_save: Callable[[str], None], trainer_name: str) -> None:
    """Writes the generator's state and then nnU-Net's checkpoint, both atomically.

    Args:
        trainer: a GenSeg trainer of nnU-Net.
        path: of nnU-Net's checkpoint.
        host_save: writes it to a path.
        trainer_name: the trainer that it names.

    Raises:
        GenSegFileError: it could not be written; the older checkpoint is intact.
    """
    epoch = trainer.current_epoch + 1
    state = {
        "loop": trainer.loop.state_dict(),
        "progress": trainer.recorder.progress.state_dict(),
        "random": global_random_state(trainer.device),
    }
    if trainer._pseudo is not None:
        state["unlabelled"] = trainer._pseudo.state_dict()
    checkpoint.save_sibling(state, _identity(trainer), path, epoch)
    save_with_trainer_name(host_save, path, trainer_name)
    checkpoint.remove_siblings(path, keep=epoch)


def load_state(trainer: Any, path: Path, epoch: int) -> dict[str, Any]:
    """The generator's state that belongs to a checkpoint of nnU-Net.

    Raises:
        GenSegError: it is missing, damaged or of another training.
    """
    return checkpoint.load_sibling(_identity(trainer), path, epoch)


def restore(trainer: Any, state: dict[str, Any], path: Path) -> None:
    """Continues from what `load_state` returned for the checkpoint at `path`, whose epoch the trainer has by now.

    Raises:
        GenSegError: it does not have the form of a state.
    """
    with checkpoint.explained(checkpoint.sibling(path, trainer.current_epoch)):
        place = checkpoint.first_difference(trainer.loop.state_dict(), state["loop"])
        if place is not None:
            raise ValueError(f"{place or 'it'} has another form")
        trainer.loop.load_state_dict(state["loop"])
        if trainer._pseudo is not None:
            trainer._pseudo.load_state_dict(state["unlabelled"])
        trainer.recorder.progress.load_state_dict(state["progress"])
        if trainer.local_rank == 0:
            set_global_random_state(state["random"], trainer.device)
    warn_of_changes(trainer)


def _identity(trainer: Any) -> dict[str, Any]:
    of_plans = {f"`{key}` of the plans": value for key, value in trainer.configuration_manager.configuration.items()}
    of_fold = {f"{part} cases": names for part, names in trainer._held_out.of_fold.items()}
    return {
        "dataset": trainer.plans_manager.dataset_name,
        "plans": trainer.plans_manager.plans_name,
        "configuration": trainer.configuration_name,
        "fold": str(trainer.fold),
        "image_channels": int(trainer.num_input_channels),
        "classes": trainer.loop.codec.classes,
        "labels": {name: str(value) for name, value in trainer.dataset_json["labels"].items()},
        "settings": trainer.genseg.lasting(),
        "unlabelled images": sorted(trainer._pseudo.cases.images) if trainer._pseudo is not None else [],
        **of_fold,
        **json.loads(json.dumps(of_plans)),
    }
