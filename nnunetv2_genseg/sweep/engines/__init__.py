"""Where commands run; a module an engine."""

from __future__ import annotations

from nnunetv2_genseg.registry import Registry
from nnunetv2_genseg.sweep.engines.base import Engine, EngineFactory, RefusedError, Resources

ENGINES: Registry[EngineFactory] = Registry("engine", __name__)

__all__ = ["ENGINES", "Engine", "EngineFactory", "RefusedError", "Resources"]
