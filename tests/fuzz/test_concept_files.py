"""Concept files and names from strangers: refused by a UVRError or usable, in bounded memory, nothing else touched.

The long run is `python tools/fuzz_concepts.py --cases 100000`; here are a few hundred of its cases, and by name the
ones that a user could meet.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runner import PROBE, make_bank

from uvr_core import Calibration, ConceptBank, ConceptMismatch, Fingerprint, UVRError, load_concepts
from uvr_core.concepts import MAX_DEPTH, MAX_FILE, MAX_NAME, MAX_TENSORS, resolve

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "fuzz_concepts.py"


def tool() -> ModuleType:
    """tools/fuzz_concepts.py as a module."""
    spec = importlib.util.spec_from_file_location("fuzz_concepts", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz_concepts"] = module
    spec.loader.exec_module(module)
    return module


fuzz = tool()


def child(*arguments: object, **variables: str) -> Any:
    """What a fresh Python prints as its last JSON document."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bank().save(tmp_path / "x.safetensors")


def repack(path: Path, **metadata: object) -> None:
    """Change entries of a file's metadata: text as it is, everything else as JSON; the tensors stay."""
    header, body = fuzz.unpack(path.read_bytes())
    header["__metadata__"] |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    path.write_bytes(fuzz.pack(header, body))


def fields(path: Path, which: str) -> dict[str, Any]:
    return json.loads(fuzz.unpack(path.read_bytes())[0]["__metadata__"][which])


# ---------------------------------------------------------------------------------------------- the fuzzer


def test_some_hundred_mutations_are_refused_or_usable() -> None:
    found = child(TOOL, "--cases", 400, "--seed", 1)
    assert found["faults"] == []
    assert found["cases"] == sum(found["outcomes"].values()) == 400
    assert min(found["outcomes"]["loaded"], found["outcomes"]["refused"]) > 25, "mutations too mild, or too coarse"
    assert set(found["families"]) == {f.__name__ for f in (*fuzz.FILES, *fuzz.PLACES)}
    assert len(found["refused_at"]) >= 8, "some check is never reached"
    assert found["peak_growth_mib"] < 300


def wrong(given: object, folder: Path) -> list[tuple[ConceptBank, None]]:
    raise KeyError("sigma")


def doubtful(given: object, folder: Path) -> list[tuple[ConceptBank, None]]:
    raise UVRError("x" * 10_000)


def wide(given: object, folder: Path) -> list[tuple[ConceptBank, None]]:
    return [(attrs.evolve(make_bank(), calibration=Calibration("anchor", PROBE, (0.0, 1.0), 0.0)), None)]


def cursor(given: object, folder: Path) -> list[tuple[ConceptBank, None]]:
    raise UVRError("\x1b[2J")


@pytest.mark.parametrize("loader", [wrong, doubtful, wide, cursor])
def test_the_fuzzer_sees_a_wrong_loader(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "resolve", loader)
    assert len(fuzz.fuzz(range(5), 0)["faults"]) == 5


def test_the_fuzzer_compares_what_comes_back() -> None:
    bank = make_bank()
    other = attrs.evolve(bank, tensors={**bank.tensors, "sigma": torch.tensor([1.0, 0.8, 0.5 + 1e-7])})
    fuzz.same(bank, bank)
    for changed in (other, attrs.evolve(bank, provenance={}), attrs.evolve(bank, calibration=None)):
        with pytest.raises(AssertionError):
            fuzz.same(bank, changed)


# ---------------------------------------------------------------------------------------------- memory

