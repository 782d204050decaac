"""The compatibility matrix: what else may be switched on, and what becomes of a regulated image then. Plain data.

tests/compatibility/ runs every row; `uvr doctor --matrix` prints them; docs/compatibility.md is written by

    python -m uvr_core.doctor.compatibility > docs/compatibility.md
"""

from __future__ import annotations

import itertools
from typing import Literal

import attrs

Outcome = Literal["regulated exactly", "refused by name", "stock cannot"]
OUTCOMES: dict[Outcome, str] = {
    "regulated exactly": "the image is that of a reference run of the same weights, and every edited attention output "
    "agrees with the equation",
    "refused by name": "no image comes back; a `UVRError` names the feature and what to do",
    "stock cannot": "the stock library fails, and fails in the same way with UVR attached",
}


@attrs.frozen
class Situation:
    """One row.

    Attributes:
        name: what is switched on or done.
        pipelines: zoo pipelines on which it is tested.
        outcome: see OUTCOMES.
        note: refused: what to do instead; else what to know.
        says: part of the message of the error, stock's own included.
        orders: whether it is tested before and after attach(); empty where there is one order alone.
        needs: distribution that it is tested with, which may be missing.
    """

    name: str
    pipelines: tuple[str, ...]
    outcome: Outcome
    note: str = ""
    says: str = ""
    orders: tuple[str, ...] = ()
    needs: str = ""

    @property
    def cases(self) -> tuple[str, ...]:
        """The name, or one per order."""
        return tuple(f"{self.name}, {order} attach" for order in self.orders) or (self.name,)


_SD3, _EDITING = ("sd3",), ("flux-kontext", "qwen-image-edit")
_DRAWING = ("flux", "sd3", "qwen-image")
_ALL = (*_DRAWING, *_EDITING)
_DISPATCHED = ("flux", "qwen-image", *_EDITING)  # through diffusers' dispatch_attention_fn
_NAMED = ("flux", "qwen-image", "qwen-image-edit")  # the pipeline names its guidance passes
_COMPILABLE = ("flux", "sd3", "qwen-image-edit")  # one of each class
_MASKED = ("qwen-image", "qwen-image-edit")  # a padding mask in attention
_BOTH = ("before", "after")
_CACHE = "disable the cache: `transformer.disable_cache()`"
_ROUNDED = "the numbers are those of the rounded weights"
_COPY = "detach, copy, attach to the copy; `state_dict()` and `save_pretrained()` work while attached"


def _exact(name: str, on: tuple[str, ...], note: str = "", orders: tuple[str, ...] = (), needs: str = "") -> Situation:
    return Situation(name, on, "regulated exactly", note, orders=orders, needs=needs)


def _refused(
    name: str, on: tuple[str, ...], says: str, note: str, orders: tuple[str, ...] = (), needs: str = ""
) -> Situation:
    return Situation(name, on, "refused by name", note, says, orders, needs)


def _stock(name: str, on: tuple[str, ...], says: str, note: str, orders: tuple[str, ...] = ()) -> Situation:
    return Situation(name, on, "stock cannot", note, says, orders)


