"""Tools that write a page of docs/, as modules."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType


@functools.cache
def models() -> ModuleType:
    """tools/models.py."""
    path = Path(__file__).parents[1] / "tools" / "models.py"
    spec = importlib.util.spec_from_file_location("models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
