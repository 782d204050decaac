"""From the MODEL argument to a pipeline: a folder, a model of the Hub, or a plugin's PREFIX:NAME."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs

from .. import plugins
from ..errors import PluginError, UVRError, did_you_mean
from .options import Settings


def load_model(name: str, settings: Settings) -> Any:
    """The diffusers pipeline that MODEL names, on its device, quiet.

    Raises:
        UVRError: no such device, no such model, or no checkpoint that diffusers can load.
    """
    import torch

    source = find_source(name)
    device = find_device(settings.device)
    automatic = "float32" if device.type == "cpu" else "bfloat16"
    dtype = getattr(torch, automatic if settings.dtype == "auto" else settings.dtype)
    be_quiet()
    with readable(name):
        if callable(source):
            pipe = source(name.partition(":")[2])
        else:
            import diffusers

            if isinstance(source, Path):
                _import_parts(source)
            # Before 0.40 the argument had its older name, and "dtype" was passed over.
            release = tuple(int(part) for part in diffusers.__version__.split(".")[:2])
            named = {"dtype" if release >= (0, 40) else "torch_dtype": dtype}
            local = isinstance(source, Path)
            pipe = diffusers.DiffusionPipeline.from_pretrained(str(source), local_files_only=local, **named)
    if not hasattr(pipe, "to") or not callable(pipe):
        raise UVRError(f"{name}: expected a diffusers pipeline, got {type(pipe).__name__}")
    if hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
    return pipe.to(device, dtype)


def find_source(name: str) -> Callable[[str], Any] | Path | str:
    """Where a MODEL comes from: a plugin's function, a folder, or the name of a model of the Hub."""
    path = Path(name)
    prefix, colon, _ = name.partition(":")
    if path.is_dir():
        if not any((path / index).is_file() for index in ("model_index.json", "config.json")):
            raise UVRError(f"{name}: no diffusers checkpoint: neither model_index.json nor config.json in this folder")
        return path
    if path.exists():
        raise UVRError(f"{name}: expected a folder in diffusers format, this is a file")
    if colon and "/" not in prefix:
        sources = plugins.registry().names("model")
        if prefix not in sources:
            raise UVRError(f"{name}: no plugin brings models as {prefix!r}{did_you_mean(prefix, sources)}")
        be_quiet()
        function = plugins.registry().get("model", prefix)
        if not callable(function):
            raise PluginError(f"model source {prefix!r}: expected a function, got {type(function).__name__}")
        return function  # type: ignore[no-any-return]
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name):
        return name
    raise UVRError(
        f"{name}: no such folder; MODEL is a folder in diffusers format, owner/name on the Hub, or PREFIX:NAME"
    )


def load_skeleton(name: str) -> Any:
    """The transformer that MODEL names, without its weights (on the meta device), or a plugin's whole pipeline.

    Raises:
        UVRError: as `load_model`; or the checkpoint names a transformer class that diffusers lacks.
    """
    source = find_source(name)
    be_quiet()
    with readable(name):
        if callable(source):
            return source(name.partition(":")[2])
        import diffusers
        import torch

        if isinstance(source, Path) and not (source / "model_index.json").is_file():
            config = json.loads((source / "config.json").read_text("utf-8"))
        else:
            index = diffusers.DiffusionPipeline.load_config(str(source), local_files_only=isinstance(source, Path))
            if not index.get("transformer"):
                raise UVRError(f"{name}: {index.get('_class_name')} has no transformer, which is what UVR regulates")
            config = diffusers.FluxTransformer2DModel.load_config(  # any class reads any config
                str(source), subfolder="transformer", local_files_only=isinstance(source, Path)
            )
        kind = config.get("_class_name")
        cls = getattr(diffusers, str(kind), None)
        if not isinstance(cls, type) or not issubclass(cls, torch.nn.Module):
            raise UVRError(f"{name}: diffusers {diffusers.__version__} has no model class {kind!r}")
        with torch.device("meta"):
            return cls.from_config(config)  # type: ignore[attr-defined]


def _import_parts(folder: Path) -> None:
    """Import the modules of plugins' own packages that model_index.json names; diffusers wants them imported before.

    Only packages that came in through the plugin door: a checkpoint must not choose what code runs.
    """
    packages = {getattr(plugin, "__name__", "").split(".")[0] for plugin in plugins.registry().manager.get_plugins()}
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    for part in index.values():
        if isinstance(part, list) and isinstance(part[0], str) and part[0].split(".")[0] in packages - {""}:
            importlib.import_module(part[0])


def find_device(name: str) -> Any:
    """The torch.device of that name; "auto": cuda if there is one, else the CPU.

    Raises:
        UVRError: no such device here.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UVRError(
            f"--device {name}: not available here: {str(error).splitlines()[0]}; try --device cpu"
        ) from error
    return device


def be_quiet() -> None:
    """Neither progress bars nor notices of diffusers and transformers: stderr is for what the user must know."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Whatever a loader makes of a user's files is about those files, not a bug here."""
    try:
        yield
    except UVRError:
        raise
    except Exception as error:
        raise UVRError(f"{name}: cannot be loaded: {type(error).__name__}: {error}") from error


@contextmanager
def running(pipe: Any) -> Iterator[None]:
    """What a pipeline refuses is bad input; running out of memory has a remedy."""
    import torch

    try:
        yield
    except ValueError as error:
        raise UVRError(f"{type(pipe).__name__} refused the call: {error}") from error
    except torch.OutOfMemoryError as error:
        raise UVRError("out of memory; try a smaller --batch or --size") from error


def facts(pipe: Any, settings: Settings) -> dict[str, Any]:
    """The settings of a run as its results record them, with the device and the dtype that it had."""
    actual = {"device": str(pipe.device), "dtype": str(pipe.dtype).removeprefix("torch.")}
    return {**attrs.asdict(settings), **actual}
