"""Fuzz the concept loader: damaged, lying and hostile files, and names that lead elsewhere.

    python tools/fuzz_concepts.py --cases 100000 --seed 0

Case i of seed s is the same on every machine; `--only i` runs it alone. Of every case: the bank loads or a UVRError is
raised, with a short message of printable characters; nothing is unpickled; no file outside the case's folder is opened;
no process or connection is started; it ends within TIMEOUT seconds and HEADROOM bytes of address space. A bank that
loads is used (every built-in detector scores with it) and comes back the same when saved and loaded again.
Prints a JSON summary. Exit status: 0 no fault, 1 a fault.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import safetensors
import torch

from uvr_core import Calibration, ConceptBank, Fingerprint, UVRError, plugins
from uvr_core.concepts import MAX_FILE, MAX_HEADER, load_concepts, resolve

PROBE = "single_transformer_blocks.0.attn"
HEADS, HEAD_DIM, BINS = 2, 4, 3
WIDTH = HEADS * HEAD_DIM
HEADROOM = 2**30  # bytes of address space that all cases together may add
TIMEOUT = 30  # seconds a case may take
MESSAGE = 1000  # characters, the path left out
DETECTORS = ("anchor", "anchor-cosine", "contrast", "concept-token")
FORBIDDEN = ("pickle.find_class", "os.system", "subprocess.Popen", "os.exec", "socket.connect")

Header = dict[str, Any]
Rng = random.Random


# ---------------------------------------------------------------------------------------------- valid files


def banks() -> dict[str, ConceptBank]:
    """Small valid banks of every kind: name -> bank."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    model = Fingerprint("FluxTransformer2DModel", 4, HEADS, HEAD_DIM)
    anchors = {f"anchors/{PROBE}": noise(2, WIDTH)}
    sigma = {"sigma": torch.tensor([1.0, 0.75, 0.5])}
    contrast = anchors | sigma | {f"direction/{PROBE}": noise(BINS, WIDTH), f"offset/{PROBE}": noise(BINS)}
    editing = (
        anchors
        | sigma
        | {f"direction/{PROBE}": noise(BINS, 2 * WIDTH), f"offset/{PROBE}": noise(BINS)}
        | {f"origin/{PROBE}": noise(BINS, 2 * WIDTH), f"origin_offset/{PROBE}": noise(BINS)}
    )
    mixed = {"sigma": sigma["sigma"].double(), f"anchors/{PROBE}": noise(2, WIDTH).half()}
    mixed |= {f"token/{PROBE}": noise(BINS, WIDTH).bfloat16()}
    chosen = Calibration("contrast", PROBE, (1.0, 0.5), 1.25, 0.5, 2, 0.01, {"recall": 0.9, "counts": {"unsafe": 7}})
    return {
        "anchors": ConceptBank("anchors", model, anchors),
        "contrast": ConceptBank("contrast", model, contrast, chosen, {"seed": 7, "generate": {"steps": 4}}),
        "editing": ConceptBank("editing", model, editing, attrs.evolve(chosen, grow=None), {"seed": 8}),
        "mixed": ConceptBank('Ünïcode, "quoted" 概念', model, mixed, attrs.evolve(chosen, detector="concept-token")),
    }


def unpack(data: bytes) -> tuple[Header, bytes]:
    """A valid file's header and the bytes of its tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]), data[end:]


def pack(header: Header | bytes, body: bytes, claimed: int | None = None) -> bytes:
    """The file of a header (JSON, or bytes as they are) that claims to be `claimed` bytes long; None: the truth."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode(errors="surrogatepass")
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + body


class Corpus:
    """Valid files, made once. `data`: bytes of each bank."""

    def __init__(self, folder: Path):
        self.data = {name: bank.save(folder / f"{name}.safetensors").read_bytes() for name, bank in banks().items()}

    def pick(self, rng: Rng) -> bytes:
        return self.data[rng.choice(sorted(self.data))]


# ---------------------------------------------------------------------------------------------- awkward values

INTEGERS = (-1, 0, 1, 2, 7, 8, 31, 64, 2**31 - 1, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, 2**64, -(2**63),
            10**11, 10**400)  # fmt: skip
