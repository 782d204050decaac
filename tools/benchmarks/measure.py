"""What the performance scripts share: paired timing, peak memory, counts of operations, and where it all ran."""

from __future__ import annotations

import platform
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

Variant = tuple[Callable[[], AbstractContextManager[Any]], Callable[[], Any]]  # context entered untimed, work timed
HOST_SYNCS = frozenset({
    "item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__",
    "unique", "masked_select", "tensor", "as_tensor",
})  # fmt: skip
# Operations of the dispatcher whose result the host waits for, wherever in torch they were called.
DEVICE_SYNCS = frozenset({
    "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique_dim", "_unique2",
})  # fmt: skip


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Wall-clock seconds of one call, the device's queue empty before and after."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def interleaved(
    variants: Mapping[str, Variant], repeats: int, device: torch.device, *, warm: str | None = None
) -> dict[str, list[float]]:
    """{variant: seconds of each turn}. Every turn runs all variants; every other turn in the reverse order.

    Args:
        variants: (context, work) each; the context is entered and left outside of the timed part.
        repeats: turns kept.
        warm: the variant that alone runs once beforehand; None: all do; "": none does.
    """
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(repeats + 1):
        names = list(variants) if turn or warm is None else [warm] if warm else []
        for name in reversed(names) if turn % 2 else names:
            context, work = variants[name]
            with context():
                spent = seconds(work, device)
            if turn:
                taken[name].append(spent)
    return taken


def ratio(taken: Mapping[str, list[float]], name: str, base: str = "stock") -> dict[str, Any]:
    """Median and range of paired ratios, the ratio of the two minima, and the seconds themselves (medians)."""
    pairs = [a / b for a, b in zip(taken[name], taken[base], strict=True)]
    return {
        "median": statistics.median(pairs),
        "range": [min(pairs), max(pairs)],
        "of_minima": min(taken[name]) / min(taken[base]),
        "pairs": len(pairs),
        "seconds": statistics.median(taken[name]),
        "base_seconds": statistics.median(taken[base]),
    }


def plain(work: Callable[[], Any]) -> Variant:
    """A variant that needs no context."""
    return nullcontext, work


def peak_bytes(work: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that tensors allocated inside `work` hold at once, kernels' scratch included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class Watch(TorchDispatchMode):
    """Counts the operations that make or change tensors (views are free), and their outputs' bytes.

    Attributes:
        kernels, syncs: {name: count}; views: number of views; bytes: sum over outputs; largest: most numbers in one output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.views = self.bytes = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if returns and all(r.alias_info is not None and not r.alias_info.is_write for r in returns):
            self.views += 1
            return out
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put_") else ()
        if name in DEVICE_SYNCS or any(i is not None and i.dtype == torch.bool for i in indices):
            self.syncs[name] += 1
        if not any(isinstance(tensor, torch.Tensor) for tensor in (out if isinstance(out, (tuple, list)) else [out])):
            return out
        self.kernels[name] += 1
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.bytes += tensor.nbytes
                self.largest = max(self.largest, tensor.numel())
        return out


class Syncs(TorchFunctionMode):
    """Counts calls that wait for a device when their tensor lies on one, by name.

    Indexing by a mask is one, and so is a tensor made of numbers on the host, which is copied there.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        mask = name == "__getitem__" and isinstance(args[1], torch.Tensor) and args[1].dtype == torch.bool
        if name in HOST_SYNCS or mask:
            self.calls[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[tuple[Watch, Syncs]]:
    with Syncs() as syncs, Watch() as watch:
        yield watch, syncs


def environment(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Versions, device, dtype, threads and git hash."""
    import diffusers

    import uvr_core
    from uvr_core.cli import output

    cuda = device.type == "cuda"
    return {
        "uvr": uvr_core.__version__,
        "git": output.commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {platform.machine()}, {_capability()}",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def _capability() -> str:
    return torch.backends.cpu.get_cpu_capability()
