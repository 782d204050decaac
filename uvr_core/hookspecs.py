"""The plugin contract: pluggy project "uvr", entry-point group "uvr". Names cost nothing until they are used.

Each hook returns {name: target}; a target is "module:attribute" (resolved on first use) or the object itself. A
detector or policy may be a class, made without arguments. Two packages to start from: docs/examples."""

from __future__ import annotations

from collections.abc import Mapping

import pluggy

hookspec = pluggy.HookspecMarker("uvr")
hookimpl = pluggy.HookimplMarker("uvr")


@hookspec
def uvr_adapters() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{adapter name: uvr_core.Adapter}: which modules are joint attention, where the tokens lie, how to read time."""


@hookspec
def uvr_unfit() -> Mapping[str, str]:  # type: ignore[empty-body]
    """{model class name: what in it does not fit}: of a class for which no adapter is meant to come."""


@hookspec
def uvr_detectors() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{detector name: uvr_core.Detector subclass}: tapped attention output -> score per output patch."""


@hookspec
def uvr_policies() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{policy name: uvr_core.Policy subclass}: masks -> what flows into the located patches."""


@hookspec
def uvr_judges() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{judge name: factory}: factory() -> callable: list of PIL images -> list of {label: score}. One that can also
    point has `locate(images, labels, (H, W)) -> (B, H, W) bool`; `uvr collect --masks` needs it."""


@hookspec
def uvr_baselines() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{baseline name: uvr_core.Baseline subclass}: another way to keep a concept out, for comparison by `uvr eval`."""


@hookspec
def uvr_concepts() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{concept name: path}: concept files that a package ships, found by name after the user's own folder."""


@hookspec
def uvr_recipes() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{recipe name: path}: concept recipes (TOML) for `uvr concept new`; "prefix:name" is for models of that prefix."""


@hookspec
def uvr_models() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{prefix: function}: function(name) -> pipeline, so that `uvr` takes `prefix:name` where it takes a checkpoint."""


@hookspec
def uvr_commands() -> Mapping[str, tuple[object, str]]:  # type: ignore[empty-body]
    """{command name: (click.Command, one-line help)}: a subcommand of `uvr`, imported when it is called."""


@hookspec
def uvr_pages() -> Mapping[str, object]:  # type: ignore[empty-body]
    """{schema: function}: function(files, whole) -> text of JSON files with that "schema"; `whole`: a Markdown page."""