FLOATS = (0.0, -0.0, 0.5, 1.5, -1.0, 1e-320, 1e39, 1e308, float("inf"), float("-inf"), float("nan"))
STRINGS = ("", "x", "../x", "/etc/passwd", "a\0b", "\x1b[2J", "a\nb", "\u202egnp", "ü", "概念", "😀", "x" * 300,
           "x" * 100_000, "NaN", "1.0", "null", "F32", "__metadata__", "uvr.concept/1", "\ud800")  # fmt: skip
DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "I8", "BOOL", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "C64", "U64",
          "f32", "F128", "", None, 7, [], "object", "O")  # fmt: skip


def junk(rng: Rng, depth: int = 2) -> Any:
    """Any JSON value, mostly one that some reader trips over."""
    kind = rng.randrange(9 if depth else 6)
    if kind < 2:
        return rng.choice(INTEGERS)
    if kind < 3:
        return rng.choice(FLOATS)
    if kind < 5:
        return rng.choice(STRINGS)
    if kind < 6:
        return rng.choice((None, True, False))
    if kind < 7:
        return [junk(rng, depth - 1) for _ in range(rng.randrange(4))]
    if kind < 8:
        return {rng.choice(STRINGS): junk(rng, depth - 1) for _ in range(rng.randrange(4))}
    return rng.choice(([], {}, [[]], [1.0], [0.5, 1.0], [1.0, 0.0], [1, 2, 3], [None, None]))


def nested(rng: Rng) -> str:
    """JSON text of something deep."""
    depth = rng.choice((3, 60, 70, 127, 129, 300, 500, 900, 990, 5000, 100_000))
    opened, closed = rng.choice((("[", "]"), ('{"a":', "}")))
    return opened * depth + ("1" if opened != "[" else "") + closed * (depth if rng.random() < 0.9 else depth - 1)


def text(value: Any) -> str:
    """JSON, as Python writes it: NaN and Infinity included."""
    return json.dumps(value, ensure_ascii=False) if not _lone(value) else json.dumps(value)


def _lone(value: Any) -> bool:
    return "\\ud8" in json.dumps(value)


# ---------------------------------------------------------------------------------------------- mutations of a file
# Each: (rng, corpus) -> the bytes of a file.


def flipped(rng: Rng, corpus: Corpus) -> bytes:
    """Bits flipped and bytes overwritten, in the header more often than in the tensors."""
    data = bytearray(corpus.pick(rng))
    end = len(data) if rng.random() < 0.3 else 8 + int.from_bytes(data[:8], "little")
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        where = rng.randrange(end)
        data[where] = data[where] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return bytes(data)


def cut(rng: Rng, corpus: Corpus) -> bytes:
    """Truncated, extended, spliced, a slice lost or doubled."""
    data, other = corpus.pick(rng), corpus.pick(rng)
    a, b = sorted((rng.randrange(len(data) + 1), rng.randrange(len(data) + 1)))
    return rng.choice((
        data[:a], data[a:], data[:a] + data[b:], data[:b] + data[a:], data[:a] + other[a:],
        data[:a] + bytes(b - a) + data[b:],
        data + rng.randbytes(rng.choice((1, 8, 100))), data + data, rng.randbytes(a), bytes(a), b"",
    ))  # fmt: skip


def lying_length(rng: Rng, corpus: Corpus) -> bytes:
    """A header length that is not the header's."""
    header, body = unpack(corpus.pick(rng))
    true = len(json.dumps(header).encode())
    claimed = rng.choice((
        0, 1, 2, true - 1, true + 1, true + len(body), true + len(body) + 1, rng.randrange(2 * true), MAX_HEADER,
        MAX_HEADER + 1, 100 * 10**6, 100 * 10**9, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64 - 8, 2**64 - 9,
    ))  # fmt: skip
    return pack(header, body, claimed)


