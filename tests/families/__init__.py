"""The model classes that the tests of adapters run on: every module here that defines FAMILIES."""

from __future__ import annotations

import importlib
import pkgutil

from .family import Family

FAMILIES: tuple[Family, ...] = tuple(
    family
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name)
    for family in getattr(importlib.import_module(f"{__name__}.{module.name}"), "FAMILIES", ())
)
