"""Attach, generate and detach over and over, and see what grows or is left in the process."""

from __future__ import annotations

import gc
import sys
import threading
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers.hooks import _helpers
from diffusers.models import attention_dispatch
from rig import Rig
from torch.nn.modules import module as torch_module

KINDS = ("pipeline", "transformer", "broken off")
# Growth that is allowed over a whole run: an allocator's, and that of caches inside the libraries.
ALLOWED = {"rss_mib": 16.0, "objects": 20}


def cycle(rig: Rig, number: int) -> None:
    """Attach to the pipeline, to its transformer, or to the pipeline for a call that breaks off, by turns."""
    kind = KINDS[number % len(KINDS)]
    with rig.attach(rig.transformer if kind == "transformer" else None) as reg:
        if kind != "broken off":
            rig.run(num_inference_steps=2)
            assert reg.report.findings[1].steps_regulated == 2
            return
        handle = rig.transformer.get_submodule(reg.taps[1]).register_forward_hook(_explode)
        try:
            rig.run(num_inference_steps=2)
        except ZeroDivisionError:
            pass
        finally:
            handle.remove()


def _explode(*args: object) -> None:
    raise ZeroDivisionError


def hooks(modules: Any) -> int:
    """Torch's hooks on these modules, and diffusers' in their registries."""
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    return sum(
        sum(len(getattr(m, table)) for table in tables) + len(getattr(m.__dict__.get("_diffusers_hook"), "hooks", ()))
        for m in modules
    )


def rss_mib() -> float:
    """Resident memory of this process in MiB; NaN where there is no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * 4096 / 2**20


def counts(pipe: Any) -> dict[str, float]:
    """What must not grow, after a garbage collection."""
    gc.collect()
    modules = list(pipe.transformer.modules())
    processors = {type(m.processor) for m in modules if hasattr(m, "processor")}
    return {
        "rss_mib": rss_mib(),
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "hooks": hooks(modules),
        "hooks_of_every_module": len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks),
        "subclasses_of_the_pipeline": len(type(pipe).__subclasses__()),
        "subclasses_of_processors": sum(len(kind.__subclasses__()) for kind in processors),
        "attributes_of_modules": sum(len(m.__dict__) for m in modules),
    }


def process_wide(pipe: Any) -> dict[str, Any]:
    """What a process shares, as identities: functions of torch and diffusers, registries, classes' own attributes."""
    owners = {
        "torch.nn.functional": torch.nn.functional,
        "torch": torch,
        "diffusers.models.attention_dispatch": attention_dispatch,
        "attention backends": attention_dispatch._AttentionBackendRegistry,
        "attention classes": _helpers.AttentionProcessorRegistry,
        "block classes": _helpers.TransformerBlockRegistry,
        "the module of the transformer": sys.modules[type(pipe.transformer).__module__],
        "the class of the transformer": type(pipe.transformer),
        "the class of the pipeline": type(pipe),
        "the base of pipelines": diffusers.DiffusionPipeline,
    }
    return {
        f"{owner}: {name}": (id(value), len(value) if isinstance(value, (dict, set, list)) else None)
        for owner, thing in owners.items()
        for name, value in vars(thing).items()
        if name not in ("__doc__", "__abstractmethods__", "_abc_impl")
    }


def grown(rig: Rig, cycles: int) -> tuple[dict[str, tuple[float, float]], list[str]]:
    """Warm up for a tenth of the cycles, run them all, and compare.

    Returns:
        (name: (before, after) of the counts that grew, names of what changed in the process)
    """
    for number in range(max(cycles // 10, 2 * len(KINDS))):
        cycle(rig, number)
    shared, first = process_wide(rig.pipe), counts(rig.pipe)
    for number in range(cycles):
        cycle(rig, number)
    last, now = counts(rig.pipe), process_wide(rig.pipe)
    grew = {name: (n, last[name]) for name, n in first.items() if last[name] > n + ALLOWED.get(name, 0)}
    return grew, sorted(name for name in shared.keys() | now.keys() if shared.get(name) != now.get(name))