def lying_tensors(rng: Rng, corpus: Corpus) -> bytes:
    """Offsets, shapes and types of tensors that are not so."""
    header, body = unpack(corpus.pick(rng))
    for _ in range(rng.choice((1, 1, 2, 3))):
        key = rng.choice([k for k in header if k != "__metadata__"] or ["x"])
        entry = header.get(key)
        if not isinstance(entry, dict):
            continue
        kind = rng.randrange(10)
        if kind < 3:
            at = entry.get("data_offsets")
            number = rng.choice((*INTEGERS, len(body), len(body) + 1, rng.randrange(len(body) + 1)))
            entry["data_offsets"] = rng.choice(
                (
                    [0, number],
                    [number, len(body)],
                    [number, number],
                    [len(body), 0],
                    at[::-1] if isinstance(at, list) else [],
                    [0],
                    junk(rng),
                )
            )
        elif kind < 5:
            shape = entry["shape"] if isinstance(entry.get("shape"), list) else []
            entry["shape"] = rng.choice((
                [rng.choice(INTEGERS)], [2**32, 2**32], [2**63, 2], [0, 2**63], [2**31, 2**31, 2**31], [0], [],
                [1] * 70,
                [*shape, 1], shape[::-1], [0, WIDTH], junk(rng),
            ))  # fmt: skip
        elif kind < 7:
            entry["dtype"] = rng.choice(DTYPES)
        elif kind < 8:
            header[key] = junk(rng)
        elif kind < 9:
            other = rng.choice([k for k in header if k != "__metadata__"])
            header[rng.choice((other, *(f"{k}/{PROBE}" for k in ("anchors", "token", "offset"))))] = entry
        else:
            entry.pop(rng.choice([*entry, "dtype"]), None)
    return pack(header, body)


def renamed(rng: Rng, corpus: Corpus) -> bytes:
    """Tensors under other names, lost, doubled, or thousands of them."""
    header, body = unpack(corpus.pick(rng))
    keys = [k for k in header if k != "__metadata__"]
    kind = rng.randrange(6)
    if kind == 0:
        header[rng.choice((*STRINGS, "anchors", "anchors/", "sigma/x", "/", "//", "sigma", "anchors/\x1b[2J"))] = (
            header.pop(rng.choice(keys))
        )
    elif kind == 1:
        for key in rng.sample(keys, rng.randrange(1, len(keys) + 1)):
            del header[key]
        return pack(header, body if rng.random() < 0.5 else b"")
    elif kind == 2:  # the same name twice
        head = json.dumps(header)
        key = rng.choice([*keys, "__metadata__"])
        return pack((head[:-1] + f', "{key}": {json.dumps(header[key])}}}').encode(), body)
    elif kind == 3:  # empty tensors, without noise levels
        empty = {k: {"dtype": "F32", "shape": s, "data_offsets": [0, 0]} for k, s in (
            (f"direction/{PROBE}", [0, WIDTH]), (f"offset/{PROBE}", [0]), (f"origin/{PROBE}", [0, 2 * WIDTH]),
            (f"token/{PROBE}", [0, WIDTH]), ("sigma", [0]))}  # fmt: skip
        chosen = rng.sample(sorted(empty), rng.randrange(1, len(empty) + 1))
        return pack({"__metadata__": header["__metadata__"], **{k: empty[k] for k in chosen}}, b"")
    elif kind == 4:
        many = {
            f"offset/{i}": {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}
            for i in range(rng.choice((10, 5000)))
        }
        return pack(header | many, body)
    else:
        header |= {rng.choice(STRINGS): header[rng.choice(keys)]}
    return pack(header, body)


def damaged_json(rng: Rng, corpus: Corpus) -> bytes:
    """Header text that is no JSON, not UTF-8, or JSON of the wrong form."""
    header, body = unpack(corpus.pick(rng))
    head = json.dumps(header).encode()
    where = rng.randrange(len(head))
    inserted = rng.choice((
        b"\xff\xfe", b"\xc0\x80", b"\xed\xa0\x80", b"\0", b'"', b"{", b"}", b"[", b",", b"\\", b"\\ud800", b"\\u0000",
        b"NaN",
        b"Infinity", b"-", b"1e999", b"/**/", b"\xef\xbb\xbf", b"true", b"\n" * 9, nested(rng).encode(),
    ))  # fmt: skip
    broken = rng.choice((
        head[:where] + inserted + head[where:], head[:where] + inserted + head[where + len(inserted) :],
        nested(rng).encode(), text(junk(rng)).encode(errors="surrogatepass"), head[::-1], b"{}", b"[]", b"null", b"",
        b" " * rng.choice((1, 1000)) + head, head + b" " * rng.choice((1, 1000)), head.decode().encode("utf-16"),
        b'{"__metadata__":' + nested(rng).encode() + b"," + head[1:],
    ))  # fmt: skip
    return pack(broken, body)


