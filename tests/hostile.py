"""Concept files from strangers: hypothesis damages valid ones, and `fuzz` loads them while all else is watched.

Of every case: the bank loads or a UVRError is raised, with a short message of printable characters; nothing is
unpickled; no file outside the case's folder is opened; no process or connection is started; it ends within TIMEOUT
seconds and HEADROOM bytes of address space. A bank that loads is used (every built-in detector scores with it) and
comes back the same when saved and loaded again. The limits and the audit hook are a whole process's: run it in a child.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import resource
import signal
import struct
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from runner import PROBE, make_bank

from uvr_core import Calibration, ConceptBank, Fingerprint, TextCarriers, UVRError, plugins
from uvr_core.concepts import load_concepts, resolve

HEADROOM = 2**30  # bytes of address space that all cases together may add
TIMEOUT = 30  # seconds a case may take
MESSAGE = 1000  # characters, the path left out
FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect")
# At which check a case was refused.
DAMAGES = ("fields", "metadata", "text", "length", "bytes", "cut", "numbers")
STAGES = "not a whole safetensors|schema|time convention|metadata is damaged|name:|fingerprint|calibration|tensor"
JSON_ENTRIES = ("fingerprint", "calibration", "provenance")


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A valid file's header and the bytes of its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def pack(header: dict[str, Any] | bytes, body: bytes, claimed: int | None = None) -> bytes:
    """The file of a header (JSON, or bytes as they are) that claims to be `claimed` bytes long; None: the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable)
finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def valid_banks(draw: st.DrawFn) -> ConceptBank:
    """Any bank that collect and calibrate could make, of any size, type, name and provenance."""
    heads, head_dim, bins = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    width = heads * head_dim
    shapes = {"anchors": (draw(st.integers(1, 3)), width), "direction": (bins, width * draw(st.integers(1, 2)))}
    shapes |= {"offset": (bins,), "origin": (bins, 2 * width), "origin_offset": (bins,), "token": (bins, width)}
    shapes |= {"text": (1, width), "text_offset": (1,)}
    probes = draw(st.lists(names, min_size=1, max_size=2, unique=True))
    kinds = draw(st.lists(st.sampled_from(sorted(shapes)), unique=True))
    dtype = draw(st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensors = {f"{k}/{p}": torch.randn(shapes[k], generator=generator).to(dtype) for k in kinds for p in probes}
    tensors["sigma"] = torch.linspace(1, 0, bins)
    window = tuple(sorted((draw(finite), draw(finite)), reverse=True))
    choice = (draw(names), probes[0], window, draw(finite), draw(st.none() | finite), draw(st.integers(1, 2**31)))
    measured, provenance = (draw(st.dictionaries(st.text(max_size=5), json_values, max_size=3)) for _ in range(2))
    calibration = draw(st.none() | st.just(Calibration(*choice, draw(st.floats(0, 1)), measured)))
    model = Fingerprint(draw(names), draw(st.integers(1, 2**31)), heads, head_dim)
    text = draw(st.none() | st.builds(TextCarriers, st.just(probes[0]), finite, st.floats(0, 9), st.just(measured)))
    return ConceptBank(draw(names), model, tensors, calibration, provenance, text=text)


# Values that some reader trips over.
powers = [2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 9, 2**64 - 1, 2**64, -(2**63), 10**11, 10**400]
numbers = st.sampled_from([-1, 0, 1, 2, 7, 8, 64, *powers, -0.0, 0.5, 1e-320, 1e39, 1e308, float("inf"), float("nan")])
texts = "|x|../x|/etc/passwd|a\0b|\x1b[2J|a\nb|\u202egnp|ü|概念|😀|\ud800|NaN|1.0|null|F32|__metadata__|uvr.concept/1"
strings = st.sampled_from([*texts.split("|"), "x" * 300, "x" * 100_000, f"anchors/{PROBE}", f"token/{PROBE}"])
junk = numbers | strings | json_values | st.lists(numbers | strings, max_size=3)
deep = st.sampled_from(["[" * n + "]" * n for n in (60, 70, 300, 990, 100_000)] + ["[" * 2**20, '{"a":' * 500])
DTYPES = "F32|F16|BF16|F64|I64|U8|I8|BOOL|F8_E4M3|F8_E5M2|F8_E8M0|F4|C64|U64|f32|F128|object|O"
POINTED = {
    "dtype": st.sampled_from(DTYPES.split("|")),
    "shape": st.lists(numbers, max_size=3) | st.sampled_from([[2**32] * 2, [0, 2**63], [0], [], [1] * 70]),
    "data_offsets": st.lists(numbers | st.integers(0, 200), min_size=2, max_size=2),
    "window": st.lists(numbers, min_size=2, max_size=2),
}


def alter(draw: Callable[..., Any], tree: dict[str, Any]) -> None:
    """Lose, rename, double or replace one entry, anywhere within a JSON object that is not empty."""
    while True:
        key = draw(st.sampled_from(sorted(tree)))
        if not tree[key] or not isinstance(tree[key], dict) or draw(st.integers(0, 3)) == 0:
            break
        tree = tree[key]
    how = draw(st.sampled_from(("replace", "replace", "replace", "lose", "rename", "double")))
    if how == "replace":
        tree[key] = draw(POINTED.get(key, junk) | junk)
    else:
        value = tree[key] if how == "double" else tree.pop(key)
        if how != "lose":
            tree[draw(strings | st.sampled_from(sorted({*tree, key})))] = value


@st.composite
def damaged_files(draw: st.DrawFn, kind: str, data: bytes) -> bytes:
    """A valid file's bytes with one of the DAMAGES."""
    header, body = unpack(data)
    metadata, head = header["__metadata__"], data[8 : len(data) - len(body)]
    if kind == "fields":  # tensors, fingerprint, calibration and provenance that are not as they say
        metadata |= {key: json.loads(metadata[key]) for key in JSON_ENTRIES}
        for _ in range(draw(st.integers(1, 3))):
            alter(draw, header if draw(st.booleans()) or not metadata else metadata)
            if not header:
                break
        metadata |= {key: json.dumps(metadata[key]) for key in metadata.keys() & set(JSON_ENTRIES)}
        return pack(header, body)
    if kind == "metadata":  # text that is no JSON, deep, or says a field twice
        key = draw(st.sampled_from(sorted(metadata)))
        twice = metadata[key][:-1] + ', "threshold": 1e9, "threshold": NaN}'
        metadata[key] = draw(strings | deep | junk.map(json.dumps) | st.sampled_from((twice, "9" * 5000)))
        return pack(header, body)
    at, end = sorted((draw(st.integers(0, len(data))), draw(st.integers(0, len(data)))))
    if kind == "text":  # of the header: no JSON, no UTF-8, or JSON of the wrong form
        tokens = [*rb'"|{|}|[|,|\|-|\ud800|\u0000|NaN|1e999|/**/|true'.split(b"|"), b"\xff\xfe", b"\xed\xa0\x80", b"\0"]
        inserted = head[:at] + draw(st.sampled_from(tokens)) + head[at:]
        whole = [
            head[::-1],
            b"{}",
            b"[]",
            b"",
            b'{"__metadata__":{}}',
            b" " * 1000 + head,
            head.decode().encode("utf-16"),
            head + b" ",
        ]
        return pack(draw(st.sampled_from([inserted] * 5 + whole) | deep.map(str.encode)), body)
    if kind == "length":
        near = [len(head) - 1, len(head) + 1, len(data) - 8, len(data) - 7, 16 * 2**20, 16 * 2**20 + 1, 0, 1, 2]
        return pack(header, body, draw(st.sampled_from([*near, *(p for p in powers if 0 <= p < 2**64)])))
    if kind == "bytes":
        return data[:at] + draw(st.binary(min_size=1, max_size=8)) + data[at + 1 :]
    if kind == "cut":  # truncated, a slice lost, doubled or zeroed
        pieces = [data[:at], data[at:], data[:at] + data[end:], data[:end] + data[at:], data + data]
        return draw(st.sampled_from([*pieces, data[:at] + bytes(end - at) + data[end:]]))
    # NaN, Inf and others in the tensors of a whole file
    form, size = draw(st.sampled_from((("<e", 2), ("<f", 4), ("<d", 8))))
    number = struct.pack(form, draw(st.sampled_from((float("nan"), float("inf"), -float("inf"), 0.0, 6e4))))
    at = at % max(len(body) // size, 1) * size
    return pack(header, (body[:at] + number + body[at + size :])[: len(body)])


def check(concepts: object, folder: Path) -> str:
    """Load one case as a user would. "loaded", or "refused: " and what the error says, the folder left out.

    Raises:
        Exception: whatever the loader should not have raised.
        AssertionError: it loaded what it should not, or cannot be used, or does not come back the same.
    """
    try:
        banks = resolve(concepts, folder / "concepts")
    except UVRError as error:
        message = str(error).replace(str(folder), "")
        assert len(message) < MESSAGE + len(str(concepts)), f"a message of {len(message)} characters"
        assert message.isprintable(), f"a message that no line can hold: {message!r}"
        return f"refused: {message}"
    for bank, _ in banks:
        use(bank)
        same(bank, load_concepts(bank.save(folder / "again.safetensors")))
    return "loaded"


def use(bank: ConceptBank) -> None:
    """Score patches with every built-in detector, at several noise levels: scores, or a UVRError."""
    features = torch.linspace(-1, 1, 2 * 4 * bank.width).reshape(2, 4, bank.width) if bank.width < 2**12 else None
    for name in ("anchor", "anchor-cosine", "contrast", "concept-token") if features is not None else ():
        detector = plugins.registry().get("detector", name)
        detector = detector() if isinstance(detector, type) else detector
        for probe in (*bank.probes[:2], "nowhere"):
            for sigma in (1.0, 0.6, 0.0):
                with contextlib.suppress(UVRError):
                    assert detector.scores(features, sigma, bank, probe).shape == (2, 4), name
    if bank.calibration is not None:
        high, low = bank.calibration.window
        assert high >= low, f"a window that no noise level is in: {bank.calibration.window}"


def same(bank: ConceptBank, again: ConceptBank) -> None:
    """Raise AssertionError unless both are the same, tensors bitwise; NaN as text, for it is not equal to itself."""
    for name in ("name", "fingerprint", "calibration", "verification", "source", "text"):
        assert repr(getattr(again, name)) == repr(getattr(bank, name))
    assert json.dumps(again.provenance, sort_keys=True) == json.dumps(bank.provenance, sort_keys=True)
    assert again.tensors.keys() == bank.tensors.keys()
    for key, tensor in bank.tensors.items():
        other = again.tensors[key]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(other.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), key


class Watch:
    """Sees files opened and objects unpickled while `on`. An audit hook cannot be removed: one per process."""

    def __init__(self) -> None:
        self.on, self.folder, self.seen = False, Path(), []
        self.code = tuple({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[1])})
        sys.addaudithook(self._hook)
        self._trap(safetensors, "safe_open", "open")  # Rust opens files without an audit event
        for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
            self._trap(module, name, f"{module.__name__}.{name}")

    def _trap(self, module: Any, name: str, event: str) -> None:
        stock = getattr(module, name)

        def trapped(*args: Any, **options: Any) -> Any:
            self._hook(event, args)
            return stock(*args, **options)

        setattr(module, name, trapped)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if self.on and (event in FORBIDDEN or event.startswith(("torch.", "pickle."))):
            self.seen.append(event)
        if self.on and event == "open" and not isinstance(args[0], int):  # a number: a file that is open already
            path = Path(os.path.abspath(os.fsdecode(args[0])))
            code = str(path).startswith(self.code) and path.suffix in (".py", ".pyc", ".so")  # an import on first use
            if not code and (self.folder not in path.parents or path.name == "outside.safetensors"):
                self.seen.append(f"opened {path}")

    @contextlib.contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Raise AssertionError at the end if a file outside `folder` was opened, or anything was unpickled."""
        self.folder, self.seen, self.on = folder, [], True
        try:
            yield
        finally:
            self.on = False
        assert not self.seen, "; ".join(self.seen)


def peak() -> int:
    """The largest resident size that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bound_memory() -> None:
    """From now on this process may add HEADROOM bytes of address space (Linux; elsewhere nothing is done)."""
    with contextlib.suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + HEADROOM,) * 2)


