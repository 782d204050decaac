"""uvr doctor: what it prints, and with which exit code it ends."""

from __future__ import annotations

import json
from pathlib import Path

import attrs
import pytest
from click.testing import CliRunner
from commands import copy_of, ran, refused, registered
from conformance import SD3

from uvr_core.cli import main
from uvr_core.doctor.compatibility import SITUATIONS

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_checks_of_a_known_class() -> None:
    shown = ran("doctor", "SD3Transformer2DModel", code=0).stdout
    assert "adapter sd3: 2 joint attention blocks" in shown
    assert "transformer_blocks.1.attn" in shown
    assert "not regulated: pooled text: CLIP's embeddings" in " ".join(shown.split())
    data = json.loads(ran("doctor", "SD3Transformer2DModel", "--json", code=0).stdout)
    assert data["adapter"] == "sd3"
    assert {check["name"]: check["status"] for check in data["checks"]} | dict.fromkeys(
        ("published-size", "ragged"), "passed"
    ) == {check["name"]: "passed" for check in data["checks"]}


def test_a_check_that_fails_ends_with_1() -> None:
    upside_down = attrs.evolve(SD3, name="upside-down", image_at="end")
    arguments = ("SD3Transformer2DModel", "--adapter", "upside-down")
    with registered(uvr_adapters={"upside-down": upside_down}):
        data = json.loads(ran("doctor", *arguments, "--json", code=1).stdout)
        shown = ran("doctor", *arguments, code=1).stdout
    wrong = {check["name"]: check["message"] for check in data["checks"] if check["status"] == "failed"}
    assert {"last-block", "edit-lands"} <= set(wrong)
    assert "patch 0 lies at row 0" in wrong["last-block"]
    assert "upside-down" in shown


@pytest.mark.parametrize(
    ("name", "message"),
    [("SD3Transformer2DModl", "did you mean 'SD3Transformer2DModel'"),
     ("StableDiffusion3Pipeline", "no model class 'StableDiffusion3Pipeline'"),
     ("SanaTransformer2DModel", "no module was found in which text and picture attend to each other"),
     ("AnyFlowTransformer3DModel", "forward requires r_timestep, which UVR cannot make up"),
     ("HunyuanDiT2DModel", "no small version of HunyuanDiT2DModel runs; by its source it reads the text in a cross-")],
)  # fmt: skip
def test_bad_input(name: str, message: str) -> None:
    assert message in refused("doctor", name)


EXAMPLE = """
import attrs
from uvr_core.testing.tiny import tiny_example

EXAMPLE_NAME = "example"

def example():
    return attrs.evolve(tiny_example("SD3Transformer2DModel"), sizes=((4, 2),), guidance="batched:cu")
"""


def test_an_example_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uvr_by_hand.py").write_text(EXAMPLE)
    arguments = ("doctor", "SD3Transformer2DModel", "--example")
    data = json.loads(ran(*arguments, "uvr_by_hand:example", "--json", code=1).stdout)
    wrong = {check["name"] for check in data["checks"] if check["status"] == "failed"}
    assert wrong == {"guidance", "guidance-parts"}, "the example says how the family guides"
    assert "expected module:function, got AttributeError" in refused(*arguments, "uvr_by_hand:examples")
    assert "expected module:function, got ModuleNotFoundError" in refused(*arguments, "no_such_module:example")
    assert "a function that gives an Example, got str" in refused(*arguments, "uvr_by_hand:EXAMPLE_NAME")
    other = ("doctor", "PRXTransformer3DModel", "--example", "uvr_by_hand:example")
    assert "no model class" in refused(*other)


ADAPTER = """
import attrs
from uvr_adapters.sd3 import SD3

MINE = attrs.evolve(SD3, name="mine", guidance="batched:cu")
"""


def test_an_adapter_and_an_example_in_files_that_no_package_registers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "uvr_ported.py").write_text(EXAMPLE + ADAPTER)
    arguments = ("doctor", "SD3Transformer2DModel", "--example", "uvr_ported:example", "--adapter")
    data = json.loads(ran(*arguments, "uvr_ported:MINE", "--json", code=0).stdout)
    assert data["adapter"] == "mine"
    assert "expected module:ADAPTER, got AttributeError" in refused(*arguments, "uvr_ported:MINES")
    assert "expected an Adapter, got str" in refused(*arguments, "uvr_ported:EXAMPLE_NAME")
    assert "unknown adapter 'mine'" in refused(*arguments, "mine")


@pytest.mark.parametrize("as_json", [False, True])
def test_doctor_prints_the_matrix(as_json: bool) -> None:
    result = CliRunner().invoke(main, ["doctor", "--matrix", *["--json"] * as_json], env={"COLUMNS": "400"})
    assert result.exit_code == 0, result.output
    if as_json:
        assert json.loads(result.stdout)["situations"] == [json.loads(json.dumps(attrs.asdict(s))) for s in SITUATIONS]
    else:
        lines = result.stdout.splitlines()
        for s in SITUATIONS:
            assert any(line.startswith(s.name) and s.outcome in line and s.note in line for line in lines), s.name


def test_doctor_still_wants_a_model() -> None:
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 2


def test_model_that_no_adapter_recognises(checkpoint, tmp_path, out):
    folder = tmp_path / "transformer"
    folder.mkdir()
    config = {
        "_class_name": "PixArtTransformer2DModel",
        "num_layers": 1,
        "num_attention_heads": 1,
        "caption_channels": 8,
    }
    (folder / "config.json").write_text(json.dumps(config))
    assert "no adapter recognises PixArtTransformer2DModel" in refused("doctor", folder)
    (folder / "config.json").write_text('{"_class_name": "NoSuchModel"}')
    assert "no model class 'NoSuchModel'" in refused("doctor", folder)
    (folder / "config.json").write_text('{"_class_name"')
    assert str(folder) in refused("doctor", folder)


def test_doctor_lists_taps_without_weights(checkpoint, tmp_path):
    model = copy_of(checkpoint, tmp_path / "bare")
    (model / "transformer").unlink()
    (model / "transformer").mkdir()
    (model / "transformer" / "config.json").symlink_to(checkpoint / "transformer" / "config.json")
    data = json.loads(ran("doctor", model, "--json").stdout)
    assert data["adapter"] == "flux"
    assert data["fingerprint"] == {"model": "FluxTransformer2DModel", "blocks": 4, "heads": 2, "head_dim": 16}
    assert [tap["path"] for tap in data["taps"]][:2] == ["transformer_blocks.0.attn", "transformer_blocks.1.attn"]
    assert "transformer_blocks.0.attn" in ran("doctor", model / "transformer", "--adapter", "flux").stdout
