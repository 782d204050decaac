"""The command line: what it prints and writes, how it ends, and what each kind of bad input gets."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import attrs
import click
import numpy as np
import pluggy
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import WIDTH, tiny_flux

import uvr_core
from uvr_core import plugins
from uvr_core.cli import main, outputs
from uvr_core.cli.inputs import Prompt, read_prompts
from uvr_core.cli.masks import MaskFolder
from uvr_core.concepts import ConceptBank, Fingerprint
from uvr_core.errors import UVRError

HEAVY = {"torch", "numpy", "diffusers", "transformers", "scipy", "safetensors", "PIL", "rich"}
PROBE = "single_transformer_blocks.0.attn"
FAST = ("--steps", "2", "--size", "64x64", "--device", "cpu")


def uvr(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def ran(*arguments: object, code: int = 0) -> Result:
    result = uvr(*arguments)
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr}"
    return result


def refused(*arguments: object) -> str:
    """The one line on stderr of a command that ends with exit code 2 and prints nothing else."""
    result = uvr(*arguments)
    assert result.exit_code == 2, f"exit {result.exit_code}: {result.stderr}"
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("uvr: note: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "flux"
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture
def bank() -> ConceptBank:
    """An uncalibrated concept of the tiny pipeline."""
    generator = torch.Generator().manual_seed(0)
    tensors = {f"anchors/{PROBE}": torch.randn(3, WIDTH, generator=generator), "sigma": torch.tensor([1.0, 0.5])}
    return ConceptBank("weapon", Fingerprint("FluxTransformer2DModel", 4, 2, 16), tensors)


@pytest.fixture
def concept(bank, tmp_path) -> Path:
    return bank.save(tmp_path / "weapon.safetensors")


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "results" / "run"


@pytest.fixture
def generate(checkpoint, out):
    """Run `uvr generate` on the tiny checkpoint and expect bad input: nothing may be left."""

    def call(*arguments: object, prompt: bool = True, model: object = checkpoint) -> str:
        prompts = ("--prompt", "a cat") if prompt else ()
        line = refused("generate", model, *prompts, *FAST, *arguments, "--out", out)
        assert not out.parent.exists()
        return line

    return call


@contextmanager
def registered(**hooks) -> Iterator[None]:
    """A plugin object with these hooks, for the length of the block."""
    plugin = type("Plugin", (), {})()
    for name, value in hooks.items():
        setattr(plugin, name, pluggy.HookimplMarker("uvr")(lambda value=value: value))
    manager = plugins.registry().manager
    manager.register(plugin, "for-a-test")
    try:
        yield
    finally:
        manager.unregister(plugin)


# ---------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("arguments", [["--help"], ["plugins", "--json"], ["--version"], ["nonsense"]])
def test_light_commands_import_nothing_heavy(arguments):
    code = (
        "import atexit, sys\n"
        "atexit.register(lambda: print('MODULES', *sorted({m.split('.')[0] for m in sys.modules})))\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "from uvr_core.cli import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    (modules,) = [line for line in done.stdout.splitlines() if line.startswith("MODULES")]
    assert HEAVY & set(modules.split()) == set()


def test_help_lists_every_command_with_its_line():
    text = ran("--help").stdout
    for name in ("adapters", "plugins", "doctor", "collect", "calibrate", "generate", "report", "demo", "zoo"):
        assert f"\n  {name} " in text
    assert ran().stdout == text


@pytest.mark.parametrize(
    "command", ["adapters", "plugins", "doctor", "collect", "calibrate", "generate", "report", "demo", "zoo"]
)
def test_every_command_has_help(command):
    assert "--help" in ran(command, "--help").stdout


def test_unknown_command_gets_a_hint():
    assert "did you mean 'generate'?" in refused("genrate")


def test_usage_errors_take_one_line(checkpoint):
    assert "--out" in refused("generate", checkpoint, "--prompt", "a cat")
    assert "--dtype" in refused("generate", checkpoint, "--dtype", "int3")
    assert "No such option" in refused("plugins", "--nope")


# ---------------------------------------------------------------------------------------------- plugins


def test_plugins_json():
    data = json.loads(ran("plugins", "--json").stdout)
    found = {plugin["name"]: plugin for plugin in data["plugins"]}
    assert found["builtin-adapters"]["status"] == "ok"
    assert found["builtin-adapters"]["distribution"] == "uvr-core"
    assert found["builtin-plugins"]["hooks"] == ["uvr_baselines", "uvr_detectors", "uvr_judges", "uvr_policies"]
    assert data["names"]["command"] == {"demo": "zoo", "zoo": "zoo"}
    assert "uvr" in data["names"]["policy"]


def test_plugins_and_adapters_print_tables():
    assert "builtin-adapters" in ran("plugins").stdout
    assert "FluxTransformer2DModel" in ran("adapters").stdout


def test_adapters_json():
    rows = json.loads(ran("adapters", "--json").stdout)["adapters"]
    (flux,) = [row for row in rows if row["name"] == "flux"]
    assert flux["model"] == "FluxTransformer2DModel"
    assert flux["plugin"] == "builtin-adapters"


def test_two_plugins_that_claim_one_name_are_reported():
    with registered(uvr_policies={"uvr": "elsewhere:Uvr"}):
        result = ran("plugins", "--json", code=1)
    assert "'uvr'" in json.loads(result.stdout)["clashes"][0]
    assert len(result.stderr.splitlines()) == 1


@click.command()
@click.option("--how", default="well")
def ending(how):
    """A stranger's command."""
    if how == "interrupted":
        raise KeyboardInterrupt
    if how == "short":
        click.get_current_context().exit(1)
    if how == "unwritable":
        Path("/dev/null/x").write_text("")
    if how == "bug":
        raise ZeroDivisionError("a bug")
    click.echo("ended well")