MATRIX: dict[str, tuple[Situation, ...]] = {
    # topic: its rows; tests/compatibility/test_TOPIC.py runs them
    "weights": (
        _exact("fused QKV", _DISPATCHED, orders=_BOTH),
        _stock(
            "fused QKV, dual attention", _SD3, "'NoneType' object has no attribute 'ndim'",
            "SD 3.5: the fused processor needs text, the second attention has none", _BOTH,
        ),
        _exact("LoRA", _ALL, orders=_BOTH, needs="peft"),
        _exact(
            "IP-Adapter", ("flux", "sd3"), "the joint attention is regulated; the image prompt's own attention is not",
            _BOTH,
        ),
        _exact("ControlNet", _DRAWING, "the transformer is regulated; the ControlNet's own attention is not"),
    ),
    "memory": (
        _exact("leaf offload (accelerate)", _ALL, orders=_BOTH),
        _exact("model offload (accelerate)", _ALL, orders=_BOTH),
        _exact("group offload, blocks", _ALL, orders=_BOTH),
        _exact("group offload, leaves", _ALL, orders=_BOTH),
        _exact("layerwise casting (fp8 storage)", _ALL, _ROUNDED, _BOTH),
        # precision and autograd modes
        _exact("bfloat16 weights", _ALL),
        _exact("torch.autocast, bfloat16", _ALL),
        _exact("torch.inference_mode", _ALL),
    ),
    "quantised": (  # benign images bitwise those of the stock quantised model
        _exact("int8 weights (torchao)", _ALL, _ROUNDED, _BOTH, "torchao"),
        _exact(
            "nf4 weights (bitsandbytes)", _ALL,
            f"{_ROUNDED}; bitsandbytes' own modules on a CPU: through diffusers they load on a GPU alone", _BOTH,
            "bitsandbytes",
        ),
        _exact("int8 weights (bitsandbytes)", _ALL, "as nf4; activations are rounded too", _BOTH, "bitsandbytes"),
        _exact("GGUF weights, Q8_0", ("flux",), f"{_ROUNDED}; loaded by `from_single_file`", needs="gguf"),
        _exact("GGUF weights, Q4_0", ("flux",), f"{_ROUNDED}; loaded by `from_single_file`", needs="gguf"),
        _exact("int8 weights (optimum-quanto)", _ALL, _ROUNDED, _BOTH, "optimum-quanto"),
        _exact("fp8 weights (optimum-quanto)", _ALL, _ROUNDED, _BOTH, "optimum-quanto"),
    ),
    "backends": (  # attention backends
        _exact("attention backend native", _ALL, orders=_BOTH),
        _exact("attention backend _native_math", _ALL, orders=_BOTH),
        _exact("attention backend _native_flash", ("flux", "sd3", "flux-kontext"), orders=_BOTH),
        _exact("attention backend flex", _ALL, orders=_BOTH),
        _stock(
            "attention backend _native_flash, masked attention", _MASKED, "`attn_mask` is not supported",
            "take another", _BOTH,
        ),
        _stock("attention backend that is not installed", _ALL, "is not usable because of missing package", "", _BOTH),
        _refused(
            "attention backend that UVR does not know", _DISPATCHED,
            "does not know the attention backend 'sparse-2027'", '`transformer.set_attention_backend("native")`', _BOTH,
        ),
    ),
    "compile": (  # torch.compile
        _exact("torch.compile of the transformer", _COMPILABLE, "fullgraph=True, as many graphs as stock", _BOTH),
        _exact("torch.compile of its blocks", _COMPILABLE, "fullgraph=True, as many graphs as stock", _BOTH),
        _exact("torch.compile of a function around the transformer", ("flux",), "not with fullgraph=True"),
        _exact("torch.compile of a function around the pipeline", ("flux",), "the pipeline itself runs eagerly"),
        # training
        _exact("gradient checkpointing, inference", _ALL, orders=_BOTH),
        _refused(
            "gradient checkpointing, training", _ALL, "gradient checkpointing",
            "train without checkpointing, or detach: attention that is computed again would not be regulated",
        ),
    ),
    "caches": (  # caches, and guidance that skips or adds attention
        _exact(
            "FirstBlockCache", _NAMED,
            "reuses what was computed under today's masks; while a concept is looked for, nothing", _BOTH,
        ),
        _refused("PyramidAttentionBroadcast", _ALL, "pyramid_attention_broadcast", _CACHE, _BOTH),
        _refused("FasterCache, attention", _ALL, "faster_cache", _CACHE, _BOTH),
        _refused("FasterCache, unconditional half", _SD3, "FasterCache", _CACHE, _BOTH),
        _exact("MagCache", _ALL, "as FirstBlockCache; of pipelines that open no cache context too", _BOTH),
        _refused("TaylorSeer", _NAMED, "taylorseer_cache", _CACHE, _BOTH),
        _stock(
            "FirstBlockCache or TaylorSeer without a cache context", ("sd3", "flux-kontext"), "context is set",
            "these pipelines open none", _BOTH,
        ),
        _refused("SeaCache", _NAMED, "sea_cache", _CACHE, _BOTH),
        _refused(
            "DBCache of cache-dit", _DISPATCHED, "On the model: cache-dit",
            "disable it: `cache_dit.disable_cache(pipe)`", _BOTH, "cache-dit",
        ),
        _exact(
            "SeaCache, which the pipeline tells no step", _ALL,
            "as diffusers' image pipelines: nothing is skipped", _BOTH,
        ),
        _exact("TextKVCache", _ALL, "does nothing on these models", _BOTH),
        _refused("layer skipping", _ALL, "layer_skip", "remove the hook: `apply_layer_skip` skips blocks", _BOTH),
        _refused(
            "layer skipping, attention scores", _MASKED, "layer_skip",
            "remove the hook; diffusers cannot put it on a regulated model, nor on other classes", ("before",),
        ),
        _refused("skip-layer guidance", _SD3, "skip-layer guidance", "leave `skip_guidance_layers` out"),
        _refused(
            "perturbed-attention guidance", _SD3, "perturbed-attention guidance",
            "use StableDiffusion3Pipeline",
        ),
    ),
    "threads": (
        _exact("two threads, two models", _ALL),
        _exact(
            "two threads, a pipeline each, one transformer", _ALL,
            "attach to the transformer and draw inside `with reg.generation(pipe.scheduler):`; give each pipeline its "
            "own scheduler and tokenizers, which are not thread-safe",
        ),
        _refused(
            "two threads, one pipeline", _ALL, "called while another call of it runs",
            "a pipeline per thread, as above",
        ),
        _exact("asyncio server with a thread pool", _ALL, "a pipeline per request, as above"),
        _exact("asyncio server, a model per request", _ALL),
        _refused(
            "asyncio server, one pipeline for all requests", _ALL, "called while another call of it runs",
            "a pipeline per request, as above",
        ),
        _refused("attach twice", _ALL, "already regulated by another attach()", "one attach() with all concepts"),
        # interruptions
        _exact("an exception inside attention", _ALL, "the next call is clean"),
        _exact("KeyboardInterrupt inside attention", _ALL, "the next call is clean"),
        _refused(
            "detach in the middle of a run", _ALL, "steps but 1 carried a verified forward", "detach between runs",
        ),
    ),
    "processors": (  # parallelism
        _refused("context parallel", _DISPATCHED, "context parallel", "one device per image", _BOTH),
        _stock("context parallel without a plan", _SD3, "`cp_plan` must be provided", "", _BOTH),
        # processors
        _exact("a processor replaced after attach", _ALL, "it stays after detach()"),
        _refused(
            "a processor that UVR cannot see through", _ALL, "reaches no attention call that UVR can see",
            "a processor that calls `dispatch_attention_fn` or `F.scaled_dot_product_attention`", _BOTH,
        ),
    ),
    "copies": (  # copies and files
        _exact("save_pretrained while attached", _ALL, "writes the stock files"),
        _refused("deepcopy while attached", _ALL, "cannot be copied or pickled", _COPY),
        _refused("pickle while attached", _ALL, "cannot be copied or pickled", _COPY),
        # ways around
        _refused(
            "the transformer's forward called past its hooks", _ALL, "ran outside a call of the transformer",
            "call the transformer",
        ),
        _refused(
            "the pipeline attached, its transformer called from elsewhere", _ALL, "called outside its pipeline",
            "attach to the transformer and run it inside `with reg.generation():`",
        ),
        _refused(
            "the transformer replaced after attach", _ALL, "was replaced after attach", "detach and attach again",
        ),
    ),
}  # fmt: skip

SITUATIONS = tuple(itertools.chain(*MATRIX.values()))


def markdown() -> str:
    """docs/compatibility.md."""
    lines = [
        "# Compatibility",
        "",
        "What else a deployment may switch on, and what becomes of a regulated image then. `tests/compatibility/`",
        "runs every row on small random pipelines of diffusers' own classes, on a CPU. `uvr doctor --matrix` prints",
        "the table. This page is written by `python -m uvr_core.doctor.compatibility > docs/compatibility.md`.",
        "",
        *(f"- **{outcome}**: {what}." for outcome, what in OUTCOMES.items()),
        "",
        "| situation | order | pipelines | outcome | note |",
        "|---|---|---|---|---|",
    ]
    for s in SITUATIONS:
        order = " and ".join(s.orders) + " attach" if s.orders else ""
        note = "; ".join(part for part in (s.note, f"tested with {s.needs}" if s.needs else "") if part)
        lines.append(f"| {s.name} | {order} | {', '.join(s.pipelines)} | {s.outcome} | {note} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
