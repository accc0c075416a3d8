"""What every result says about how it was made: commit, machine and versions."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nnunetv2_genseg import __version__

PACKAGES = ("nnunetv2", "torch", "diffusers")


def commit() -> str | None:
    """The git commit of this checkout, with `-changed` behind it if tracked files differ from it.

    Where no repository is at hand, the environment variable `GENSEG_COMMIT`, or None.
    """
    folder = Path(__file__).parent

    def git(*command: str) -> str:
        done = subprocess.run(["git", *command], cwd=folder, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!results", ":!../docs")
        return git("rev-parse", "HEAD") + ("-changed" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GENSEG_COMMIT")


def versions() -> dict[str, str]:
    """This package's version and those of what it stands on."""
    found = {"nnunetv2-genseg": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def machine(device: str, conditions: str) -> str:
    """Processor, cores and device in words, and under which conditions they worked."""
    name = device
    if device == "cuda":
        import torch

        name = torch.cuda.get_device_name()
    return f"{processor()}, {os.cpu_count()} cores, device {name}; {conditions}"


def processor() -> str:
    """The processor's model name where the system tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.machine()


def provenance(device: str, conditions: str = "one CPU thread, other jobs beside") -> dict[str, Any]:
    """`commit`, `machine` and `versions`, as results hold them."""
    return {"commit": commit(), "machine": machine(device, conditions), "versions": versions()}
