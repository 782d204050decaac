"""Taps: make joint attention visible and editable on stock models, one instance at a time.

Every diffusers attention processor reaches one call, `dispatch_attention_fn` (batch, tokens, heads, dim) or
`F.scaled_dot_product_attention` (batch, heads, tokens, dim), by a name in its module's globals. Each
tapped module gets a processor whose `__call__` is the stock code object bound to a copy of those globals in which
that one name is ours. No class is patched and nothing process-wide changes. A pre-hook on the module says which layer
runs and re-seats the processor when something (IP-Adapter, fused projections) replaced it; an `always_call` hook closes
it. Under torch.compile the hooks are left out, and the call ends in one operation (traced.py). See docs/design/taps.md
for the alternatives and why not.
"""

from __future__ import annotations

import threading
import types
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ..errors import UnsupportedRuntime
from .calls import AttentionCall
from .hooks import InnerHook
from .runtime import refuse_attention
from .traced import tap

_DISPATCH = "dispatch_attention_fn"
_SDPA = "scaled_dot_product_attention"

Observer = Callable[[AttentionCall], torch.Tensor | None]


class _Functional:
    """torch.nn.functional with one function replaced, for the globals of one rebound processor."""

    def __init__(self, sdpa: Callable[..., torch.Tensor]):
        self.scaled_dot_product_attention = sdpa

    def __getattr__(self, name: str) -> Any:
        return getattr(F, name)


def rebind(function: types.FunctionType, replacements: Mapping[str, object]) -> types.FunctionType | None:
    """The same code with some global names meaning something else, helpers of its module included.

    Returns None if neither the code nor any helper it names reaches a replaced name.
    """
    new_globals = {name: value for name, value in function.__globals__.items() if name != "__name__"}
    # Without a name: by it, Dynamo would look the globals up in the module that it names.
    if not _redirect(function, new_globals, replacements, {function}):
        return None
    return _copy(function, new_globals)


