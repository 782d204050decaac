"""The packages of judges, imported when a judge is made."""

from __future__ import annotations

import importlib
import importlib.resources
from typing import Any

from uvr_core.errors import PluginError


def import_for(module: str, distribution: str, judge: str) -> Any:
    """A judge's package.

    Raises:
        PluginError: it does not import; names what to install.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PluginError(
            f"judge {judge!r} needs the package {distribution}, which does not import ({error}): "
            + ("" if distribution == "transformers" else "pip install 'uvr-core[judges]', or ")
            + f"pip install {distribution}"
        ) from error
