"""Flows between text, output and reference: exact, harmless, and read by rules that can say "no"."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from tiny import example
from torch.utils._python_dispatch import TorchDispatchMode

import uvr_core
import uvr_zoo
from uvr_core import figures
from uvr_core.analysis import (
    LOCATED,
    OUTPUT,
    REFERENCE,
    REST,
    TEXT,
    Flows,
    boundary,
    flows,
    localisation,
    stages,
)
from uvr_core.cli import main
from uvr_core.errors import UVRError
from uvr_core.fit.scores import auroc_of

PROMPTS = ["a cat", "a knife on the left and a dog on the right , night background"]
N = 64  # output patches
# Where the families put their tokens, said apart from the adapters: (text, output, reference) of `keys` tokens.
SPANS = {
    "flux": lambda keys: (slice(0, 32), slice(32, 96), slice(96, 96)),
    "flux-kontext": lambda keys: (slice(0, 32), slice(32, 96), slice(96, 160)),
    "sd3": lambda keys: (slice(64, keys), slice(0, 64), slice(64, 64)),
    "qwen-image": lambda keys: (slice(0, keys - 64), slice(keys - 64, keys), slice(keys, keys)),
    "qwen-image-edit": lambda keys: (slice(0, keys - 128), slice(keys - 128, keys - 64), slice(keys - 64, keys)),
}
EDITS = ("flux-kontext", "qwen-image-edit")
SOURCES = [Image.new("RGB", (64, 64), colour) for colour in ("teal", "orange")]
MASKS = np.zeros((2, 8, 8), bool)
MASKS[0, 2:5, 1:4] = MASKS[1, :, 6] = True


@functools.cache
def pipeline(name: str) -> Any:
    """A zoo pipeline, its transformer tiny and random."""
    return example(name).pipeline


def options(name: str, steps: int = 2, guided: bool = True) -> dict[str, Any]:
    """Keyword arguments of a pipeline's call, with guidance's second branch or without."""
    scale = 3.0 if guided else 1.0
    made: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": steps}
    made |= {"guidance_scale": scale} if name == "sd3" else {"true_cfg_scale": scale}
    if guided and name != "sd3":
        made["negative_prompt"] = "a dog"
    if name == "flux-kontext":
        made |= {"max_area": 64 * 64, "_auto_resize": False}
    return made


def sources(name: str) -> list[Image.Image] | None:
    return SOURCES if name in EDITS else None


def measured(name: str, **more: Any) -> Flows:
    given = {"generate": options(name), **more}
    return flows(pipeline(name), PROMPTS, sources(name), **given)


def draw(pipe: Any, name: str, **call: Any) -> list[Image.Image]:
    """The pictures of PROMPTS, with the seeds that `flows` takes."""
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    given = {"image": SOURCES} if name in EDITS else {}
    if "negative_prompt" in call:
        call["negative_prompt"] = [call["negative_prompt"]] * 2
    return pipe(prompt=PROMPTS, generator=generators, **given, **call).images  # type: ignore[no-any-return]


def materialised(name: str, tokens: list[int] | None, masks: np.ndarray | None = None) -> np.ndarray:
    """`share`, from the whole attention matrix in float64. `tokens`: text tokens that are no padding, per image."""
    pipe, calls = pipeline(name), []
    with uvr_core.attach(pipe) as reg, torch.no_grad(), reg.recording(calls.append):
        draw(pipe, name, **options(name))
    share = np.full((2, 2, len(reg.taps), 5, 5), np.nan)
    for call in calls:
        q, k = call.query.double(), call.key.double()
        logits = q @ k.mT * (q.shape[-1] ** -0.5 if call.scale is None else call.scale)
        if call.mask is not None:
            assert call.mask.dtype == torch.bool
            logits = logits.masked_fill(~call.mask, -torch.inf)
        attention = logits.softmax(-1).mean(1).numpy()  # (B, Sq, Sk)
        for image, weights in enumerate(attention):
            text, output, reference = (np.arange(weights.shape[1])[span] for span in SPANS[name](weights.shape[1]))
            own = text if tokens is None else text[: tokens[image]]
            roles = [own, output, reference]
            if masks is not None:
                roles += [output[masks[image].ravel()], output[~masks[image].ravel()]]
            for x, rows in enumerate(roles):
                for y, columns in enumerate(roles):
                    if len(rows):
                        share[image, call.forward.step, reg.taps.index(call.tap), x, y] = (
                            weights[rows][:, columns].sum(1).mean()
                        )
    return share


# ---------------------------------------------------------------------------------------------- exact and harmless


@pytest.mark.parametrize("name", SPANS)
def test_flows_are_those_of_the_whole_attention_matrix(name: str) -> None:
    """Text first and last, references, guidance in one batch and in two passes, masked text, known masks."""
    found = measured(name, masks=MASKS)
    tokens = None
    if name.startswith("qwen"):
        given = {} if name == "qwen-image" else {"image": SOURCES}
        tokens = pipeline(name).encode_prompt(prompt=PROMPTS, **given)[1].sum(1).tolist()
        assert tokens[0] < tokens[1]  # the first is padded
        assert found.counts[:, TEXT].tolist() == tokens
    expected = materialised(name, tokens, MASKS)
    np.testing.assert_allclose(found.share, expected, atol=2e-6)
    assert found.counts[:, OUTPUT].tolist() == [N, N]
    assert found.counts[:, REFERENCE].tolist() == [N * (name in EDITS)] * 2
    assert found.counts[:, LOCATED].tolist() == [9, 8]
    assert np.isnan(found.share[:, :, :, REFERENCE]).all() == (name not in EDITS)
    there = [TEXT, OUTPUT, LOCATED, REST] + [REFERENCE] * (name in EDITS)
    np.testing.assert_allclose(found.share[:, :, :, there, :LOCATED].sum(-1), 1, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "sd3", "qwen-image"])
def test_the_pass_that_follows_the_prompt_is_the_one_measured(name: str) -> None:
    """Of the first step, in which guidance has changed nothing yet: text, output and all their flows."""
    with_guidance = measured(name)
    alone = measured(name, generate=options(name, guided=False))
    np.testing.assert_allclose(with_guidance.share[:, 0], alone.share[:, 0], atol=2e-6)
    assert np.nanmax(np.abs(with_guidance.share[:, 1] - alone.share[:, 1])) > 1e-5


@pytest.mark.parametrize("name", SPANS)
def test_the_pictures_are_bitwise_stock(name: str) -> None:
    pipe = pipeline(name)
    stock = draw(pipe, name, **options(name))
    found = measured(name, masks=lambda images, grid: MASKS)
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stock, found.images, strict=True))
    again = draw(pipe, name, **options(name))  # and nothing stays behind
    assert all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in zip(stock, again, strict=True))


def test_the_attention_matrix_is_never_held() -> None:
    class Largest(TorchDispatchMode):
        square = False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, (tuple, list)) else [result]:
                if isinstance(x, torch.Tensor) and x.dim() > 2:
                    Largest.square |= x.shape[-2:] == (96, 96)
            return result

    with Largest():
        measured("flux", masks=MASKS)
    assert not Largest.square


# ---------------------------------------------------------------------------------------------- masks and batches


def test_masks_that_come_late_tell_readers_apart_and_not_what_is_read() -> None:
    asked = []

    def judge(images: Any, grid: tuple[int, int]) -> np.ndarray:
        asked.append((len(images), grid))
        return MASKS[: len(images)]

    late, ahead = measured("flux-kontext", masks=judge), measured("flux-kontext", masks=MASKS)
    assert asked == [(2, (8, 8))]
    np.testing.assert_allclose(late.share[..., :LOCATED], ahead.share[..., :LOCATED], atol=1e-6)
    assert np.isnan(late.share[..., LOCATED:]).all()
    assert np.isfinite(ahead.share).all()
    assert late.counts.tolist() == ahead.counts.tolist()
    assert ("text", "located") in late.directions()
    assert ("located", "rest") not in late.directions()
    assert ("located", "rest") in ahead.directions()


def test_an_image_without_the_concept_counts_in_no_located_flow() -> None:
    found = measured("flux", masks=np.stack([MASKS[0], np.zeros((8, 8), bool)]))
    assert np.isnan(found.share[1, :, :, LOCATED]).all()
    assert found.to_dict()["directions"]["text to located"]["images"] == 1
    assert found.to_dict()["directions"]["text to rest"]["images"] == 2


def test_batches_change_nothing_and_image_i_has_its_own_seed() -> None:
    whole, parts = measured("flux", masks=MASKS), measured("flux", masks=MASKS, batch_size=1, seed=[0, 1])
    np.testing.assert_allclose(whole.share, parts.share, atol=2e-6)
    assert parts.counts.tolist() == whole.counts.tolist()
    assert len(parts.images) == 2
    assert np.array_equal(parts.masks, MASKS)
    assert not np.allclose(measured("flux", seed=[0, 7]).share[1], whole.share[1], atol=1e-6)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"masks": MASKS[:1]}, "masks: expected one per prompt"),
        ({"masks": np.ones((2, 4, 4))}, "64\\) output patches"),
        ({"seed": [1]}, "seeds: expected one per prompt"),
        ({"sources": SOURCES[:1]}, "source images: expected one per prompt"),
        ({"prompts": [" "]}, "no prompts given"),
    ],
)
def test_what_does_not_match_is_refused(more: dict[str, Any], words: str) -> None:
    given = {"prompts": PROMPTS, "generate": options("flux", 1), **more}
    with pytest.raises(UVRError, match=words):
        flows(pipeline("flux"), given.pop("prompts"), given.pop("sources", None), **given)


def test_units() -> None:
    """Direction, mass per token, and mass in units of uniform attention."""
    share = np.full((1, 4, 2, 5, 5), np.nan, np.float32)
    share[..., OUTPUT, :LOCATED] = [0.3, 0.5, 0.2]
    share[..., TEXT, :LOCATED] = [0.6, 0.4, 0.0]
    counts = np.array([[10, 20, 10, 0, 0]])
    found = Flows(share, counts, ("a", "b"), [1.0, 0.8, 0.5, 0.2], (4, 5), [None])
    assert found.curve("text", "output")[0] == pytest.approx([0.3] * 4)  # output reads text
    assert found.curve("output", "text")[0] == pytest.approx([0.4] * 4)
    assert found.by_block("reference", "output").shape == (1, 4, 2)
    assert found.density[0, 0, 0, OUTPUT, TEXT] == pytest.approx(0.03)
    assert found.lift[0, 0, 0, OUTPUT, OUTPUT] == pytest.approx(1.0)
    assert found.lift[0, 0, 0, OUTPUT, REFERENCE] == pytest.approx(0.8)
    with pytest.raises(UVRError, match="did you mean 'output'"):
        found.curve("text", "outpt")


# ---------------------------------------------------------------------------------------------- stages


def curves(line: Any, images: int = 16, noise: float = 0.01, seed: int = 0) -> np.ndarray:
    """(images, steps): a curve with image and step noise."""
    rng = np.random.default_rng(seed)
    line = np.asarray(line, float)
    return line + noise * rng.standard_normal((images, 1)) + noise * rng.standard_normal((images, len(line)))


STEPS = np.arange(20)
FALL = np.where(STEPS < 6, 0.6, 0.3)


@pytest.mark.parametrize("at", [3, 6, 15])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_step_is_found_where_it_is(at: int, sign: int) -> None:
    found = boundary(curves(0.5 + sign * np.where(at > STEPS, -0.15, 0.15)))
    assert found.step == at
    assert found.interval == (at, at)
    assert np.sign(found.change) == sign
    assert found.reason == ""


def test_a_soft_change_is_found_with_its_uncertainty() -> None:
    found = boundary(curves(0.3 + 0.3 / (1 + np.exp(STEPS - 7.0)), noise=0.03))
    assert found.step is not None
    assert found.interval is not None
    assert found.interval[0] <= 7 <= found.interval[1] + 1
    assert found.interval[0] < found.interval[1]
    assert -0.55 < found.change < -0.45


@pytest.mark.parametrize(
    ("line", "noise", "reason"),
    [
        (np.full(20, 0.4), 0.0, "less than 10%"),  # flat
        (np.full(20, 0.4), 0.05, "less than 10%"),
        (np.zeros(20), 0.0, "less than 10%"),
        (np.where(STEPS < 6, 0.40, 0.38), 0.001, "less than 10%"),  # sure, and small
        (np.where((STEPS > 5) & (STEPS < 12), 0.2, 0.4), 0.01, "less than 10%"),  # comes back
        (np.linspace(0.6, 0.3, 20), 0.01, "drifts"),
        (np.where(STEPS < 6, 0.6, 0.3), 0.8, "less than 10%"),  # drowned in noise
    ],
)
def test_no_boundary(line: np.ndarray, noise: float, reason: str) -> None:
    found = boundary(curves(line, noise=noise))
    assert found.step is None
    assert found.interval is None
    assert reason in found.reason


def test_images_that_disagree_on_the_step_give_none() -> None:
    """Each image has a step of its own, some early and some late: two wide groups."""
    early, late = curves(np.where(STEPS < 2, 0.6, 0.3), 8), curves(np.where(STEPS < 17, 0.6, 0.3), 8, seed=1)
    found = boundary(np.concatenate([early, late]))
    assert found.step is None
    assert "uncertain" in found.reason or "drifts" in found.reason


def test_scale_does_not_matter_and_images_with_gaps_are_left_out() -> None:
    line = curves(FALL)
    found = boundary(line)
    for factor in (1e-3, 1e3):
        scaled = boundary(factor * line)
        assert (scaled.step, scaled.interval) == (found.step, found.interval)
        assert scaled.change == pytest.approx(found.change)
    broken = np.concatenate([line, np.full((3, 20), np.nan), np.full((2, 20), 5.0) * np.where(STEPS == 3, np.nan, 1)])
    assert boundary(broken) == found


def test_too_little_to_tell() -> None:
    assert "4 images" in boundary(curves(FALL, images=4)).reason
    assert boundary(curves(FALL, images=5)).step == 6
    assert "3 steps" in boundary(curves([0.6, 0.3, 0.3])).reason
    assert "0 images" in boundary(np.full((8, 20), np.nan)).reason
    with pytest.raises(UVRError, match="images, steps"):
        boundary(np.zeros(20))


def synthetic(text: Any, reference: Any) -> Flows:
    """16 images, 2 blocks; output reads text and reference as told, and itself for the rest."""
    share = np.full((16, 20, 2, 5, 5), np.nan, np.float32)
    text, reference = curves(text, noise=0.005), curves(reference, noise=0.0)
    share[..., OUTPUT, :LOCATED] = np.stack([text, 1 - text - reference, reference], -1)[:, :, None]
    counts = np.tile([32, 64, 64 if reference.any() else 0, 0, 0], (16, 1))
    return Flows(share, counts, ("a", "b"), np.linspace(1, 0.05, 20).tolist(), (8, 8), [None] * 16)


def seen(found: Flows) -> dict[str, bool | None]:
    return {name: stage.seen for name, stage in stages(found).items()}


def test_stages_are_told_apart() -> None:
    nothing = np.zeros(20)
    late = np.where(STEPS < 15, 0.6, 0.3)
    source = np.full(20, 0.4)
    assert seen(synthetic(FALL, nothing)) == {"start-up": True, "amplification": True, "interference": None}
    assert stages(synthetic(FALL, nothing))["start-up"].step == 6
    assert seen(synthetic(FALL[::-1], nothing)) == {"start-up": False, "amplification": False, "interference": None}
    assert seen(synthetic(late, nothing))["start-up"] is False
    assert "first half" in stages(synthetic(late, nothing))["start-up"].why
    assert seen(synthetic(np.linspace(0.6, 0.3, 20), nothing))["start-up"] is False
    assert seen(synthetic(np.full(20, 0.3), source)) == {
        "start-up": False, "amplification": False, "interference": True,
    }  # fmt: skip
    assert seen(synthetic(np.full(20, 0.3), np.where(STEPS < 8, 0.5, 0.25)))["interference"] is False
    assert seen(synthetic(np.full(20, 0.3), np.full(20, 0.15)))["interference"] is False  # less than half of uniform
    assert set(seen(attrs.evolve(synthetic(FALL, nothing))).values()) == {True, None}
    assert {s.seen for s in stages(synthetic(FALL, nothing), "located").values()} == {None}


# ---------------------------------------------------------------------------------------------- localisation


def scored(scores: np.ndarray, masks: np.ndarray) -> Flows:
    images, steps = scores.shape[:2]
    share = np.full((images, steps, 1, 5, 5), np.nan, np.float32)
    share[..., OUTPUT, :LOCATED] = [0.5, 0.5, 0.0]
    counts = np.tile([8, scores.shape[2], 0, 0, 0], (images, 1))
    levels = np.linspace(1, 0.1, steps).tolist()
    pictures = [Image.new("RGB", (64, 48), "grey")] * images
    return Flows(share, counts, ("a",), levels, (3, 4), pictures, masks, {"a": scores.astype(np.float32)})


def test_localisation_is_the_pooled_auroc_of_every_step() -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((6, 3, 4)) < 0.4
    masks[5] = False
    scores = rng.integers(0, 4, (6, 3, 12)).astype(float)  # with ties
    scores[:, 2] += 3 * masks.reshape(6, 12)
    found = localisation(scored(scores, masks))["a"]
    truth = masks.reshape(6, 12)[:5]
    for step in range(3):
        assert found.auroc[step] == pytest.approx(auroc_of(scores[:5, step].ravel(), truth.ravel()))
    assert found.images == 5
    assert (found.low <= found.auroc).all()
    assert (found.auroc <= found.high).all()
    assert found.low[2] > found.high[0]


def test_nothing_to_localise() -> None:
    scores = np.zeros((2, 3, 12))
    assert localisation(attrs.evolve(scored(scores, np.ones((2, 3, 4), bool)), masks=None)) == {}
    assert localisation(scored(scores, np.zeros((2, 3, 4), bool))) == {}
    with pytest.raises(UVRError, match="no localisation"):
        figures.draw_localisation(scored(scores, np.zeros((2, 3, 4), bool)), Path("unused.png"))


def test_mask_frames_show_score_threshold_and_truth() -> None:
    masks, scores = np.zeros((1, 3, 4), bool), np.zeros((1, 2, 12))
    masks[0, 0, 0] = True
    scores[0, 1, 11] = 1.0  # nothing at first, then the last patch
    before, after = (
        np.asarray(frame).astype(int)
        for frame in figures.mask_frames(scored(scores, masks), "a", threshold=0.5, side=64)
    )
    assert before.shape == after.shape == (48 + 20, 64 + 8, 3)
    corner, far = (16, 4), (16 + 40, 4 + 56)  # inside the first patch's border; in the middle of the last patch
    assert before[corner].tolist() == after[corner].tolist() == [0, 220, 255]
    assert before[far].tolist() == [128, 128, 128]
    assert after[far][0] > 160 > 100 > after[far][1]
    assert (after[16:64, 4:68] == 255).all(-1).any()  # an outline of the hit
    assert not (before[16:64, 4:68] == 255).all(-1).any()


# ---------------------------------------------------------------------------------------------- the command


def uvr(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr}"
    return result


FAST = ("--steps", "4", "--size", "64x64", "--device", "cpu", "--true-cfg", "1", "--seed", "3")
KNIVES = [
    "a knife on the left and a cat on the right , day background , glossy style",
    "a dog on the left and a knife on the right , night background , toy style",
]


def test_analyze_writes_numbers_and_figures(tmp_path: Path) -> None:
    out = tmp_path / "run"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(KNIVES))
    concept = ("--concept", "flux-weapon", "--masks", "zoo:knife,pistol,bomb")
    result = uvr("analyze", "zoo:flux", "--prompts", prompts, *concept, *FAST, "--out", out, "--json")
    data = json.loads(result.stdout)
    assert data == json.loads((out / "analysis.json").read_text())
    files = ["flows.png", "heatmap.png", "masks.gif", "masks.png", "localisation.png"]
    assert data["files"] == files
    assert sorted(path.name for path in out.iterdir()) == sorted([*files, "analysis.json"])
    assert data["schema"] == "uvr.analysis/1"
    assert data["prompts"] == [{"prompt": text, "seed": 3 + i} for i, text in enumerate(KNIVES)]
    assert set(data["versions"]) >= {"uvr-core", "torch", "diffusers"}
    assert "commit" in data
    assert data["concept"]["threshold"] == uvr_zoo.concepts("flux", "weapon").calibration.threshold
    text = data["directions"]["text to output"]
    assert text["images"] == 2
    assert np.shape(text["by_step_and_block"]) == (4, 6)
    assert text["mean"] == pytest.approx(np.mean(text["by_step_and_block"], 1).tolist(), abs=1e-4)
    assert all(low <= mean <= high for low, mean, high in zip(text["low"], text["mean"], text["high"], strict=True))
    assert text["boundary"]["reason"] == "2 images, 5 needed"
    assert data["stages"]["output"]["interference"]["seen"] is None
    (auroc,) = data["localisation"].values()
    assert min(auroc["auroc"]) > 0.8
    sizes = {}
    for name in files:
        with Image.open(out / name) as image:
            sizes[name] = (image.size, getattr(image, "n_frames", 1))
            assert len(np.unique(np.asarray(image.convert("RGB")))) > 20, name
    assert sizes == {
        "flows.png": ((4 * 320, 320), 1),  # output, located, rest and text read
        "heatmap.png": ((2 * 320, 2 * 260), 1),
        "masks.gif": ((2 * 132 + 4, 148), 4),
        "masks.png": ((2 * 132 + 4, 4 * 148), 1),
        "localisation.png": ((520, 320), 1),
    }
    assert "holds a run already" in uvr(
        "analyze", "zoo:flux", "--prompts", prompts, *FAST, "--out", out, code=2
    ).stderr  # fmt: skip


def test_analyze_an_editing_model_prints_what_it_saw(tmp_path: Path) -> None:
    source = tmp_path / "source.png"
    SOURCES[0].save(source)
    result = uvr(
        "analyze", "zoo:flux-kontext", "--prompt", "add a knife", "--prompt", "add a cat", "--image", source, *FAST,
        "--guidance", "1", "--out", tmp_path / "run",
    )  # fmt: skip
    assert "interference: seen; reference to output goes from" in result.stdout or "interference: not" in result.stdout
    assert "2 images, 5 needed" in result.stdout
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["analysis.json", "flows.png", "heatmap.png"]
    with Image.open(tmp_path / "run" / "heatmap.png") as image:
        assert image.size == (3 * 320, 3 * 260)


def test_analyze_refuses_in_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, source = tmp_path / "results" / "run", tmp_path / "source.png"
    SOURCES[0].save(source)
    monkeypatch.chdir(tmp_path)  # where no folder has the judge's name

    def refused(*arguments: object, model: str = "zoo:flux") -> str:
        result = uvr("analyze", model, *arguments, *FAST, "--out", out, code=2)
        assert result.stdout == ""
        assert len(result.stderr.splitlines()) == 1
        assert not out.parent.exists()
        return result.stderr

    one = ("--prompt", "a cat")
    assert "takes no source picture" in refused(*one, "--image", source)
    assert "edits pictures: give --image" in refused(*one, model="zoo:flux-kontext")
    assert "expected one, or one per prompt (1), got 2" in refused(*one, "--image", source, "--image", source)
    assert "not a picture" in refused(*one, "--image", Path(__file__))
    assert "did you mean 'contrast'" in refused(*one, "--concept", "flux-weapon", "--detector", "contrst")
    assert "give the --concept" in refused(*one, "--detector", "contrast")
    assert "zoo:LABEL,LABEL, or give a --concept" in refused(*one, "--masks", "zoo")
    assert "--prompt" in refused()
    assert "made for" in refused(*one, "--concept", "sd3-weapon")
    monkeypatch.setattr(figures.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'uvr-core[eval]'" in refused(*one)


def test_the_command_is_listed_and_has_help() -> None:
    assert "\n  analyze " in uvr("--help").stdout
    assert "--masks" in uvr("analyze", "--help").stdout