def _copy(function: types.FunctionType, new_globals: dict[str, Any]) -> types.FunctionType:
    copy = types.FunctionType(
        function.__code__, new_globals, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    copy.__dict__.update(function.__dict__)
    copy.__module__, copy.__qualname__, copy.__doc__ = function.__module__, function.__qualname__, function.__doc__
    return copy


def _redirect(
    function: types.FunctionType,
    new_globals: dict[str, Any],
    replacements: Mapping[str, object],
    seen: set[types.FunctionType],
) -> bool:
    reached = False
    for name in function.__code__.co_names:
        current = function.__globals__.get(name)
        if name in replacements and current is not None:
            new_globals[name] = replacements[name]
            reached = True
        elif current is F and _SDPA in function.__code__.co_names:
            new_globals[name] = replacements["F"]
            reached = True
        elif (
            isinstance(current, types.FunctionType)
            and current.__globals__ is function.__globals__
            and current not in seen
            and _redirect(current, new_globals, replacements, seen | {current})
        ):
            new_globals[name] = _copy(current, new_globals)
            reached = True
    return reached


class _Inside(threading.local):
    """This thread's tapped module, who is shown its call, and what it gave before others' hooks saw it."""

    path: str | None = None
    observer: Observer | None = None
    output: object = None


_inside = _Inside()
_KINDS: dict[type, type] = {}  # of a processor: its subclass
# Of our hooks before, first after and last after, on every module: Dynamo compiles a block anew for other numbers.
_NUMBERS = tuple(RemovableHandle(OrderedDict()).id for _ in range(3))


class Taps:
    """Taps on a set of modules, once they are seated.

    Args:
        modules: {path: attention module}.
        observer: called with every AttentionCall that is not compiled; returns None to leave the output as it is, or a
            new output (B, heads, tokens, head_dim). It must return None, quickly, when no run is active.
        entered, left: called with the path before and after each tapped module's forward; `left` also gets
            the exception flag and is called even when the forward raised.
    """

    def __init__(
        self,
        modules: Mapping[str, nn.Module],
        observer: Observer,
        *,
        entered: Callable[[str], None] = lambda path: None,
        left: Callable[[str], None] = lambda path: None,
    ):
        self.modules, self.observer, self._entered, self._left = dict(modules), observer, entered, left
        self._originals: dict[str, object] = {}
        self._handles: list[Any] = []

    def seat(self) -> Taps:
        """Put the taps on; returns them.

        Raises:
            UnsupportedRuntime: a processor that cannot be seen through, or a module that is tapped already. Nothing was
                changed.
        """
        try:
            self.reseat()
            for path, module in self.modules.items():
                self._register(path, module)
        except BaseException:
            self.remove()
            raise
        return self

    def _register(self, path: str, module: nn.Module) -> None:
        """Put our hooks on a module, under our numbers."""
        before, first, last = _NUMBERS
        for number, place, hook, always in (
            (first, module._forward_hooks, InnerHook(self._first), False),
            (last, module._forward_hooks, InnerHook(self._post(path)), True),
            (before, module._forward_pre_hooks, InnerHook(self._pre(path), _traced), False),
        ):
            hooks: Any = place
            handle = RemovableHandle(hooks, extra_dict=module._forward_hooks_always_called)
            handle.id = number
            self._handles.append(handle)
            hooks[number] = hook
            if always:
                module._forward_hooks_always_called[number] = True

    def reseat(self) -> None:
        """Put ours in the place of every processor that is not."""
        for path, module in self.modules.items():
            self._seat(path, module)

    def remove(self) -> None:
        """Give every module its processor back. Idempotent. A processor put there by others meanwhile stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for path, original in self._originals.items():
            module = self.modules[path]
            if getattr(module.processor, "_uvr_taps", None) is self:
                module.processor = original  # type: ignore[assignment]
        self._originals.clear()

    def _pre(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object) -> None:
            if getattr(module.processor, "_uvr_taps", None) is not self:
                self._seat(path, module)
            if len(module._forward_hooks) > 2:  # others' hooks: ours go around them
                hooks: Any = module._forward_hooks
                _, first, last = _NUMBERS
                hooks.move_to_end(first, last=False)
                hooks.move_to_end(last)
            self._entered(path)
            _inside.path, _inside.observer = path, self.observer

        return hook

    def _first(self, module: nn.Module, args: object, output: object) -> None:
        """Before others' hooks: what the module itself gives."""
        _inside.output = output

    def _post(self, path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: object) -> None:
            self._left(path)
            returned = _inside.output
            _inside.path = _inside.observer = _inside.output = None
            if output is not None and output is not returned:
                raise UnsupportedRuntime(
                    f"{path}: a forward hook puts something of its own in the place of what the attention gives, "
                    "regulated or not: take it off, or detach UVR"
                )

        return hook

    def _seat(self, path: str, module: nn.Module) -> None:
        processor = getattr(module, "processor", None)
        if processor is None:
            raise UnsupportedRuntime(
                f"{path} ({type(module).__name__}) has no attention processor: UVR cannot see its attention"
            )
        if getattr(processor, "_uvr_taps", None) is self:
            return
        if getattr(processor, "_uvr_taps", None) is not None:
            raise UnsupportedRuntime(f"{path} is already regulated by another attach(); detach that one first")
        kind = type(processor)
        stock = kind.__mro__[1]
        if _KINDS.get(stock) is kind:  # made anew from the class of ours, as load_ip_adapter does
            plain: Any = object.__new__(stock)
            object.__setattr__(plain, "__dict__", processor.__dict__)
            processor, kind = plain, stock
        tapped = _tapped(kind)
        if tapped is None:
            raise UnsupportedRuntime(
                f"{path}: processor {kind.__module__}.{kind.__qualname__} reaches no attention call that UVR can see "
                f"(looked for {_DISPATCH} and F.{_SDPA}); use the stock processor, or one that calls either"
            )
        # The new instance shares the old one's __dict__: settings made on either (an attention backend, say) hold
        # for both, so that they survive a detach.
        seated: Any = object.__new__(tapped)
        object.__setattr__(seated, "__dict__", processor.__dict__)
        object.__setattr__(seated, "_uvr_taps", self)
        self._originals[path] = processor
        module.processor = seated


def _tapped(kind: type) -> type | None:
    """The subclass of a processor's class whose attention is seen; None: it reaches none that UVR knows.

    One for all layers, models and attaches of a process: for another class, Dynamo would compile anew.
    """
    if kind not in _KINDS:
        name = _entry(kind)
        function = getattr(kind, name, None)
        replacements = {_DISPATCH: _dispatch(function), "F": _Functional(_sdpa())}
        rebound = rebind(function, replacements) if isinstance(function, types.FunctionType) else None
        if rebound is None:
            return None
        body = {
            name: rebound,
            "__slots__": ("_uvr_taps",),
            "__module__": kind.__module__,
            "__qualname__": kind.__qualname__,
        }
        _KINDS[kind] = type(kind.__name__, (kind,), body)
    return _KINDS[kind]


def _observe(*call: Any) -> torch.Tensor | None:
    """Show a call of the layer that runs; of none, if a hook of ours is gone: the ledger will miss it."""
    if _inside.path is None or _inside.observer is None:
        return None
    return _inside.observer(AttentionCall(_inside.path, *call))


def _sdpa() -> Callable[..., torch.Tensor]:
    def scaled_dot_product_attention(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        compiling = torch.compiler.is_compiling()
        refuse_attention(None if compiling else _inside.path, dropout_p, is_causal)
        output = F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **kwargs
        )
        if compiling:
            tap(query, key, value, output, attn_mask, scale)
            return output
        edited = _observe(query, key, value, output, attn_mask, scale)
        return output if edited is None else edited

    return scaled_dot_product_attention


def _dispatch(function: object) -> Callable[..., torch.Tensor]:
    stock: Any = getattr(function, "__globals__", {}).get(_DISPATCH)
    registry: Any = getattr(stock, "__globals__", {}).get("_AttentionBackendRegistry")

    def dispatch_attention_fn(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        backend = kwargs.get("backend") or getattr(registry, "_active_backend", None)
        compiling = torch.compiler.is_compiling()
        path = None if compiling else _inside.path
        refuse_attention(path, dropout_p, is_causal, kwargs.get("parallel_config"), backend)
        output: torch.Tensor = stock(query, key, value, attn_mask, dropout_p, is_causal, scale, *args, **kwargs)
        if attn_mask is not None and attn_mask.shape == (query.shape[0], key.shape[1]):
            attn_mask = attn_mask[:, None, None, :]  # (batch, keys), as the backends read it
        q, k, v, out = (tensor.transpose(1, 2) for tensor in (query, key, value, output))  # (B, heads, tokens, dim)
        if compiling:
            tap(q, k, v, out, attn_mask, scale)
            return output
        edited = _observe(q, k, v, out, attn_mask, scale)
        return output if edited is None else edited.transpose(1, 2)

    return dispatch_attention_fn


def _traced(module: nn.Module, args: object) -> None:
    """Before a tapped module that torch.compile traces: nobody could tell there what a hook of others makes of it."""
    if len(module._forward_hooks) > 2:
        _refuse_hook()


@torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
def _refuse_hook() -> None:
    raise UnsupportedRuntime(
        "a forward hook of others is on a tapped attention module under torch.compile, where UVR cannot tell what it "
        "makes of the output: take it off, run eagerly, or detach UVR"
    )


def _entry(kind: type) -> str:
    """The method in which a call of a processor ends: `forward` of a module that leaves __call__ to nn.Module."""
    return "forward" if issubclass(kind, nn.Module) and kind.__call__ is nn.Module.__call__ else "__call__"
