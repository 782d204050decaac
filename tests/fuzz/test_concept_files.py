"""Concept files and names from strangers: refused by a UVRError or usable, in bounded memory, nothing else touched.

Some hundred damaged files, and by name what a user could meet. UVR_FUZZ=100000 runs as many, UVR_FUZZ_SEED=7 others.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import hostile
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runner import PROBE, make_bank

from uvr_core import Calibration, ConceptBank, ConceptMismatch, UVRError, load_concepts
from uvr_core.concepts import MAX_DEPTH, MAX_FILE, MAX_NAME, MAX_TENSORS, resolve

EXAMPLES, SEED = (int(os.environ.get(name, default)) for name, default in (("UVR_FUZZ", 280), ("UVR_FUZZ_SEED", 1)))
SETTINGS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def child(*arguments: object, **variables: str) -> Any:
    """What a fresh Python prints: a JSON document."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=300 + EXAMPLES,
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return make_bank().save(tmp_path / "x.safetensors")


def repack(path: Path, **metadata: object) -> None:
    """Change entries of a file's metadata: text as it is, everything else as JSON; the tensors stay."""
    header, body = hostile.unpack(path.read_bytes())
    header["__metadata__"] |= {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    path.write_bytes(hostile.pack(header, body))


def fields(path: Path, which: str) -> dict[str, Any]:
    return json.loads(hostile.unpack(path.read_bytes())[0]["__metadata__"][which])


def test_some_hundred_mutations_are_refused_or_usable(tmp_path: Path) -> None:
    result = child(hostile.__file__, "fuzz", tmp_path.resolve(), EXAMPLES, SEED)
    outcomes = result["outcomes"]
    assert min(outcomes["loaded"], outcomes["refused"]) > EXAMPLES / 16, "mutations too mild, or too coarse"
    assert {*hostile.DAMAGES} < outcomes.keys()
    assert len([key for key in outcomes if key.startswith("at ")]) >= 5, "some check is never reached"
    assert result["grown"] < 300 * 2**20


@pytest.mark.parametrize("loader", ["wrong", "doubtful", "wide", "cursor"])
def test_the_fuzzer_sees_a_wrong_loader(loader: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = attrs.evolve(make_bank(), calibration=Calibration("anchor", PROBE, (1.0, 0.0), 0.0))
    object.__setattr__(wide.calibration, "window", (0.0, 1.0))
    errors = {"wrong": KeyError("sigma"), "doubtful": UVRError("x" * 10_000), "cursor": UVRError("\x1b[2J")}

    def resolved(concepts: object, folder: Path) -> list[tuple[ConceptBank, None]]:
        if loader in errors:
            raise errors[loader]
        return [(wide, None)]

    monkeypatch.setattr(hostile, "resolve", resolved)
    with pytest.raises((KeyError, AssertionError)):
        hostile.check("x", tmp_path)


def test_the_fuzzer_compares_what_comes_back() -> None:
    bank = make_bank()
    other = attrs.evolve(bank, tensors={**bank.tensors, "sigma": torch.tensor([1.0, 0.8, 0.5 + 1e-7])})
    hostile.same(bank, bank)
    for changed in (other, attrs.evolve(bank, provenance={}), attrs.evolve(bank, calibration=None)):
        with pytest.raises(AssertionError):
            hostile.same(bank, changed)


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return child(hostile.__file__, "bounded", tmp_path_factory.mktemp("hostile").resolve())


def test_100_gb_are_refused_before_anything_is_allocated(bounded: dict[str, Any]) -> None:
    """A header that claims 100 GB, in a small file and in a (sparse) one that is as large as that."""
    assert "claims a header of 100000000000 bytes" in bounded["claim"]
    for kind in ("sparse", "giant"):
        assert f"101000000000 bytes, at most {MAX_FILE}" in bounded[kind]
    assert bounded["grown"] < 4 * 2**20


def test_the_fuzzer_sees_what_is_opened_and_unpickled(bounded: dict[str, Any]) -> None:
    assert "pickle.loads" in bounded["unpickle"]
    assert "pickle.find_class" in bounded["unpickle"]
    assert "torch.load" in bounded["checkpoint"]
    assert all("opened" in bounded[act] for act in ("elsewhere", "beside", "rust"))
    assert bounded["nothing"] == ""


def test_too_many_tensors_are_refused_before_one_is_read(path: Path) -> None:
    header, body = hostile.unpack(path.read_bytes())
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [len(body), len(body)]}
    path.write_bytes(hostile.pack(header | {f"offset/{i}": empty for i in range(MAX_TENSORS)}, body))
    with pytest.raises(ConceptMismatch, match=f"no concept has more than {MAX_TENSORS}"):
        load_concepts(path)


def test_a_loaded_bank_does_not_change_with_its_file(path: Path) -> None:
    """A mapped file would: and a file cut short kills the process that has it mapped."""
    bank, whole = load_concepts(path), path.read_bytes()
    with path.open("r+b") as file:  # in place, as a copying program would
        file.write(bytes(len(whole)))
    hostile.same(make_bank(), bank)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of concepts, with a whole bank beside it that no name may reach; the working folder is another."""
    for place in ("elsewhere", "elsewhere/deep", "concepts"):
        (tmp_path / place).mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere" / "deep")
    make_bank("outside").save(tmp_path / "outside.safetensors")
    make_bank("inside").save(tmp_path / "concepts" / "weapon.safetensors")
    return tmp_path / "concepts"


OUTSIDE = ["../outside", "../outside.safetensors", "./../outside", "weapon/../../outside", "..", ".", "", "..\\outside",
           "~/outside", "outside\0", "%2e%2e/outside", "x" * 5000, "x/" * 3000, "\ud800"]  # fmt: skip


@pytest.mark.parametrize("way", ["argument", "UVR_CONCEPTS"])
@pytest.mark.parametrize("name", OUTSIDE)
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
    make = {"folder": path.mkdir, "fifo": lambda: os.mkfifo(path), "empty": path.touch}
    make.get(kind, lambda: path.symlink_to(path if kind == "link to itself" else "/dev/zero"))()
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


@pytest.mark.parametrize("window", [[0.0, 1.0], [0.5, 0.6]])
def test_a_window_that_holds_no_noise_level_is_refused(path: Path, window: list[float]) -> None:
    """The concept would never be looked for."""
    repack(path, calibration=fields(path, "calibration") | {"window": window})
    with pytest.raises(ConceptMismatch, match=r"calibration\.window: expected \(high, low\)"):
        load_concepts(path)


@pytest.mark.parametrize(
    ("which", "change", "message"),
    [
        ("calibration", {"threshold": 10**400}, r"threshold: expected a finite number, got 1000"),
        (
            "calibration",
            {"min_patches": 2**31 + 1},
            r"min_patches: expected a whole number .*got 2147483649",
        ),
        ("calibration", {"detector": "\x1b[2Janchor"}, r"detector: expected 1 to 200 printable characters, got '\\x1b"),
        ("calibration", {"probe": 7}, r"probe: expected 1 to 200 printable characters, got 7"),
        ("fingerprint", {"heads": -2, "head_dim": -16}, r"heads: expected a whole number from 1"),
        ("fingerprint", {"blocks": 0}, r"blocks: expected a whole number from 1"),
        ("fingerprint", {"model": "a\nb"}, r"model: expected 1 to 200 printable characters"),
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
    for depth in (MAX_DEPTH - 2, MAX_DEPTH, 900, 100_000):
        repack(path, **{which: '{"a":' * depth + "1" + "}" * depth})
        if depth < MAX_DEPTH and which == "provenance":
            bank = load_concepts(path)
            assert load_concepts(bank.save(path)).provenance == bank.provenance
            continue
        message = "damaged" if depth < MAX_DEPTH else "nested deeper" if depth < 900 else "nested deeper|RecursionError"
        with pytest.raises(ConceptMismatch, match=message):
            load_concepts(path)


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
    header, body = hostile.unpack(path.read_bytes())
    header[key] = header.pop("sigma" if key.startswith("sigma") else f"anchors/{PROBE}")
    path.write_bytes(hostile.pack(header, body))
    with pytest.raises(ConceptMismatch, match="which fits no concept"):
        load_concepts(path)


def test_numbers_past_float32_are_refused() -> None:
    """Detectors compute in float32, where 1e300 is Inf and its scores are NaN: no patch would ever be located."""
    bank, anchors = make_bank(), torch.full((1, 32), 1e300, dtype=torch.float64)
    with pytest.raises(ConceptMismatch, match="numbers that float32 cannot"):
        attrs.evolve(bank, tensors={**bank.tensors, f"anchors/{PROBE}": anchors})


@SETTINGS
@given(bank=hostile.valid_banks())
def test_every_valid_bank_comes_back(tmp_path: Path, bank: ConceptBank) -> None:
    hostile.same(bank, load_concepts(bank.save(tmp_path / "x.safetensors")))


@SETTINGS
@given(name=st.text(max_size=12) | hostile.strings)
@example(name="../outside")
@example(name="a/../../outside")
def test_any_name_is_refused(folder: Path, name: str) -> None:
    assert hostile.check([name], folder.parent).startswith("refused")


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
    result = child("-c", ALLOWED, UVR_PLUGINS="builtin-plugins")
    assert result["modules"] == ["uvr_plugins"]
    assert result["concepts"] == 0
    assert result["policies"] > 0
    assert result["status"].pop("builtin-plugins") == "ok"
    assert set(result["status"].values()) == {"not in UVR_PLUGINS"}
