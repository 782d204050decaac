"""Attach, generate and detach over and over, and see what grows: `python tools/hygiene.py [--cycles 1000]`.

Drives a small pipeline of the zoo. Prints one JSON object; the exit status is 1 if anything grew, was left behind, or
if the last stock images are not bitwise the first. Counts start after a warm-up of a tenth of the cycles.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import attrs
import diffusers
import torch
from diffusers.hooks import _helpers
from diffusers.models import attention_dispatch
from torch.nn import functional as F
from torch.nn.modules import module as torch_module

import uvr_core
from uvr_core.regulator import find_adapter, fingerprint

KINDS = ("pipeline", "transformer", "broken off")
# Growth that is allowed over a whole run: an allocator's, and that of caches inside the libraries.
RSS_MIB, OBJECTS = 16.0, 20


@attrs.frozen
class Everywhere:
    """A detector that locates the upper half of the last image, at every step."""

    name: str = "everywhere"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: uvr_core.ConceptBank, probe: str) -> torch.Tensor:
        scores = torch.full(features.shape[:2], -1.0)
        scores[-1, : features.shape[1] // 2] = 1.0
        return scores


def bank_for(transformer: torch.nn.Module) -> uvr_core.ConceptBank:
    """A bank of random anchors."""
    adapter = find_adapter(transformer)
    model = fingerprint(transformer, adapter.taps(transformer))
    probe = adapter.probe_paths(transformer)[0]
    anchors = torch.randn(3, model.heads * model.head_dim, generator=torch.Generator().manual_seed(7))
    return uvr_core.ConceptBank("x", model, {f"anchors/{probe}": anchors, "sigma": torch.tensor([1.0])})


def draw(pipe: Any) -> torch.Tensor:
    """Latents of two images in two steps."""
    noise = [torch.Generator().manual_seed(i) for i in range(2)]
    options = {"height": 64, "width": 64, "num_inference_steps": 2, "output_type": "latent"}
    return pipe(prompt=["a cat", "a knife"], generator=noise, **options).images


def cycle(pipe: Any, bank: uvr_core.ConceptBank, number: int) -> None:
    """Attach to the pipeline, to its transformer, or to the pipeline for a call that breaks off, by turns."""
    kind = KINDS[number % len(KINDS)]
    target = pipe.transformer if kind == "transformer" else pipe
    reg = uvr_core.attach(target, concepts=bank, detector=Everywhere(), policy="block")
    try:
        if kind == "broken off":
            handle = reg._seam.taps[reg.taps[1]].register_forward_hook(_explode)  # type: ignore[union-attr]
            try:
                draw(pipe)
            except ZeroDivisionError:
                pass
            finally:
                handle.remove()
        else:
            draw(pipe)
            assert reg.report is not None
            assert reg.report.findings[1].steps_regulated == 2
    finally:
        reg.detach()


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
    processors = {type(m.processor) for m in pipe.transformer.modules() if hasattr(m, "processor")}
    return {
        "rss_mib": round(rss_mib(), 2),
        "objects": len(gc.get_objects()),
        "threads": threading.active_count(),
        "hooks": hooks(pipe.transformer.modules()),
        "hooks_of_every_module": len(torch_module._global_forward_hooks) + len(torch_module._global_forward_pre_hooks),
        "subclasses_of_the_pipeline": len(type(pipe).__subclasses__()),
        "subclasses_of_processors": sum(len(kind.__subclasses__()) for kind in processors),
        "attributes_of_modules": sum(len(m.__dict__) for m in pipe.transformer.modules()),
    }


def process_wide(pipe: Any) -> dict[str, Any]:
    """What a process shares, as identities: functions of torch and diffusers, registries, classes' own attributes."""
    registry = attention_dispatch._AttentionBackendRegistry
    owners = {
        "torch.nn.functional": F,
        "torch": torch,
        "diffusers.models.attention_dispatch": attention_dispatch,
        "attention backends": registry,
        "attention classes": _helpers.AttentionProcessorRegistry,
        "block classes": _helpers.TransformerBlockRegistry,
        "the module of the transformer": sys.modules[type(pipe.transformer).__module__],
        "the class of the transformer": type(pipe.transformer),
        "the class of the pipeline": type(pipe),
        "the base of pipelines": diffusers.DiffusionPipeline,
    }
    found: dict[str, Any] = {}
    for owner, thing in owners.items():
        for name, value in vars(thing).items():
            if name not in ("__doc__", "__abstractmethods__", "_abc_impl"):
                found[f"{owner}: {name}"] = id(value), len(value) if isinstance(value, (dict, set, list)) else None
    return found


def run(pipe: Any, cycles: int, progress: Any = None, counted: int = 10) -> dict[str, Any]:
    """Warm up for a tenth of the cycles, run them all, and compare.

    Args:
        pipe: a pipeline in which nothing is attached.
        cycles: how many times to attach, generate and detach.
        progress: called with (cycles done, counts) whenever it counts.
        counted: how many times to count, evenly over the run; each takes a garbage collection.

    Returns:
        JSON-ready: `cycles`, `seconds`, `first` and `last` (see `counts`), `grew` (names of counts), `left` (names of
        process-wide things that changed), `bitwise_stock`, `samples` (counts along the way).
    """
    bank, stock = bank_for(pipe.transformer), draw(pipe)
    for number in range(max(cycles // 10, 2 * len(KINDS))):
        cycle(pipe, bank, number)
    shared, first, began = process_wide(pipe), counts(pipe), time.perf_counter()
    samples = []
    for number in range(cycles):
        cycle(pipe, bank, number)
        if (number + 1) % max(cycles // counted, 1) == 0:
            samples.append({"cycles": number + 1, **counts(pipe)})
            if progress is not None:
                progress(number + 1, samples[-1])
    seconds, last = time.perf_counter() - began, samples[-1]
    now = process_wide(pipe)
    allowed = {"rss_mib": RSS_MIB, "objects": OBJECTS, "cycles": cycles}
    return {
        "cycles": cycles,
        "seconds": round(seconds, 1),
        "first": first,
        "last": {name: value for name, value in last.items() if name != "cycles"},
        "grew": [name for name, value in first.items() if last[name] > value + allowed.get(name, 0)],
        "left": sorted(name for name in shared.keys() | now.keys() if shared.get(name) != now.get(name)),
        "bitwise_stock": torch.equal(draw(pipe), stock),
        "samples": samples,
    }


def clean(found: dict[str, Any]) -> bool:
    """Whether nothing grew and nothing was left."""
    return not found["grew"] and not found["left"] and found["bitwise_stock"]


def main() -> int:
    import uvr_zoo

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--cycles", type=int, default=1000)
    parser.add_argument("--pipeline", default="flux", help="zoo pipeline: flux, sd3, qwen-image")
    options = parser.parse_args()
    pipe = uvr_zoo.load(options.pipeline)
    found = run(pipe, options.cycles, lambda done, seen: print(done, json.dumps(seen), file=sys.stderr))
    print(json.dumps({"pipeline": options.pipeline, **found}, indent=2))
    return 0 if clean(found) else 1


if __name__ == "__main__":
    sys.exit(main())