def _too_long(*args: object) -> None:
    raise TimeoutError(f"took more than {TIMEOUT} s")


def fuzz(folder: Path, examples: int, start: int) -> dict[str, Any]:
    """Load that many damaged files: what came of them. Hypothesis raises the smallest that is at fault."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGALRM, _too_long)
    path = folder / "concepts" / "x.safetensors"
    path.parent.mkdir()
    make_bank("outside").save(folder / "outside.safetensors")
    check(make_bank().save(path), folder)  # imports what is imported on first use
    outcomes: Counter[str] = Counter()
    watch, before = Watch(), peak()
    bound_memory()

    @seed(start)
    @settings(max_examples=examples // len(DAMAGES), deadline=None, database=None, suppress_health_check=[*HealthCheck])
    @given(data=st.data())
    def one(kind: str, data: st.DataObject) -> None:
        path.write_bytes(data.draw(damaged_files(kind, data.draw(valid_banks()).save(path).read_bytes())))
        signal.alarm(TIMEOUT)
        try:
            with watch.watching(folder):
                outcome = check(path, folder)
        finally:
            signal.alarm(0)
        stage = next((stage for stage in STAGES.split("|") if stage in outcome), "other")
        outcomes.update((kind, outcome.split(":")[0], f"at {stage}"))

    for kind in DAMAGES:
        one(kind)
    return {"outcomes": outcomes, "grown": peak() - before}


def bounded(folder: Path) -> dict[str, Any]:
    """What is said of files that claim 100 GB, how the process grew meanwhile, and what a Watch sees."""
    whole = make_bank().save(folder / "whole.safetensors").read_bytes()
    load_concepts(folder / "whole.safetensors")
    claim = struct.pack("<Q", 100 * 10**9)
    results: dict[str, Any] = {}
    before = peak()
    bound_memory()
    for name, data in {"claim": claim + whole[8:], "sparse": claim, "giant": whole}.items():
        path = folder / f"{name}.safetensors"
        path.write_bytes(data)
        if name != "claim":
            os.truncate(path, 101 * 10**9)
        try:
            load_concepts(path)
        except UVRError as error:
            results[name] = str(error)
        path.unlink()
    results["grown"] = peak() - before
    watch = Watch()
    for name, act in {
        "unpickle": lambda: pickle.loads(pickle.dumps(Watch)),
        "checkpoint": lambda: torch.load(folder / "none"),
        "elsewhere": lambda: Path(os.devnull).read_bytes(),
        "beside": lambda: (folder / "outside.safetensors").write_bytes(b""),
        "rust": lambda: safetensors.safe_open("/nowhere", "pt"),
        "nothing": lambda: (folder / "again").write_bytes(b""),
    }.items():
        results[name] = ""
        try:
            with watch.watching(folder), contextlib.suppress(OSError):
                act()
        except AssertionError as error:
            results[name] = str(error)
    return results


if __name__ == "__main__":
    task = {"fuzz": fuzz, "bounded": bounded}[sys.argv[1]]
    print(json.dumps(task(Path(sys.argv[2]), *map(int, sys.argv[3:]))))
