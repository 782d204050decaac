"""What else may be switched on beside us: transparent, or refused by name with the remedy."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import UnsupportedRuntime

# diffusers 0.42's attention backends: all softmax attention over every key, in one layout.
_BACKENDS = frozenset({
    "native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "_native_npu", "_native_xla",
    "flex", "xformers", "flash", "flash_hub", "flash_varlen", "flash_varlen_hub", "flash_4_hub", "_flash_3",
    "_flash_varlen_3", "_flash_3_hub", "_flash_3_varlen_hub", "aiter_fa2_hub", "sage", "sage_hub",
    "sage_blackwell_hub", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90",
    "_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton",
})  # fmt: skip
OUTSIDE = (
    "{}: the attention of a regulated transformer ran outside a call of the transformer; call the transformer and not "
    "its forward or its blocks, train without gradient checkpointing, or detach UVR"
)
# Hooks of diffusers that change neither what is computed nor how often.
_HARMLESS_HOOKS = frozenset({"hooks", "group_offloading", "layerwise_casting"})


def refuse_forward(transformer: nn.Module, along: Iterable[nn.Module]) -> None:
    """Before each forward: what is on now that no count of taps would tell.

    Raises:
        UnsupportedRuntime: torch.jit.trace, layer skipping, or a split over devices.
    """
    if torch.jit.is_tracing():  # type: ignore[no-untyped-call,attr-defined,unused-ignore]
        raise UnsupportedRuntime(
            f"{type(transformer).__name__} is traced by torch.jit: the trace would hold no regulation; detach UVR first"
        )
    _refuse_skipping(along)
    if (parallel := getattr(transformer, "_parallel_config", None)) is not None:
        raise UnsupportedRuntime(
            f"{type(parallel).__name__}: context parallel splits the tokens and tensor parallel the heads that UVR "
            "must see together; run the transformer on one device, or detach UVR"
        )


class Along:
    """The transformer and every module on the way to a tap, as they are now.

    Asked before every forward, so it walks anew only where a module was put in another's place.
    """

    def __init__(self, transformer: nn.Module, taps: Sequence[str]):
        self._transformer, self._taps = transformer, taps
        # What leads from where to which module, and the modules: put in place together, for threads may share it.
        self._walked: tuple[tuple[tuple[nn.Module, str, nn.Module], ...], tuple[nn.Module, ...]] = (), ()

    def __iter__(self) -> Iterator[nn.Module]:
        children, modules = self._walked
        if not modules or any(parent.__dict__["_modules"].get(name) is not module for parent, name, module in children):
            modules = self._walk()
        return iter(modules)

    def _walk(self) -> tuple[nn.Module, ...]:
        seen, children = {"": self._transformer}, []
        for path in self._taps:
            parent = ""
            for name in path.split("."):
                here = f"{parent}.{name}" if parent else name
                if here not in seen:
                    seen[here] = getattr(seen[parent], name)
                    children.append((seen[parent], name, seen[here]))
                parent = here
        self._walked = tuple(children), tuple(seen.values())
        return self._walked[1]


def uncompiled(module: Any) -> Any:
    """The module that `torch.compile(module)` has wrapped, or the module itself."""
    return getattr(module, "_orig_mod", module)


def _refuse_skipping(modules: Iterable[nn.Module]) -> None:
    """Layer skipping may leave an attention call in place and make it return its values: no count would tell."""
    for module in modules:
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and any(type(h).__module__.endswith(".layer_skip") for h in registry.hooks.values()):
            raise UnsupportedRuntime(
                f"{type(module).__name__} has a layer_skip hook of diffusers, which may replace its attention by "
                "something that UVR cannot tell from it: remove it, or detach UVR"
            )


def skipping(transformer: nn.Module, kwargs: Mapping[str, Any]) -> list[str]:
    """Names of what is switched on that skips attention."""
    names = {"skip_layers (skip-layer guidance)"} if kwargs.get("skip_layers") else set()
    if type(getattr(transformer, "_context_manager", None)).__module__.startswith("cache_dit."):
        names.add("cache-dit")  # it puts no hook on, but stands in for the lists of blocks
    for module in transformer.modules():
        hooks: Mapping[str, object] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        names |= {type(hook).__module__.rpartition(".")[2] for hook in hooks.values()} - _HARMLESS_HOOKS
    return sorted(names)


def refuse_attention(
    path: str | None, dropout_p: float, is_causal: bool, parallel: object = None, backend: object = None
) -> None:
    """Raise UnsupportedRuntime for an attention call that is no MM-DiT inference call on a known backend.

    `path` None: of a module that is not known here, as under torch.compile.
    """
    path = path or "attention"
    if parallel is not None:
        raise UnsupportedRuntime(
            f"{path}: context parallel attention splits the token axis; run it on one device, or detach UVR"
        )
    if backend is not None and (name := str(getattr(backend, "value", backend))) not in _BACKENDS:
        raise UnsupportedRuntime(
            f"{path}: UVR does not know the attention backend {name!r}; take one it knows, as with "
            'transformer.set_attention_backend("native"), or detach UVR'
        )
    if dropout_p or is_causal:
        raise UnsupportedRuntime(f"{path}: attention with dropout or a causal mask is not an MM-DiT inference call")


def refuse_split_batch(path: str, rows: int, batch: int | None) -> None:
    """Raise UnsupportedRuntime if an attention call holds other rows than its forward."""
    if batch is not None and rows != batch:
        raise UnsupportedRuntime(
            f"{path}: attention over {rows} samples in a forward of {batch}; a feature that splits "
            "the batch is on (FasterCache, perturbed-attention guidance): disable it, or detach UVR"
        )