def other_metadata(rng: Rng, corpus: Corpus) -> bytes:
    """Metadata of other types, lost, added, or deep."""
    header, body = unpack(corpus.pick(rng))
    metadata = header["__metadata__"]
    kind = rng.randrange(6)
    if kind == 0:
        header["__metadata__"] = junk(rng)
    elif kind == 1:
        metadata[rng.choice(sorted(metadata))] = junk(rng)
    elif kind == 2:
        del metadata[rng.choice(sorted(metadata))]
    elif kind == 3:
        metadata[rng.choice(sorted(metadata))] = nested(rng)
    elif kind == 4:
        metadata[rng.choice(sorted(metadata))] = rng.choice(
            (*STRINGS[:-1], text(junk(rng)), "9" * 5000, "[" + "0," * 9)
        )
    else:
        metadata[rng.choice(STRINGS)] = rng.choice(STRINGS)
    return pack(header, body)


def other_fields(rng: Rng, corpus: Corpus) -> bytes:
    """One to three fields of fingerprint, calibration or provenance with other values; the rest is whole."""
    header, body = unpack(corpus.data["contrast"] if rng.random() < 0.7 else corpus.pick(rng))
    metadata = header["__metadata__"]
    for _ in range(rng.choice((1, 1, 2, 3))):
        which = rng.choice(("fingerprint", "calibration", "calibration", "calibration", "provenance"))
        fields = json.loads(metadata[which])
        if not isinstance(fields, dict) or rng.random() < 0.05:
            fields = junk(rng)
        else:
            name = rng.choice([*fields, "window", "measured", rng.choice(STRINGS)])
            value = junk(rng)
            if name == "window" and rng.random() < 0.7:
                value = [
                    rng.choice((*FLOATS, *INTEGERS, True, None, "1")) for _ in range(rng.choice((2, 2, 2, 1, 3, 0)))
                ]
            fields[name] = value
            if rng.random() < 0.1:
                fields.pop(rng.choice(sorted(fields)))
        metadata[which] = text(fields)
        if rng.random() < 0.05:  # the same field twice
            metadata[which] = metadata[which][:-1] + ', "threshold": 1e9, "threshold": NaN}'
            break
    return pack(header, body)


def other_numbers(rng: Rng, corpus: Corpus) -> bytes:
    """Tensors of a whole file hold other numbers, NaN and Inf among them."""
    header, body = unpack(corpus.pick(rng))
    new = bytearray(body)
    patterns = [struct.pack("<f", v) for v in (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0)]
    patterns += [struct.pack("<d", v) for v in (float("nan"), float("inf"), 1e300, 0.0)]
    patterns += [struct.pack("<e", v) for v in (float("nan"), float("inf"), 65504.0)]
    for _ in range(rng.choice((1, 2, 50))):
        value = rng.choice(patterns)
        where = rng.randrange(0, max(1, len(new) - len(value) + 1), len(value))
        new[where : where + len(value)] = value
    return pack(header, bytes(new[: len(body)]))


def unpicklable(rng: Rng, corpus: Corpus) -> bytes:
    """Pickles and torch checkpoints under a concept file's name; a whole file with a pickle in it."""
    import io

    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(2)}, buffer, _use_new_zipfile_serialization=rng.random() < 0.5)
    raw = rng.choice((pickle.dumps(Bomb()), pickle.dumps({"sigma": [1.0]}, protocol=0), buffer.getvalue()))
    header, body = unpack(corpus.pick(rng))
    header["__metadata__"][rng.choice(("provenance", "name", "calibration"))] = raw.decode("latin-1")
    return rng.choice((raw, pack(raw, body), pack(header, body), pack(unpack(corpus.pick(rng))[0], raw)))