HOSTILE = """
import json, os, pickle, struct, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import fuzz_concepts as fuzz
from uvr_core import UVRError, load_concepts

folder = Path(sys.argv[2])
whole = fuzz.banks()["contrast"].save(folder / "whole.safetensors").read_bytes()
load_concepts(folder / "whole.safetensors")
files = {"claim": struct.pack("<Q", 100 * 10**9) + whole[8:], "sparse": struct.pack("<Q", 100 * 10**9), "giant": whole}
before, found = fuzz.peak(), {}
fuzz.bound_memory()
for name, data in files.items():
    path = folder / f"{name}.safetensors"
    path.write_bytes(data)
    if name != "claim":
        os.truncate(path, 101 * 10**9)
    try:
        load_concepts(path)
    except UVRError as error:
        found[name] = str(error)
    os.remove(path)
found["grown"] = fuzz.peak() - before

watch, seen = fuzz.Watch(), {}
def unpickle(): pickle.loads(pickle.dumps(fuzz.Bomb))
def checkpoint(): torch.load(Path(sys.argv[2]) / "none")
def elsewhere(): open(os.devnull).close()
def beside(): (folder / "outside.safetensors").write_bytes(b"")
def rust(): fuzz.safetensors.safe_open("/nowhere", "pt")
def nothing(): (folder / "again").write_bytes(b"")
for act in (unpickle, checkpoint, elsewhere, beside, rust, nothing):
    try:
        with watch.watching(folder, "x"):
            try:
                act()
            except OSError:
                pass
        seen[act.__name__] = ""
    except AssertionError as error:
        seen[act.__name__] = str(error)
print(json.dumps(found | {"seen": seen}))
"""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return child("-c", HOSTILE, TOOL.parent, tmp_path_factory.mktemp("hostile").resolve())


def test_100_gb_are_refused_before_anything_is_allocated(hostile: dict[str, Any]) -> None:
    """A header that claims 100 GB, in a small file and in a (sparse) one that is as large as that."""
    assert "claims a header of 100000000000 bytes" in hostile["claim"]
    for kind in ("sparse", "giant"):
        assert f"101000000000 bytes, at most {MAX_FILE}" in hostile[kind]
    assert hostile["grown"] < 4 * 2**20


def test_the_fuzzer_sees_what_is_opened_and_unpickled(hostile: dict[str, Any]) -> None:
    seen = hostile["seen"]
    assert "pickle.loads" in seen["unpickle"]
    assert "pickle.find_class" in seen["unpickle"]
    assert "torch.load" in seen["checkpoint"]
    assert all("opened" in seen[act] for act in ("elsewhere", "beside", "rust"))
    assert seen["nothing"] == ""


def test_too_many_tensors_are_refused_before_one_is_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header, body = fuzz.unpack(path.read_bytes())
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    path.write_bytes(fuzz.pack(header | {f"offset/{i}": empty for i in range(MAX_TENSORS)}, body))
    with pytest.raises(ConceptMismatch, match=f"no concept has more than {MAX_TENSORS}"):
        load_concepts(path)


def test_a_loaded_bank_does_not_change_with_its_file(path: Path) -> None:
    """A mapped file would: and a file cut short kills the process that has it mapped."""
    bank, whole = load_concepts(path), path.read_bytes()
    with path.open("r+b") as file:  # in place, as a copying program would
        file.write(bytes(len(whole)))
    for key, tensor in make_bank().tensors.items():
        assert torch.equal(bank.tensors[key], tensor), key


