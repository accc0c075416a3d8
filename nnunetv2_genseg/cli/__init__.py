"""The command `genseg`; a module a sub-command."""

from nnunetv2_genseg.cli.main import main
from nnunetv2_genseg.config.environment import external_trainers

__all__ = ["external_trainers", "main"]
