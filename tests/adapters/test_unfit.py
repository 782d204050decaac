"""Every transformer class of diffusers has an adapter, or a reason why not, and the reasons are true of the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
from conformance import built_in, get

from uvr_adapters.unfit import CROSS, UNFIT
from uvr_core.testing.source import reads_text_aside
from uvr_core.testing.tiny import model_class


def transformers() -> Iterator[str]:
    """The public model classes among diffusers' transformers, from their source."""
    for path in sorted((Path(diffusers.__file__).parent / "models" / "transformers").glob("*.py")):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and any("ModelMixin" in ast.unparse(base) for base in node.bases):
                yield node.name


def test_every_transformer_of_diffusers_is_known() -> None:
    adapted = {get("adapter", name).model for name in built_in("adapter")}
    public = {name for name in transformers() if hasattr(diffusers, name)}
    assert len(public) > 40
    assert public - adapted - UNFIT.keys() == set()
    assert adapted & UNFIT.keys() == set()


@pytest.mark.parametrize(  # a UNet's blocks lie in files of their own
    "name", [name for name, reason in UNFIT.items() if CROSS in reason and "UNet" not in name]
)
def test_the_text_comes_in_by_cross_attention(name: str) -> None:
    if not hasattr(diffusers, name):
        pytest.skip(f"diffusers {diffusers.__version__} has no {name}")
    assert reads_text_aside(model_class(name))