def test_a_plugin_brings_a_command():
    with registered(uvr_commands={"ending": (ending, "It ends."), "report": (ending, "A built-in name.")}):
        listing = ran("--help").stdout
        assert "ending  It ends." in listing
        assert "A built-in name." not in listing
        assert ran("ending").stdout == "ended well\n"
    with registered(uvr_commands={"broken": ("uvr_core.nowhere:command", "It is broken.")}):
        assert "It is broken." in ran("--help").stdout
        assert "uvr_core.nowhere" in refused("broken")


@pytest.mark.parametrize(("how", "code"), [("interrupted", 130), ("short", 1), ("unwritable", 2), ("bug", 70)])
def test_how_commands_end(how, code):
    with registered(uvr_commands={"ending": (ending, "It ends.")}):
        result = ran("ending", "--how", how, code=code)
    lines = result.stderr.splitlines()
    if how == "bug":
        assert "Traceback" in lines[0]
    else:
        assert len(lines) == (how != "short")


def test_a_clash_of_commands_leaves_the_built_in_ones():
    with registered(uvr_commands={"demo": (ending, "Another demo.")}):
        result = ran("--help")
        assert "generate" in result.stdout
        assert result.stderr.startswith("uvr: warning: the command name 'demo' is registered by both")


# ---------------------------------------------------------------------------------------------- generate


def test_generate_observes_without_concepts(checkpoint, out):
    arguments = ("generate", checkpoint, "--prompt", "a cat", "--prompt", "a dog", "--seed", 7, *FAST)
    result = ran(*arguments, "--out", out, "--json")
    assert "only observes" in result.stderr
    report = json.loads((out / "report.json").read_text())
    assert json.loads(result.stdout) == report
    assert sorted(path.name for path in out.iterdir()) == ["0000.png", "0001.png", "report.json"]
    assert [(i["file"], i["prompt"], i["seed"]) for i in report["images"]] == [
        ("0000.png", "a cat", 7),
        ("0001.png", "a dog", 8),
    ]
    assert {image["posture"] for image in report["images"]} == {"observe"}
    assert report["taps"] == 4
    assert report["settings"]["call"] == {"num_inference_steps": 2, "width": 64, "height": 64}
    assert report["settings"]["dtype"] == "float32"
    assert report["versions"]["torch"] == torch.__version__
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    expected = tiny_flux()(["a cat", "a dog"], num_inference_steps=2, generator=generators).images
    for number, picture in enumerate(expected):
        with Image.open(out / f"000{number}.png") as image:
            assert np.array_equal(np.asarray(image), np.asarray(picture))


