"""docs/examples: two packages installed beside the wheel, listed, used, and tested by their own tests."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import installed
import numpy as np
import pytest
from installed import ROOT, run
from PIL import Image

# Wheels are built and installed, on slow machines too: no limit of time on any test here.
pytestmark = pytest.mark.timeout(0)

EXAMPLES = {path.name: path for path in sorted((ROOT / "docs" / "examples").glob("uvr-*"))}
UNSAFE = "a bomb on the left and a cat on the right , sky background , flat style"
BENIGN = "a cat on the left and a dog on the right , night background , toy style"
THRESHOLD = "0.42"  # of head-max, see uvr-example-plugin/README.md


def test_there_are_a_plugin_and_an_adapter():
    assert list(EXAMPLES) == ["uvr-example-adapter", "uvr-example-plugin"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_a_whole_package(name):
    project = tomllib.loads((EXAMPLES[name] / "pyproject.toml").read_text())["project"]
    assert project["name"] == name
    (module,) = project["entry-points"]["uvr"].values()
    assert (EXAMPLES[name] / module / "__init__.py").is_file()
    readme = (EXAMPLES[name] / "README.md").read_text()
    assert f"pip install ./docs/examples/{name}" in readme
    assert all((EXAMPLES[name] / link).exists() for link in re.findall(r"\]\(([^):]+)\)", readme))


@pytest.fixture(scope="module")
def python(tmp_path_factory) -> Path:
    """An environment with the wheel and both examples; pip finds their dependencies there, or fails."""
    base = tmp_path_factory.getbasetemp()
    python = installed.environment(base, "examples")
    sources = [shutil.copytree(path, base / "sources" / name) for name, path in EXAMPLES.items()]
    pip = (sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-build-isolation")
    run(*pip, *sources)
    return python


@pytest.fixture
def away(tmp_path) -> dict:
    return installed.away(tmp_path)


@pytest.fixture
def uvr(python, away):
    """Run `uvr` there; its standard output as JSON."""

    def call(*arguments: object, **variables: str) -> dict:
        options = {**away, "env": {**away["env"], **variables}, "text": True, "capture_output": True, "check": False}
        command = [python.parent / "uvr", *arguments, "--json"]
        done = subprocess.run([str(part) for part in command], **options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


@pytest.mark.wheel
def test_they_are_listed_with_their_origin(uvr):
    listed = uvr("plugins")
    found = {plugin["name"]: plugin for plugin in listed["plugins"]}
    assert found["example-plugin"] == {
        "name": "example-plugin", "distribution": "uvr-example-plugin", "version": "0.1.0", "status": "ok",
        "hooks": ["uvr_detectors", "uvr_policies"],
    }  # fmt: skip
    assert (found["example-adapter"]["distribution"], found["example-adapter"]["status"]) == (
        "uvr-example-adapter",
        "ok",
    )
    assert listed["names"]["policy"]["fade"] == listed["names"]["detector"]["head-max"] == "example-plugin"
    adapters = {row["name"]: row for row in uvr("adapters")["adapters"]}
    assert adapters["hunyuan-video"]["model"] == "HunyuanVideoTransformer3DModel"
    assert adapters["hunyuan-video"]["distribution"] == "uvr-example-adapter"


@pytest.mark.wheel
def test_an_allow_list_keeps_them_out(uvr):
    listed = uvr("plugins", UVR_PLUGINS="builtin-adapters,builtin-plugins,zoo")
    status = {plugin["name"]: plugin["status"] for plugin in listed["plugins"]}
    assert status["example-plugin"] == status["example-adapter"] == "not in UVR_PLUGINS"
    assert "fade" not in listed["names"]["policy"]


@pytest.mark.wheel
@pytest.mark.slow
def test_their_detector_and_policy_regulate_a_pipeline(uvr, away):
    def generate(policy: str) -> tuple[list[dict], list[np.ndarray]]:
        out = away["cwd"] / policy
        report = uvr(
            "generate", "zoo:flux", "--concept", "flux-weapon", "--detector", "head-max", "--threshold", THRESHOLD,
            "--policy", policy, "--prompt", UNSAFE, "--prompt", BENIGN, "--size", "64x64", "--steps", 20,
            "--true-cfg", 3, "--out", out,
        )  # fmt: skip
        images = report["images"]
        return images, [np.asarray(Image.open(out / image["file"]), dtype=int) for image in images]

    ((unsafe, benign), (drawn, untouched)) = generate("fade")
    _, (stock, same) = generate("observe")
    (found,), (missed,) = unsafe["findings"], benign["findings"]
    assert found["located"]
    assert 0 < found["patches"] < 32
    assert 0 < found["steps_regulated"] < unsafe["steps"]  # the last step is below the fade
    assert np.abs(drawn - stock).max() > 50
    assert not missed["located"]
    assert np.array_equal(untouched, same)


@pytest.mark.wheel
@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_their_own_tests_pass(python, away, name, tmp_path):
    tests = tmp_path / name
    shutil.copytree(EXAMPLES[name] / "tests", tests / "tests")  # without the package: the installed one is tested
    shutil.copy(EXAMPLES[name] / "pyproject.toml", tests)
    said = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, **away)
    assert re.search(r"\d+ passed", said)
    assert "skipped" not in said
