"""Finds a part by its name: pair sources, ways to paste, mask sources, modes, generators and engines of a sweep.

A part of this package is a module in the folder of its kind that calls the registry's `register`. Another package adds a part by
an entry point in the group of the kind: `my_part = "my_package.my_module"`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.metadata import entry_points
from pkgutil import iter_modules
from typing import Generic, TypeVar

from nnunetv2_genseg.config import GenSegError

T = TypeVar("T")


class Registry(Generic[T]):
    """The parts of one kind, by name. A module is imported when a part of it is asked for, not before.

    Args:
        setting: the setting that names a part, for messages.
        package: package whose modules register the built-in parts; each module has the name of its part.
        exclude: modules of the package that register nothing.
    """

    def __init__(self, setting: str, package: str, exclude: tuple[str, ...] = ("base",)) -> None:
        self.setting = setting
        self.package = package
        self.exclude = exclude
        self._parts: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator: makes a class or function selectable as `name`.

        Raises:
            RuntimeError: the name is taken.
        """

        def add(part: T) -> T:
            if name in self._parts:
                raise RuntimeError(f"{self.setting} {name!r} is registered twice")
            self._parts[name] = part
            return part

        return add

    def names(self) -> list[str]:
        """Names of all parts, sorted, those of other packages' entry points among them."""
        return sorted({*self._parts, *self._modules()})

    def __getitem__(self, name: str) -> T:
        """The part of that name, its module imported if need be.

        Raises:
            GenSegError: no part has that name.
            ImportError: its module does not import or does not register it.
        """
        module = self._modules().get(name)
        if name not in self._parts and module:
            try:
                import_module(module)
            except Exception as error:
                raise ImportError(f"{self.setting} {name!r}: {module} does not import: {error}") from error
            if name not in self._parts:
                raise ImportError(f"{self.setting} {name!r}: {module} does not register it; decorate its part with @register")
        if name not in self._parts:
            raise GenSegError(f"{self.setting}: no {name!r}; registered are {', '.join(self.names())}")
        return self._parts[name]

    def _modules(self) -> dict[str, str]:
        folder = import_module(self.package).__path__
        own = {module.name: f"{self.package}.{module.name}" for module in iter_modules(folder)}
        found = {point.name: point.module for point in entry_points(group=self.package)}
        return found | {name: module for name, module in own.items() if name not in self.exclude}