class Bomb:
    """Unpickling it starts a process."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("exit 1",)


def large(rng: Rng, corpus: Corpus) -> bytes:
    """Headers near the limit: many tensors, or long metadata. Some milliseconds each, so there are few."""
    header, body = unpack(corpus.pick(rng))
    kind = rng.randrange(3)
    if kind == 0:
        entry = {"dtype": "F32", "shape": [0], "data_offsets": [len(body)] * 2}
        header |= {f"offset/{i}": entry for i in range(100_000)}
    elif kind == 1:
        header["__metadata__"]["provenance"] = json.dumps({"prompts": ["x" * 1000] * 10_000})
    else:
        header["__metadata__"]["calibration"] = "[" * (8 * 2**20)
    return pack(header, body)


FILES: tuple[Callable[[Rng, Corpus], bytes], ...] = (
    flipped, cut, lying_length, lying_tensors, renamed, damaged_json, other_metadata, other_fields, other_numbers,
    unpicklable,
)  # fmt: skip


# ---------------------------------------------------------------------------------------------- places and names
# Each: (rng, corpus, folder) -> what is given to `resolve`. `folder` is a folder of concepts in the case's own folder,
# whose "outside.safetensors" is a whole bank that no name may reach.

NAMES = ("", ".", "..", "...", "../outside", "../outside.safetensors", "x/../../outside", "./x", "x/", "/", "//outside",
         "\\..\\outside", "a\0b", "\0", "x.safetensors\0.png", "x\n", " ", "~", "~/x", "$HOME", "%2e%2e/outside", "ü",
         "u\u0308", "概念", "😀", "\ud800", "\u202egnp", "con", "x" * 255, "x" * 5000, "x/" * 3000, "file:///outside",
         "-rf", "*", "?", "v1.5", "x.y.z", ".hidden", "x.safetensors.safetensors", "..safetensors", "/etc/passwd",
         "/dev/zero", "/dev/stdin", "/proc/self/mem", "/proc/self/environ")  # fmt: skip


def by_name(rng: Rng, corpus: Corpus, folder: Path) -> object:
    """A name, of a file that is there or not."""
    name = rng.choice((*NAMES, *NAMES, str(folder.parent / "outside"), rng.choice(STRINGS)))
    if "/" not in name and rng.random() < 0.5:
        with contextlib.suppress(OSError, ValueError):  # a name that no file can have
            (folder / f"{name}.safetensors").write_bytes(corpus.pick(rng))
    return rng.choice((name, name, [name], (name,), {name: None}))


def special(rng: Rng, corpus: Corpus, folder: Path) -> object:
    """No regular file: a folder, a fifo, a socket's place, links to all sorts of things, nothing, a sparse giant."""
    path, kind = folder / "x.safetensors", rng.randrange(9)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to(path)
    elif kind == 3:
        path.symlink_to(rng.choice((folder, "/dev/zero", "/dev/null", "/nowhere", "/etc/passwd", "/proc/self/mem")))
    elif kind == 4:
        (folder / "real").write_bytes(corpus.pick(rng))
        path.symlink_to(folder / "real")
    elif kind == 5:
        path.write_bytes(b"")
    elif kind == 6:
        with path.open("wb") as file:  # sparse: takes no space on the disk
            file.write(rng.choice((corpus.pick(rng), struct.pack("<Q", 100 * 10**9))))
            file.truncate(rng.choice((MAX_FILE + 1, 100 * 10**9)))
    elif kind == 7:
        path.write_bytes(corpus.pick(rng))
        path.chmod(0)
    return rng.choice(("x", str(path), path))


PLACES: tuple[Callable[[Rng, Corpus, Path], object], ...] = (by_name, special)


def outside(folder: Path, corpus: Corpus) -> None:
    """The bank that no name may reach."""
    (folder / "outside.safetensors").write_bytes(corpus.data["editing"])


# ---------------------------------------------------------------------------------------------- one case