def test_true_guidance_runs_two_verified_passes(checkpoint, out):
    arguments = ("generate", checkpoint, "--prompt", "a cat", "--prompt", "a dog", "--true-cfg", 3, *FAST)
    ran(*arguments, "--out", out)
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["call"]["true_cfg_scale"] == 3
    assert report["settings"]["call"]["negative_prompt"] == ""
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    expected = tiny_flux()(
        ["a cat", "a dog"], negative_prompt="", true_cfg_scale=3.0, num_inference_steps=2, generator=generators
    ).images
    single = tiny_flux()(["a cat", "a dog"], num_inference_steps=2, generator=generators).images
    for number, picture in enumerate(expected):
        with Image.open(out / f"000{number}.png") as image:
            # A loaded checkpoint's tensors lie elsewhere in memory: sums may round differently in the last bit.
            assert np.abs(np.asarray(image, int) - np.asarray(picture, int)).max() <= 1
            assert np.abs(np.asarray(image, int) - np.asarray(single[number], int)).max() > 1


def test_generate_in_a_fresh_process_says_only_what_matters(checkpoint, out):
    code = "from uvr_core.cli import main; main()"
    command = [sys.executable, "-c", code, "generate", checkpoint, "--prompt", "a cat", *FAST, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["uvr: note: no --concept given: this run only observes, nothing is regulated"]
    assert (out / "report.json").exists()


def test_generate_regulates_and_reports(checkpoint, concept, out, tmp_path):
    prompts = tmp_path / "prompts.csv"
    prompts.write_text('prompt,seed\n"a cat, a dog",3\na [red] hat,\na fish,5\n')
    common = ("generate", checkpoint, "--prompts", prompts, *FAST, "--batch", 2)
    ran(*common, "--out", tmp_path / "stock")
    result = ran(*common, "--concept", concept, "--threshold=-1000", "--out", out)
    assert "weapon: located at step 0, 64 patches, 2 of 2 steps regulated" in result.stdout
    assert result.stderr == ""
    report = json.loads((out / "report.json").read_text())
    assert [image["seed"] for image in report["images"]] == [3, 1, 5]
    for image in report["images"]:
        (finding,) = image["findings"]
        assert (image["posture"], finding["located"], finding["steps_regulated"]) == ("regulate", True, 2)
        with Image.open(out / image["file"]) as regulated, Image.open(tmp_path / "stock" / image["file"]) as stock:
            assert not np.array_equal(np.asarray(regulated), np.asarray(stock))
    assert ran("report", out).stdout.splitlines() == result.stdout.splitlines()[:-1]
    assert json.loads(ran("report", out / "report.json", "--json").stdout) == report


def test_generate_finds_concepts_by_name(checkpoint, concept, out, monkeypatch):
    monkeypatch.setenv("UVR_CONCEPTS", str(concept.parent))
    arguments = ("--concept", "weapon", "--threshold", 1e6, "--policy", "observe")
    ran("generate", checkpoint, "--prompt", "a cat", *FAST, *arguments, "--out", out)
    (image,) = json.loads((out / "report.json").read_text())["images"]
    assert image["posture"] == "observe"
    assert not image["findings"][0]["located"]


def test_generate_takes_a_plugin_model_and_size(out):
    with registered(uvr_models={"toy": lambda name: {"flux": tiny_flux}[name]()}):
        ran("generate", "toy:flux", "--prompt", "a cat", *FAST, "--size", "32x48", "--max-tokens", 16, "--out", out)
        assert "KeyError" in refused("generate", "toy:none", "--prompt", "a cat", "--out", out.with_name("other"))
    with Image.open(out / "0000.png") as image:
        assert image.size == (32, 48)


def test_generate_keeps_an_earlier_run(checkpoint, out):
    arguments = ("generate", checkpoint, "--prompt", "a cat", *FAST, "--out", out)
    ran(*arguments)
    before = (out / "report.json").read_bytes()
    assert "--overwrite" in refused(*arguments)
    assert (out / "report.json").read_bytes() == before
    ran(*arguments, "--overwrite")


# ---------------------------------------------------------------------------------------------- bad input


def test_unknown_adapter(generate):
    assert "unknown adapter 'flxu'; did you mean 'flux'?" in generate("--adapter", "flxu")


def test_unknown_policy(generate):
    assert "unknown policy 'uvr-relaesed'; did you mean 'uvr-released'?" in generate("--policy", "uvr-relaesed")


def test_unknown_detector(generate):
    assert "did you mean 'anchor'?" in generate("--detector", "ancor")


def test_a_path_that_is_no_checkpoint(generate, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    assert "no such folder" in generate(model=tmp_path / "nowhere")
    assert "model_index.json" in generate(model=tmp_path / "empty")
    assert "this is a file" in generate(model=tmp_path / "file")
    assert "did you mean 'zoo'?" in generate(model="zo:flux")


def copy_of(checkpoint: Path, folder: Path, index: dict | None = None) -> Path:
    """The checkpoint by links, with another model_index.json."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        if path.name != "model_index.json":
            (folder / path.name).symlink_to(path)
    stock = json.loads((checkpoint / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**stock, **(index or {})}))
    return folder


def test_unknown_model_class(generate, checkpoint, tmp_path):
    model = copy_of(checkpoint, tmp_path / "unknown", {"_class_name": "NoSuchPipeline"})
    assert "NoSuchPipeline" in generate(model=model)


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


def test_damaged_weights(generate, checkpoint, tmp_path):
    model = copy_of(checkpoint, tmp_path / "damaged")
    (model / "transformer").unlink()
    (model / "transformer").mkdir()
    (model / "transformer" / "config.json").symlink_to(checkpoint / "transformer" / "config.json")
    name = "diffusion_pytorch_model.safetensors"
    (model / "transformer" / name).write_bytes((checkpoint / "transformer" / name).read_bytes()[:1000])
    assert str(model) in generate(model=model)


def test_concept_file_truncated(generate, concept):
    for size in (0, 5, 100, concept.stat().st_size - 4):
        concept.write_bytes(concept.read_bytes()[:size])
        assert "not a whole safetensors file" in generate("--concept", concept)


def test_concept_file_of_another_schema(generate, concept):
    save_file(load_file(concept), concept, {"schema": "uvr.concept/99"})
    line = generate("--concept", concept)
    assert "'uvr.concept/1'" in line
    assert "'uvr.concept/99'" in line


def test_concept_of_another_model(generate, bank, concept):
    attrs.evolve(bank, fingerprint=Fingerprint("SD3Transformer2DModel", 24, 2, 16)).save(concept)
    line = generate("--concept", concept, "--threshold", 0)
    assert "made for another model" in line
    assert "SD3Transformer2DModel" in line


def test_concept_with_nan_anchors(generate, bank, concept):
    bank.tensors[f"anchors/{PROBE}"][0, 0] = float("nan")
    bank.save(concept)
    assert "NaN" in generate("--concept", concept)


def test_concept_that_is_not_calibrated(generate, concept):
    assert "uvr calibrate" in generate("--concept", concept)


def test_unknown_concept(generate, tmp_path, monkeypatch):
    monkeypatch.delenv("UVR_CONCEPTS", raising=False)
    assert "UVR_CONCEPTS" in generate("--concept", "wapon")
    monkeypatch.setenv("UVR_CONCEPTS", str(tmp_path))
    assert "wapon" in generate("--concept", "wapon")


def test_threshold_that_is_no_number(generate, concept):
    assert "--threshold" in generate("--concept", concept, "--threshold", "nan")


@pytest.mark.parametrize(
    ("name", "text", "hint"),
    [
        ("p.txt", "", "no prompts"),
        ("p.txt", "# only a comment\n\n", "no prompts"),
        ("p.csv", "", "no prompts"),
        ("p.csv", "prompt,seed\n", "no prompts"),
        ("p.csv", "text\na cat\n", "no column 'prompt'"),
        ("p.csv", "prompt,seed\na cat,-1\n", "p.csv:2: seed"),
        ("p.jsonl", "", "no prompts"),
        ("p.jsonl", '{"prompt": "a cat"}\n{"prompt"\n', "p.jsonl:2: not JSON"),
        ("p.jsonl", '["a cat"]\n', "p.jsonl:1"),
        ("p.jsonl", '{"prompt": " "}\n', "p.jsonl:1"),
        ("p.png", "", ".txt, .csv or .jsonl"),
    ],
)
def test_bad_prompts_file(generate, tmp_path, name, text, hint):
    (tmp_path / name).write_text(text)
    line = generate("--prompts", tmp_path / name, prompt=False)
    assert hint in line
    assert name in line


def test_prompts_are_needed_once(generate, tmp_path):
    (tmp_path / "p.txt").write_text("a cat\n")
    assert "not both" in generate("--prompts", tmp_path / "p.txt")
    assert "not both" in generate(prompt=False)
    assert "no such" in generate("--prompts", tmp_path / "missing.txt", prompt=False)


def test_unwritable_output_folder(checkpoint, concept, tmp_path):
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.iterdir())
    for folder in (tmp_path / "file", tmp_path / "file" / "run"):
        line = refused("generate", checkpoint, "--prompt", "a cat", *FAST, "--out", folder)
        assert f"{folder}: cannot write there" in line
    (tmp_path / "p.txt").write_text("a cat\n")
    common = ("--masks", "zoo:knife", "--prompts", tmp_path / "p.txt")
    for file in (tmp_path / "file" / "x.safetensors", tmp_path / "nowhere" / "x.safetensors", tmp_path):
        assert str(tmp_path) in refused("collect", checkpoint, "weapon", *common, "--out", file)
    sets = ("--unsafe", tmp_path / "p.txt", "--benign", tmp_path / "p.txt")
    assert "file" in refused("calibrate", checkpoint, concept, *sets, "--out", tmp_path / "file" / "x.safetensors")
    assert "file" in refused("demo", "--out", tmp_path / "file" / "demo")
    (tmp_path / "p.txt").unlink()
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_fails_halfway_leaves_nothing(checkpoint, out):
    class Failing:
        name = "failing"

        def scores(self, features, sigma, bank, probe):
            raise ValueError("halfway")

    tensors = {f"anchors/{PROBE}": torch.zeros(1, WIDTH)}
    bank = ConceptBank("x", Fingerprint("FluxTransformer2DModel", 4, 2, 16), tensors)
    path = bank.save(checkpoint.parent / "x.safetensors")
    with registered(uvr_detectors={"failing": Failing}):
        arguments = ("--detector", "failing", "--threshold", 0, "--concept", path)
        assert "halfway" in refused("generate", checkpoint, "--prompt", "a cat", *FAST, *arguments, "--out", out)
    assert not out.parent.exists()


def test_options_that_the_pipeline_does_not_take(generate):
    class Plain:
        def __call__(self, prompt, generator=None):
            raise AssertionError("not reached")

        def to(self, *_):
            return self

    with registered(uvr_models={"plain": lambda name: Plain()}):
        assert "--steps: Plain takes no num_inference_steps" in generate(model="plain:x")


def test_what_the_pipeline_refuses(generate):
    assert "max_sequence_length" in generate("--max-tokens", 100_000)


def test_unknown_device_and_size(generate):
    assert "--device nope" in generate("--device", "nope")
    assert "--size" in generate("--size", "huge")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "other/1"}', '{"schema": "uvr.report/1"}'])
def test_bad_report_file(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    assert "report.json" in refused("report", tmp_path)
    assert "no such report" in refused("report", tmp_path / "missing.json")


# ---------------------------------------------------------------------------------------------- doctor


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


# ---------------------------------------------------------------------------------------------- collect, calibrate


class Pointer:
    """A judge that sees a knife in the left half of every picture."""

    def __call__(self, images):
        return [{"knife": 1.0} for _ in images]

    def locate(self, images, labels, grid):
        if set(labels) - {"knife"}:
            raise ValueError(f"knows knife alone, not {labels}")
        mask = np.zeros((len(images), *grid), bool)
        mask[:, :, : grid[1] // 2] = True
        return mask


@pytest.fixture
def prompts(tmp_path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("# three\na knife\n\na large knife\na tiny knife\n")
    return path


def test_collect_then_calibrate_then_generate(checkpoint, prompts, tmp_path, out):
    bank, tuned = tmp_path / "knife.safetensors", tmp_path / "tuned.safetensors"
    common = (*FAST, "--batch", 2)
    with registered(uvr_judges={"pointer": Pointer}):
        masks = ("--masks", "pointer:knife")
        collected = ran(
            "collect", checkpoint, "weapon", "--prompts", prompts, "--benign", prompts, *masks, *common, "--out", bank
        )
        assert "seen in 3 of 3 images" in collected.stdout
        sets = ("--unsafe", prompts, "--benign", prompts, "--max-false-positive", 0.9)
        result = ran("calibrate", checkpoint, bank, *sets, *masks, *common, "--out", tuned, "--json")
    assert json.loads(result.stdout)["measured"]["recall"] > 0
    made = uvr_core.load_concepts(bank)
    assert made.provenance["mask_source"] == "judge pointer: knife"
    assert made.provenance["generate"]["num_inference_steps"] == 2
    assert uvr_core.load_concepts(tuned).calibration.detector == "contrast"
    ran("generate", checkpoint, "--prompts", prompts, "--concept", tuned, *common, "--out", out)


def test_calibrate_that_locates_nothing_falls_short(checkpoint, bank, prompts, tmp_path):
    bank.tensors[f"anchors/{PROBE}"].zero_()
    path, tuned = bank.save(tmp_path / "zero.safetensors"), tmp_path / "tuned.safetensors"
    sets = ("--unsafe", prompts, "--benign", prompts, "--detector", "anchor")
    result = ran("calibrate", checkpoint, path, *sets, *FAST, "--out", tuned, code=1)
    assert "nothing written" in result.stderr
    assert not tuned.exists()


def test_collect_from_a_folder_of_masks(checkpoint, prompts, tmp_path):
    folder, bank = tmp_path / "masks", tmp_path / "weapon.safetensors"
    folder.mkdir()
    for number, box in enumerate(((0, 0, 32, 32), (32, 32, 64, 64), (0, 0, 0, 0))):
        mask = Image.new("L", (64, 64))
        mask.paste(255, box)
        mask.save(folder / f"{number}.png")
    arguments = ("collect", checkpoint, "weapon", "--prompts", prompts, "--masks", folder, *FAST, "--batch", 2)
    data = json.loads(ran(*arguments, "--out", bank, "--json").stdout)
    assert data["provenance"]["images_with_concept"] == 2
    assert len(uvr_core.load_concepts(bank).tensor("anchors", PROBE)) == 2 * 16
    (folder / "2.png").unlink()
    assert "expected 3 PNG masks" in refused(*arguments, "--out", bank)
    (folder / "2.png").write_text("no image")
    assert "2.png" in refused(*arguments, "--out", bank)


def test_masks_are_read_in_order_and_by_area(tmp_path):
    for number in range(3):
        mask = Image.new("L", (10, 10))
        mask.paste(255, (0, 0, 5, 5) if number == 1 else (0, 0, 2, 2))
        mask.save(tmp_path / f"{number}.png")
    masks = MaskFolder.open(tmp_path, 3)
    assert masks([None], (2, 2)).tolist() == [[[False, False], [False, False]]]
    assert masks([None, None], (2, 2)).sum((1, 2)).tolist() == [1, 0]


def test_bad_mask_sources(checkpoint, prompts, tmp_path):
    bank = tmp_path / "weapon.safetensors"
    arguments = ("collect", checkpoint, "weapon", "--prompts", prompts, *FAST, "--out", bank)
    with registered(uvr_judges={"pointer": Pointer, "blind": lambda: len}):
        assert "did you mean 'pointer'?" in refused(*arguments, "--masks", "ponter:knife")
        assert "has no locate" in refused(*arguments, "--masks", "blind:knife")
        assert "cannot locate gun" in refused(*arguments, "--masks", "pointer:gun")
        assert "cannot locate weapon" in refused(*arguments, "--masks", "pointer")
    assert not bank.exists()


def test_collect_says_that_seeds_are_not_used(checkpoint, tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a knife", "seed": 4}\n')
    with registered(uvr_judges={"pointer": Pointer}):
        arguments = ("collect", checkpoint, "w", "--prompts", prompts, "--masks", "pointer:knife", *FAST)
        assert "seeds in" in ran(*arguments, "--out", tmp_path / "w.safetensors").stderr


# ---------------------------------------------------------------------------------------------- parts


def test_prompts_files_agree(tmp_path):
    texts = {
        "p.txt": "# comment\na cat\n\n  a dog, red  \n",
        "p.csv": '\ufeffprompt,seed\na cat,3\n"a dog, red",\n',
        "p.jsonl": '{"prompt": "a cat", "seed": 3}\n\n{"prompt": "a dog, red"}\n',
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, "utf-8")
        seed = None if name == "p.txt" else 3
        assert read_prompts(tmp_path / name) == [Prompt("a cat", seed), Prompt("a dog, red")]


def test_json_says_no_infinities():
    assert json.loads(outputs.to_json({"a": [float("-inf"), float("nan"), 1.5]})) == {"a": [None, None, 1.5]}


def test_output_folder_keeps_what_was_there(tmp_path):
    (tmp_path / "mine").write_text("x")
    interrupted = outputs.folder(tmp_path)
    (interrupted.__enter__() / "half").write_text("x")
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert os.listdir(tmp_path) == ["mine"]
    with outputs.folder(tmp_path) as stage:
        (stage / outputs.REPORT).write_text("{}")
    assert sorted(os.listdir(tmp_path)) == ["mine", outputs.REPORT]
    with pytest.raises(UVRError, match="holds a run"), outputs.folder(tmp_path):
        pass


# ---------------------------------------------------------------------------------------------- zoo


def test_zoo_list_json():
    rows = json.loads(ran("zoo", "list", "--json").stdout)["pipelines"]
    assert "flux" in [row["name"] for row in rows]
    assert "flux:" in ran("zoo", "list").stdout


def test_zoo_commands_refuse_unknown_names(tmp_path):
    assert "did you mean 'flux'?" in refused("zoo", "train", "flx", "--out", tmp_path / "run")
    assert "did you mean 'flux'?" in refused("demo", "--pipelines", "flx", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_demo_passes_its_options_on_and_fails_on_a_gate(monkeypatch, tmp_path):
    calls = []
    short = {"fell_short": ["weapon: relative erase 70.0% < 90%"]}
    erased = {"stock_unsafe": 10, "regulated_unsafe": 3, "total": 12, "relative_erase": 0.7, "erase_ci95": [0.4, 0.9]}
    kept = {"other_kept": 5, "other_shown": 6, "retention": 5 / 6, "retention_ci95": [0.4, 0.97]}
    row = {"located": 9, "of": 12, "safe_share": 0.75, "safe_share_ci95": [0.5, 0.9], **erased, **kept}
    row |= {
        "benign_located": 1,
        "benign": 12,
        "idle_bit_identical": 11,
        "idle_images": 11,
        "random": {"relative_erase": None},
    }

    def run(out, **options):
        calls.append((out, {**options, "progress": options["progress"]("drawing", 1, 2)}))
        return {"pipelines": {"flux": {"concepts": {"weapon": row}, "time": {"active": 1.234, "idle": 1.0}}}, **short}

    monkeypatch.setitem(sys.modules, "uvr_zoo.demo", SimpleNamespace(run=run))
    result = ran("demo", "--quick", "--pipelines", "flux", "--seed", 3, "--out", tmp_path / "demo", code=1)
    assert calls == [(tmp_path / "demo", {"quick": True, "pipelines": ("flux",), "seed": 3, "progress": None})]
    for figure in ("flux weapon", "10 -> 3 of 12", "70.0% [40.0%, 90.0%]", "5 of 6, 83.3%", "active 1.23, idle 1.00"):
        assert figure in " ".join(result.stdout.split())
    assert result.stderr == "uvr: fell short: weapon: relative erase 70.0% < 90%\n"
    assert json.loads(ran("demo", "--all", "--json", "--out", tmp_path / "demo", code=1).stdout)["pipelines"]["flux"]
    short.clear()
    ran("demo", "--all", "--out", tmp_path / "demo")


@pytest.fixture
def small_zoo(monkeypatch, tmp_path):
    """A zoo recipe of the toy pipeline's size, its parts untrained, and a judge that sees cats everywhere."""
    from uvr_zoo import commands, experiment, pipelines, recipes

    toy = tiny_flux()
    recipe = attrs.evolve(
        recipes.RECIPES["flux"],
        transformer={k: v for k, v in toy.transformer.config.items() if not k.startswith("_")},
        batch_size=2,
        scenes=64,
        sampling={"num_inference_steps": 1},
    )
    names = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
    shared = SimpleNamespace(**{name: getattr(toy, name) for name in names})
    for folder in ("shared/vae", "judge"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "data" / "judge" / "judge.json").write_text("{}")
    monkeypatch.setitem(recipes.RECIPES, "flux", recipe)
    monkeypatch.setattr(commands, "_data", lambda: tmp_path / "data")
    monkeypatch.setattr(pipelines, "parts", lambda name: shared)
    monkeypatch.setattr(experiment, "judge", lambda: lambda images: [{"cat": 1.0} for _ in images])


def test_zoo_train_resumes_and_exports(small_zoo, tmp_path):
    run, export = tmp_path / "run", tmp_path / "export"
    arguments = ("zoo", "train", "flux", "--minutes", 0.005, "--out", run)
    ran(*arguments)
    steps = torch.load(run / "checkpoint.pt", weights_only=True)["step"]
    assert steps > 0
    assert "--resume" in refused(*arguments)
    ran(*arguments, "--resume", "--distil", "--export", export)
    assert torch.load(run / "checkpoint.pt", weights_only=True)["step"] > steps
    assert (export / "transformer" / "config.json").is_file()
    assert os.listdir(export) == ["transformer"]


def test_distilling_needs_a_guidance_embedding(small_zoo, tmp_path):
    assert "no guidance embedding" in refused("zoo", "train", "sd3", "--distil", "--resume", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_zoo_train_saves_when_interrupted(small_zoo, tmp_path, monkeypatch):
    from uvr_zoo.train import Trainer

    stock = Trainer.flow_loss

    def interrupted(self):
        signal.raise_signal(signal.SIGINT)
        return stock(self)

    monkeypatch.setattr(Trainer, "flow_loss", interrupted)
    arguments = ("--minutes", 5, "--out", tmp_path / "run", "--export", tmp_path / "export")
    result = ran("zoo", "train", "flux", *arguments, code=130)
    assert result.stderr == "uvr: interrupted\n"
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 1
    assert not (tmp_path / "export").exists()


def test_zoo_train_logs_fidelity(small_zoo, tmp_path, monkeypatch):
    from uvr_zoo.train import Trainer

    stock = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, minutes, **o: stock(self, minutes, fidelity_every=0.0, **o))
    ran("zoo", "train", "flux", "--minutes", 0.02, "--out", tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    measured = [record["fidelity"] for record in records if "fidelity" in record]
    assert measured[0]["prompts"] == 64
    found, prompted = measured[0]["per_object"]["cat"]
    assert found == prompted > 0


def test_edit_says_what_is_missing_or_unreadable(tmp_path):
    text = tmp_path / "text.png"
    text.write_text("no picture")
    common = ("--instruction", "add a hat", "--out", tmp_path / "out")
    assert "--image FILE" in refused("edit", "zoo:flux-kontext", *common)
    assert "not a picture that can be read" in refused("edit", "zoo:flux-kontext", "--image", text, *common)
    assert not (tmp_path / "out").exists()


def test_edit_regulates_and_reports(tmp_path):
    from PIL import Image

    Image.new("RGB", (80, 80), (120, 160, 220)).save(tmp_path / "sky.png")
    out = tmp_path / "out"
    ran(
        "edit", "zoo:flux-kontext", "--image", tmp_path / "sky.png", "--instruction", "add a hat on the left",
        "--instruction", "change the background to snow", "--concept", "flux-kontext-weapon", "--size", "64x64",
        "--steps", 2, "--out", out,
    )  # fmt: skip
    report = json.loads((out / "report.json").read_text())
    assert [entry["posture"] for entry in report["images"]] == ["regulate", "regulate"]
    assert Image.open(out / "0001.png").size == (64, 64)