# ---------------------------------------------------------------------------------------------- names


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of concepts, with a whole bank beside it that no name may reach; the working folder is another."""
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    folder = tmp_path / "concepts"
    folder.mkdir()
    make_bank("outside").save(tmp_path / "outside.safetensors")
    make_bank("inside").save(folder / "weapon.safetensors")
    return folder


@pytest.mark.parametrize("way", ["argument", "UVR_CONCEPTS"])
@pytest.mark.parametrize(
    "name",
    ["../outside", "../outside.safetensors", "./../outside", "weapon/../../outside", "..", ".", "", "..\\outside",
     "~/outside", "outside\0", "%2e%2e/outside", "x" * 5000, "x/" * 3000, "\ud800"],
)  # fmt: skip
def test_no_name_leads_out_of_the_folder(folder: Path, name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UVR_CONCEPTS", str(folder))
    assert resolve("weapon", folder)[0][0].name == "inside"
    with pytest.raises(ConceptMismatch, match=r"no such (concept )?file"):
        resolve(name, folder if way == "argument" else None)


def test_an_absolute_name_is_a_path_and_needs_its_suffix(folder: Path) -> None:
    outside = folder.parent / "outside"
    with pytest.raises(ConceptMismatch, match="no such concept file"):
        resolve(str(outside), folder)
    assert resolve(f"{outside}.safetensors", folder)[0][0].name == "outside"


@pytest.mark.parametrize("name", ["v1.5", "weapon.old", ".hidden", "-rf", "概念", "a b"])
def test_awkward_names_of_files_in_the_folder_are_found(folder: Path, name: str) -> None:
    make_bank("awkward").save(folder / f"{name}.safetensors")
    assert resolve(name, folder)[0][0].name == "awkward"


def test_a_link_that_someone_put_into_the_folder_is_followed(folder: Path) -> None:
    (folder / "linked.safetensors").symlink_to(folder.parent / "outside.safetensors")
    assert resolve("linked", folder)[0][0].name == "outside"


@pytest.mark.parametrize("kind", ["folder", "fifo", "link to itself", "link to a device", "empty"])
def test_no_regular_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "empty":
        path.touch()
    else:
        path.symlink_to(path if kind == "link to itself" else "/dev/zero")
    with pytest.raises(ConceptMismatch, match=r"no such concept file|not a whole safetensors file"):
        load_concepts(path)
    with pytest.raises(ConceptMismatch):
        resolve("x", tmp_path)


def test_a_file_that_cannot_be_read_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *args: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(ConceptMismatch, match=r"x\.safetensors: cannot be read: Permission denied"):
        load_concepts(path)


# ---------------------------------------------------------------------------------------------- no pickle


class Touch:
    """Unpickling it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["pickle", "torch", "torch, the old format"])
def test_pickles_under_a_concept_files_name_are_refused_unread(tmp_path: Path, kind: str) -> None:
    path, mark = tmp_path / "x.safetensors", tmp_path / "mark"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Touch(mark)))
    else:
        torch.save({"sigma": Touch(mark)}, path, _use_new_zipfile_serialization=kind == "torch")
    with pytest.raises(ConceptMismatch, match="not a whole safetensors file"):
        load_concepts(path)
    assert not mark.exists()


# ---------------------------------------------------------------------------------------------- what was let through


@pytest.mark.parametrize("window", [[0.0, 1.0], [0.5, 0.6]])
def test_a_window_that_holds_no_noise_level_is_refused(path: Path, window: list[float]) -> None:
    """The concept would never be looked for."""
    repack(path, calibration=fields(path, "calibration") | {"window": window})
    with pytest.raises(ConceptMismatch, match=r"calibration\.window: .*no noise level is in"):
        load_concepts(path)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("calibration", {"threshold": 10**400}, "damaged: OverflowError"),
        ("calibration", {"min_patches": 2**31 + 1}, r"min_patches: expected at least 1 and at most"),
        ("calibration", {"detector": "\x1b[2Janchor"}, r"detector: expected printable text, got '\\x1b"),
        ("calibration", {"probe": 7}, r"probe: expected str"),
        ("fingerprint", {"heads": -2, "head_dim": -16}, r"heads: expected at least 1"),
        ("fingerprint", {"blocks": 0}, r"blocks: expected at least 1"),
        ("fingerprint", {"model": "a\nb"}, r"model: expected printable text"),
    ],
)
def test_numbers_and_text_that_the_engine_could_not_use(
    path: Path, which: str, change: dict[str, Any], message: str
) -> None:
    repack(path, **{which: fields(path, which) | change})
    with pytest.raises(ConceptMismatch, match=message):
        load_concepts(path)


