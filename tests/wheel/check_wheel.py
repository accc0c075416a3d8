"""Checks an installed wheel: run with the Python of an environment that holds it, from outside the repository."""

from __future__ import annotations

import os
import pickle
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

TRAINERS = ("GenSegTrainer", "GenSegTrainerNoFeedback", "GenSegTrainer_5epochs")
VARIABLE = "nnUNet_extTrainer"
FOLDERS = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
FIND = "--find"


def require(condition: bool, message: str) -> None:
    if not condition:
        raise SystemExit(f"wheel: {message}")


def installed_folder() -> Path:
    import nnunetv2_genseg

    folder = Path(nnunetv2_genseg.__file__).resolve().parent
    site_packages = Path(sysconfig.get_path("purelib")).resolve()
    require(
        folder.parent == site_packages,
        f"nnunetv2_genseg was imported from {folder}, expected it in {site_packages}; "
        "install the wheel and run this from outside the repository",
    )
    return folder


def exported(environment: dict[str, str]) -> str:
    """The value in the line that `genseg env` prints."""
    command = [str(Path(sysconfig.get_path("scripts")) / "genseg"), "env"]
    line = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    words = shlex.split(line)
    require(
        len(words) == 2 and words[0] == "export" and words[1].startswith(f"{VARIABLE}="),
        f"genseg env printed {line!r}, expected one line: export {VARIABLE}=FOLDER",
    )
    return words[1].partition("=")[2]


def find() -> None:
    """Every trainer, found by nnU-Net itself, is the installed class, before and after pickling."""
    installed_folder()
    from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

    found = {name: recursive_find_trainer_class_by_name(name) for name in TRAINERS}
    import nnunetv2_genseg.trainers as installed

    for name, trainer in found.items():
        expected = getattr(installed, name)
        require(trainer is expected, f"nnU-Net found {name} as {trainer!r} and not as the installed {expected!r}")
        require(pickle.loads(pickle.dumps(trainer)) is expected, f"{name} is another class after pickling")


def main() -> None:
    folder = installed_folder()
    require((folder / "plots" / "templates" / "report.html").is_file(), "the templates of the pages are missing")
    with tempfile.TemporaryDirectory() as temporary:
        environment = {key: value for key, value in os.environ.items() if key not in (VARIABLE, "PYTHONPATH")}
        for name in FOLDERS:
            environment[name] = str(Path(temporary, name))
            Path(environment[name]).mkdir()
        environment[VARIABLE] = exported(environment)
        require(
            Path(environment[VARIABLE]).resolve().is_relative_to(folder),
            f"genseg env names {environment[VARIABLE]}, expected a folder in {folder}",
        )
        command = [sys.executable, __file__, FIND]
        searched = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        require(searched.returncode == 0, f"nnU-Net's search failed\n{searched.stdout}")
    print(f"wheel: {folder}, {', '.join(TRAINERS)} found by nnU-Net: ok")


if __name__ == "__main__":
    find() if sys.argv[1:] == [FIND] else main()