def prepare(seed: int, number: int, corpus: Corpus, folder: Path) -> tuple[str, object]:
    """Lay out case `number` in an empty folder: (its family, what is given to `resolve`)."""
    rng = random.Random(f"{seed}:{number}")
    (folder / "concepts").mkdir()
    outside(folder, corpus)
    if number % 10 == 9:
        place = PLACES[number // 10 % len(PLACES)]
        return place.__name__, place(rng, corpus, folder / "concepts")
    made = large if number % 2000 == 1000 else FILES[(number - number // 10) % len(FILES)]
    path = folder / "concepts" / "x.safetensors"
    path.write_bytes(made(rng, corpus))
    return made.__name__, rng.choice((path, "x"))


def run(given: object, folder: Path) -> str:
    """Load one case as a user would. "loaded", or "refused: " and what the error says, the folder left out.

    Raises:
        Exception: whatever the loader should not have raised.
        AssertionError: it loaded what it should not, or cannot be used, or does not come back the same.
    """
    try:
        found = resolve(given, folder / "concepts")
    except UVRError as error:
        message = str(error).replace(str(folder), "")
        assert len(message) < MESSAGE + len(str(given)), f"a message of {len(message)} characters"
        assert message.isprintable(), f"a message that no line can hold: {message!r}"
        return f"refused: {message}"
    for bank, _ in found:
        use(bank)
        same(bank, load_concepts(bank.save(folder / "again.safetensors")))
    return "loaded"


def use(bank: ConceptBank) -> None:
    """Score patches with every built-in detector, at several noise levels: scores, or a UVRError."""
    features = torch.linspace(-1, 1, 2 * 4 * bank.width).reshape(2, 4, bank.width) if bank.width < 2**12 else None
    for name in DETECTORS if features is not None else ():
        detector = plugins.registry().get("detector", name)
        for probe in (*bank.probes[:2], "nowhere"):
            for sigma in (1.0, 0.6, 0.0):
                try:
                    scores = (detector() if isinstance(detector, type) else detector).scores(
                        features, sigma, bank, probe
                    )
                except UVRError:
                    continue
                assert scores.shape == (2, 4), f"{name}: scores of shape {tuple(scores.shape)}"
    if bank.calibration is not None:
        high, low = bank.calibration.window
        assert high >= low, f"a window that no noise level is in: {bank.calibration.window}"


def same(bank: ConceptBank, again: ConceptBank) -> None:
    """Raise AssertionError unless both are the same, tensors bitwise."""
    assert (again.name, again.fingerprint) == (bank.name, bank.fingerprint)
    assert repr(again.calibration) == repr(bank.calibration)  # as text: NaN is not equal to itself
    assert json.dumps(again.provenance, sort_keys=True) == json.dumps(bank.provenance, sort_keys=True)
    assert again.tensors.keys() == bank.tensors.keys()
    for key, tensor in bank.tensors.items():
        other = again.tensors[key]
        assert (other.dtype, other.shape) == (tensor.dtype, tensor.shape), key
        assert torch.equal(other.contiguous().view(torch.uint8), tensor.contiguous().view(torch.uint8)), key


class Watch:
    """Sees files opened and objects unpickled while `on`. An audit hook cannot be removed: one per process."""

    def __init__(self) -> None:
        self.on, self.folder, self.given = False, "", ()
        self.seen: list[str] = []
        self.code = tuple({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, Path(__file__).parents[1])})
        sys.addaudithook(self._hook)
        stock = safetensors.safe_open

        def safe_open(path: Any, *args: Any, **options: Any) -> Any:  # Rust opens files without an audit event
            self._opened(path)
            return stock(path, *args, **options)

        safetensors.safe_open = safe_open
        for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
            setattr(module, name, self._trap(f"{module.__name__}.{name}", getattr(module, name)))

    def _trap(self, name: str, stock: Callable[..., Any]) -> Callable[..., Any]:
        def trapped(*args: Any, **options: Any) -> Any:
            if self.on:
                self.seen.append(name)
            return stock(*args, **options)

        return trapped

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            self._opened(args[0])
        elif event in FORBIDDEN:
            self.seen.append(event)

    def _opened(self, path: Any) -> None:
        if isinstance(path, int):  # a file that is open already
            return
        name = os.path.abspath(os.fsdecode(path))
        ours = name.startswith(self.folder + os.sep)
        code = name.startswith(self.code) and name.endswith((".py", ".pyc", ".so"))  # an import on first use
        if not (ours or code or path in self.given) or name == os.path.join(self.folder, "outside.safetensors"):
            self.seen.append(f"opened {name}")

    @contextmanager
    def watching(self, folder: Path, given: object) -> Iterator[None]:
        """Raise AssertionError at the end if a file outside `folder`, other than the path given, was opened, or
        anything was unpickled."""
        self.folder, self.seen, self.on = os.path.abspath(folder), [], True
        self.given = (*given, given) if isinstance(given, (list, tuple, dict)) else (given,)
        try:
            yield
        finally:
            self.on = False
        assert not self.seen, "; ".join(self.seen)


# ---------------------------------------------------------------------------------------------- all cases

STAGES = ("not a whole safetensors", "no such", "schema", "time convention", "metadata is damaged", "name:",
          "fingerprint", "calibration", "provenance", "tensor", "cannot be read", "that large")  # fmt: skip


def stage(outcome: str) -> str:
    """At which check a case was refused."""
    return next((s for s in STAGES if s in outcome), "other")


def peak() -> int:
    """The largest resident size that this process had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def bound_memory() -> None:
    """From now on this process may add HEADROOM bytes of address space (Linux; elsewhere nothing is done)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return
    limit = pages * resource.getpagesize() + HEADROOM
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _too_long(*args: object) -> None:
    raise TimeoutError(f"took more than {TIMEOUT} s")


def fuzz(cases: Iterator[int] | range, seed: int, watch: Watch | None = None) -> dict[str, Any]:
    """Run cases: counts of what came of them, the slowest, and the faults (at most 100 are kept)."""
    outcomes: Counter[str] = Counter()
    families: dict[str, Counter[str]] = {}
    stages: Counter[str] = Counter()
    faults: list[dict[str, Any]] = []
    slowest = (0.0, -1)
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary).resolve()
        corpus = Corpus(root)
        (root / "cwd").mkdir()
        os.chdir(root / "cwd")
        signal.signal(signal.SIGALRM, _too_long)
        try:
            for number in cases:
                folder = root / "case"
                folder.mkdir()
                family, given = prepare(seed, number, corpus, folder)
                began = time.perf_counter()
                signal.alarm(TIMEOUT)
                try:
                    if watch is None:
                        outcome = run(given, folder)
                    else:
                        with watch.watching(folder, given):
                            outcome = run(given, folder)
                except BaseException as error:  # a panic of a native library is no Exception
                    if isinstance(error, KeyboardInterrupt):
                        raise
                    outcome = "fault"
                    what = f"{type(error).__name__}: {str(error)[:300]}"
                    faults.append({"case": number, "family": family, "given": repr(given)[:100], "what": what})
                finally:
                    signal.alarm(0)
                slowest = max(slowest, (time.perf_counter() - began, number))
                kind = outcome.split(":")[0]
                outcomes[kind] += 1
                families.setdefault(family, Counter())[kind] += 1
                if kind == "refused":
                    stages[stage(outcome)] += 1
                shutil.rmtree(folder)
                if outcomes.total() % 10_000 == 0:
                    print(f"{outcomes.total()} cases, {len(faults)} faults", file=sys.stderr, flush=True)
        finally:
            os.chdir(here)
    return {
        "cases": outcomes.total(), "seed": seed, "outcomes": dict(outcomes), "refused_at": dict(stages.most_common()),
        "families": {name: dict(counts) for name, counts in sorted(families.items())},
        "slowest": {"seconds": round(slowest[0], 4), "case": slowest[1]}, "faults": faults[:100],
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000, help="how many (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="this case alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    fuzz(range(100), -1)  # imports what is imported on first use
    watch = Watch()
    before, began = peak(), time.perf_counter()
    bound_memory()
    cases = range(options.cases) if options.only is None else range(options.only, options.only + 1)
    summary = fuzz(cases, options.seed, watch)
    summary |= {
        "seconds": round(time.perf_counter() - began, 1),
        "peak_mib": round(peak() / 2**20, 1), "peak_growth_mib": round((peak() - before) / 2**20, 1),
        "versions": {"python": sys.version.split()[0]} | {m.__name__: m.__version__ for m in (torch, safetensors)},
    }  # fmt: skip
    print(json.dumps(summary, indent=1))
    return 1 if summary["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