@pytest.mark.parametrize("name", ["", "a\nb", "\x1b[31mred", "\u202egnp", "x" * (MAX_NAME + 1), "\ud800"])
def test_a_name_that_no_line_can_show_is_refused(path: Path, name: str) -> None:
    with pytest.raises(ConceptMismatch, match=f"name: expected 1 to {MAX_NAME} printable characters"):
        make_bank(name)
    if name != "\ud800":  # no UTF-8
        repack(path, name=name)
        with pytest.raises(ConceptMismatch, match="name: expected"):
            load_concepts(path)


@pytest.mark.parametrize("which", ["provenance", "calibration", "fingerprint"])
def test_deep_json_is_refused(path: Path, which: str) -> None:
    for depth, refused in ((MAX_DEPTH - 2, False), (MAX_DEPTH, True), (900, True), (100_000, True)):
        repack(path, **{which: '{"a":' * depth + "1" + "}" * depth})
        message = "nested deeper" if depth < 900 else "nested deeper|RecursionError"
        if refused or which != "provenance":
            with pytest.raises(ConceptMismatch, match=message if refused else "damaged"):
                load_concepts(path)
        else:
            bank = load_concepts(path)
            assert load_concepts(bank.save(path)).provenance == bank.provenance


@pytest.mark.parametrize(
    ("which", "change"),
    [("schema", "\x1b[2J" + "x" * 10**6), ("time", "\n" * 10**5), ("name", "x" * 10**6), ("name", "\x1b[2J"),
     ("calibration", {"\x1b[2J": 1}), ("fingerprint", {"x" * 10**6: 1}), ("provenance", ["x" * 10**6])],
)  # fmt: skip
def test_what_a_message_quotes_of_a_file_is_short_and_printable(path: Path, which: str, change: object) -> None:
    repack(path, **{which: change})
    with pytest.raises(ConceptMismatch) as caught:
        load_concepts(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < len(str(path)) + 600


def test_a_direction_without_noise_levels_is_refused(tmp_path: Path) -> None:
    """(0, C) would fit if no noise levels were as good as none missing."""
    bank = make_bank()
    tensors = {f"direction/{PROBE}": torch.zeros(0, bank.width), f"offset/{PROBE}": torch.zeros(0)}
    path = attrs.evolve(bank, tensors=tensors).save(tmp_path / "x.safetensors")
    with pytest.raises(ConceptMismatch, match=r"shape \(0(, 32)?,?\)"):
        load_concepts(path)


def test_the_nearest_level_of_a_bank_without_any_is_an_error_of_ours() -> None:
    bank = make_bank()
    bank = attrs.evolve(bank, tensors={k: v for k, v in bank.tensors.items() if k.startswith("anchors/")})
    with pytest.raises(ConceptMismatch, match=rf"'x' has no noise levels.*anchors/{re.escape(PROBE)}"):
        bank.bin_at(0.5)


@pytest.mark.parametrize("key", ["anchors", "anchors/", "sigma/x", f"anchors/{PROBE}\x1b[2J"])
def test_tensors_without_a_probe_are_refused(path: Path, key: str) -> None:
    header, body = fuzz.unpack(path.read_bytes())
    header[key] = header.pop("sigma" if key.startswith("sigma") else f"anchors/{PROBE}")
    path.write_bytes(fuzz.pack(header, body))
    with pytest.raises(ConceptMismatch, match="which fits no concept"):
        load_concepts(path)


def test_numbers_past_float32_are_refused() -> None:
    """Detectors compute in float32, where 1e300 is Inf and its scores are NaN: no patch would ever be located."""
    bank = make_bank()
    with pytest.raises(ConceptMismatch, match="numbers that float32 cannot"):
        attrs.evolve(
            bank, tensors={**bank.tensors, f"anchors/{PROBE}": torch.full((1, 32), 1e300, dtype=torch.float64)}
        )


# ---------------------------------------------------------------------------------------------- hypothesis

SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
_names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.isprintable)
_finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
_json = st.recursive(
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
    probes = draw(st.lists(_names, min_size=1, max_size=2, unique=True))
    kinds = draw(st.lists(st.sampled_from(sorted(shapes)), unique=True))
    dtype = draw(st.sampled_from((torch.float16, torch.bfloat16, torch.float32, torch.float64)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    tensors = {f"{k}/{p}": torch.randn(shapes[k], generator=generator).to(dtype) for k in kinds for p in probes}
    tensors["sigma"] = torch.linspace(1, 0, bins)
    high, low = sorted((draw(_finite), draw(_finite)), reverse=True)
    calibration = Calibration(
        draw(_names), probes[0], (high, low), draw(_finite), draw(st.none() | _finite), draw(st.integers(1, 2**31)),
        draw(st.floats(0, 1)), draw(st.dictionaries(st.text(max_size=5), _json, max_size=3)),
    )  # fmt: skip
    return ConceptBank(
        draw(_names), Fingerprint(draw(_names), draw(st.integers(1, 2**31)), heads, head_dim), tensors,
        draw(st.none() | st.just(calibration)), draw(st.dictionaries(st.text(max_size=5), _json, max_size=3)),
    )  # fmt: skip


@SETTINGS
@given(bank=valid_banks())
def test_every_valid_bank_comes_back(tmp_path: Path, bank: ConceptBank) -> None:
    fuzz.same(bank, load_concepts(bank.save(tmp_path / "x.safetensors")))


@pytest.fixture
def corpus(tmp_path: Path) -> Any:
    return fuzz.Corpus(tmp_path)


@SETTINGS
@given(text=st.binary(max_size=60) | _json.map(lambda value: json.dumps(value).encode()), tail=st.binary(max_size=20))
@example(text=b'{"__metadata__":{}}', tail=b"")
@example(text=b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', tail=b"\0\0\xc0\x7f")
def test_any_header_is_refused_or_usable(tmp_path: Path, text: bytes, tail: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(fuzz.pack(text, tail))
    with pytest.raises(UVRError):
        load_concepts(path)


@SETTINGS
@given(entry=_json, key=st.sampled_from(("sigma", f"anchors/{PROBE}", "__metadata__", "x")))
def test_any_entry_of_the_header_is_refused_or_usable(tmp_path: Path, corpus: Any, entry: Any, key: str) -> None:
    header, body = fuzz.unpack(corpus.data["contrast"])
    (tmp_path / "concepts").mkdir(exist_ok=True)
    path = tmp_path / "concepts" / "x.safetensors"
    path.write_bytes(fuzz.pack(header | {key: entry}, body))
    assert fuzz.run(path, tmp_path).startswith("refused")


@SETTINGS
@given(name=st.text(max_size=12))
@example(name="../outside")
@example(name="a/../../outside")
def test_any_name_is_refused(tmp_path: Path, corpus: Any, name: str) -> None:
    (tmp_path / "concepts").mkdir(exist_ok=True)
    fuzz.outside(tmp_path, corpus)
    assert fuzz.run([name], tmp_path).startswith("refused")


# ---------------------------------------------------------------------------------------------- plugins

ALLOWED = """
import json, sys
from uvr_core import plugins
registry = plugins.registry()
print(json.dumps({
    "modules": sorted({name.split(".")[0] for name in sys.modules} & {"uvr_adapters", "uvr_plugins", "uvr_zoo"}),
    "concepts": len(registry.names("concept")), "policies": len(registry.names("policy")),
    "status": {o.name: o.status for o in registry.origins if o.distribution == "uvr-core"},
}))
"""


def test_uvr_plugins_keeps_a_built_in_from_being_imported_and_its_concepts_from_being_found() -> None:
    found = child("-c", ALLOWED, UVR_PLUGINS="builtin-plugins")
    assert found["modules"] == ["uvr_plugins"]
    assert found["concepts"] == 0
    assert found["policies"] > 0
    left_out = "not in UVR_PLUGINS"
    assert found["status"] == {"builtin-adapters": left_out, "builtin-plugins": "ok", "zoo": left_out}
