"""The baselines on real zoo pipelines: what each does, that none leaves a trace, and the check that says so."""

from __future__ import annotations

import functools
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from torch import nn

import uvr_zoo
from uvr_core import plugins
from uvr_core.errors import UnsupportedRuntime, UVRError
from uvr_core.protocols import Baseline, ConceptTerms, Request
from uvr_core.testing import Status, check_baseline
from uvr_plugins.baselines import concept_attention, passes
from uvr_plugins.baselines.adavd import UniAdaVD, project_out
from uvr_plugins.baselines.concept_attention import ConceptAttention, saliency
from uvr_plugins.baselines.output_filter import OutputFilter
from uvr_plugins.baselines.prompts import Blocklist, NegativePrompt
from uvr_plugins.baselines.sld import SafeLatentDiffusion, _State, safety_guidance
from uvr_plugins.policies import Observe
from uvr_zoo.recipes import RECIPES
from uvr_zoo.tasks import edits_for, prompt_of, scenes_for, settings, sources_of
from uvr_zoo.vocabulary import CONCEPTS, SYNONYMS

pytestmark = pytest.mark.usefixtures("one_thread")

NAMES = ("blocklist", "negative-prompt", "sld", "concept-attention", "uni-adavd", "output-filter")
INSIDE = ("negative-prompt", "sld", "concept-attention", "uni-adavd")
WEAPON = ConceptTerms(
    "weapon", CONCEPTS["weapon"],
    (*CONCEPTS["weapon"], *(word for name in CONCEPTS["weapon"] for word in SYNONYMS.get(name, ()))),
)  # fmt: skip


pipeline = functools.cache(uvr_zoo.load)


def request(name: str, *, count: int = 2, steps: int = 3, unsafe: bool = True, **options: Any) -> Request:
    """A call of a zoo pipeline for `count` prompts with (or without) a weapon."""
    if RECIPES[name].edits:
        tasks: Any = edits_for(
            name, count, "instruction" if unsafe else "benign", "weapon", split="heldout", first=705_000
        )
    else:
        tasks = scenes_for(name, count, unsafe="weapon" if unsafe else False, split="heldout", first=705_000)
    call = {
        "prompt": [prompt_of(task) for task in tasks],
        "generator": [torch.Generator().manual_seed(70_000 + i) for i in range(count)],
        **settings(name), "num_inference_steps": steps,
    }  # fmt: skip
    if "negative_prompt" in call:
        call["negative_prompt"] = [""] * count
    if (sources := sources_of(tasks)) is not None:
        call["image"] = sources
    return Request(pipeline(name), {**call, **options}, (WEAPON,), (None,), {"zoo": uvr_zoo.judge()})


def stock(made: Request) -> list[np.ndarray]:
    return [np.asarray(image) for image in made.pipe(**made.call).images]


def arrays(images: Any) -> list[np.ndarray]:
    return [np.asarray(image) for image in images]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return len(one) == len(other) and all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def made(name: str) -> Any:
    found = plugins.registry().get("baseline", name)
    return found() if isinstance(found, type) else found


# ---------------------------------------------------------------------------------------------- all of them


@pytest.mark.parametrize("name", NAMES)
def test_baselines_keep_the_contract(name: str) -> None:
    baseline = made(name)
    assert isinstance(baseline, Baseline)
    assert baseline.name == name
    prompts = ["a knife on the left , night background , toy style", "a cat on the right , sky background , toy style"]
    report = check_baseline(baseline, lambda: request("flux", prompt=prompts))
    assert {o.name for o in report.outcomes if o.status is Status.SKIPPED} == set()


def test_the_built_in_baselines() -> None:
    found = {n for n, (_, origin) in plugins.registry().names("baseline").items() if origin == "builtin-plugins"}
    assert found == {*NAMES, "sld-max"}
    assert made("sld-max") == SafeLatentDiffusion.setting("max")
    assert made("sld") == SafeLatentDiffusion.setting("strong")


@pytest.mark.parametrize("name", [n for n in RECIPES if n != "flux"])
@pytest.mark.parametrize("baseline", INSIDE)
def test_they_act_on_every_pipeline_and_leave_it_stock(baseline: str, name: str) -> None:
    before = stock(request(name))
    found = arrays(made(baseline).generate(request(name)))
    if baseline != "concept-attention":  # whose fixed threshold may locate nothing
        assert not any(np.array_equal(a, b) for a, b in zip(before, found, strict=True))
    assert same(before, stock(request(name)))
    transformer = pipeline(name).transformer
    assert not transformer._forward_hooks
    assert not transformer._forward_pre_hooks


class Broken(Exception):
    pass


@pytest.mark.parametrize("name", ["sd3", "qwen-image-edit"])
@pytest.mark.parametrize("baseline", INSIDE)
def test_an_error_inside_the_transformer_leaves_it_stock(baseline: str, name: str) -> None:
    """In the middle of an attention of whatever pass runs then, the extra ones included."""
    before = stock(request(name))
    transformer, calls = pipeline(name).transformer, []

    def fail(module: nn.Module, args: object) -> None:
        calls.append(module)
        if len(calls) == 4:
            raise Broken

    handle = transformer.transformer_blocks[1].register_forward_pre_hook(fail)
    try:
        with pytest.raises(Broken):
            made(baseline).generate(request(name, steps=4))
    finally:
        handle.remove()
    assert same(before, stock(request(name)))


# ---------------------------------------------------------------------------------------------- prompts


@pytest.mark.parametrize(
    ("prompt", "blocked"),
    [
        ("a knife on the left", True), ("A KNIFE.", True), ("two knives", True), ("a knifelike thing", False),
        ("bombs away", True), ("bombastic", False), ("a gun", True), ("something to shoot with", False),
        ("a toy-gun", True), ("a hand  grenade", True), ("handy grenade", False),
    ],
)  # fmt: skip
def test_the_blocklist_finds_names_and_no_descriptions(prompt: str, blocked: bool) -> None:
    assert Blocklist().blocks(prompt, ("knife", "bomb", "gun", "hand grenade")) is blocked


def test_the_blocklist_without_plurals() -> None:
    assert not Blocklist(plurals=False).blocks("two guns", ("gun",))
    assert Blocklist().blocks("two ladies, three boxes", ("lady",))
    assert Blocklist().blocks("three boxes", ("box",))


@pytest.mark.parametrize("name", ["flux", "flux-kontext"])
def test_kept_prompts_are_drawn_with_their_own_noise_and_source(name: str) -> None:
    whole = request(name, count=3, unsafe=False)
    prompts = [whole.call["prompt"][0], "replace it with a gun", whole.call["prompt"][2]]
    found = Blocklist().generate(request(name, count=3, unsafe=False, prompt=prompts))
    assert [image is None for image in found] == [False, True, False]
    part = {k: [v[0], v[2]] if isinstance(v, list) else v for k, v in whole.call.items()}
    assert same(arrays([found[0], found[2]]), arrays(whole.pipe(**part).images))


def test_nothing_runs_when_every_prompt_is_refused() -> None:
    asked = request("flux", prompt=["a gun", "a knife"])
    assert Blocklist().generate(attrs.evolve(asked, pipe=None)) == [None, None]


def test_the_negative_prompt_goes_behind_the_given_one() -> None:
    given: dict[str, Any] = {}

    class Spy:
        transformer = pipeline("flux").transformer

        def __call__(
            self, prompt: Any = None, negative_prompt: Any = None, true_cfg_scale: float = 1.0, **rest: Any
        ) -> Any:
            given.update(negative_prompt=negative_prompt, true_cfg_scale=true_cfg_scale)
            return type("Out", (), {"images": ["x"] * len(prompt)})

    asked = request("flux", negative_prompt=["blurry", ""])
    NegativePrompt().generate(attrs.evolve(asked, pipe=Spy()))
    words = " , ".join(WEAPON.words)
    assert given == {"negative_prompt": [f"blurry , {words}", words], "true_cfg_scale": 3.0}


def test_the_negative_prompt_turns_guidance_on_where_there_is_none() -> None:
    calls: list[int] = []
    transformer = pipeline("flux-kontext").transformer
    handle = transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        NegativePrompt().generate(request("flux-kontext", steps=3))
    finally:
        handle.remove()
    assert len(calls) == 6


def test_the_negative_prompt_needs_a_pipeline_that_takes_one() -> None:
    class Plain:
        transformer = pipeline("flux").transformer

        def __call__(self, prompt: Any) -> Any: ...

    with pytest.raises(UnsupportedRuntime, match="Plain takes no negative prompt"):
        NegativePrompt().generate(attrs.evolve(request("flux"), pipe=Plain()))


# ---------------------------------------------------------------------------------------------- other text


@pytest.mark.parametrize("name", list(RECIPES))
def test_text_for_other_prompts_is_what_the_pipeline_would_hand_over(name: str) -> None:
    """Caught from a run without guidance; neither the call's generators nor the global one move."""
    asked = request(name, true_cfg_scale=1.0) if name != "sd3" else request(name, guidance_scale=1.0)
    adapter = passes.adapter_of(asked.pipe)
    seen: list[passes.Arguments] = []
    with passes.watching(asked.pipe.transformer, before=seen.append):
        stock(attrs.evolve(asked, call={k: v for k, v in asked.call.items() if k != "negative_prompt"}))
    again = request(name)
    states, world = [g.get_state() for g in again.call["generator"]], torch.random.get_rng_state()
    text = passes.text_for(again, again.call["prompt"], adapter)
    assert {"encoder_hidden_states"} <= set(text)
    assert "hidden_states" not in text
    for key, value in text.items():
        assert value is None or torch.equal(value, seen[0][key])
    moved = [g.get_state() for g in again.call["generator"]]
    assert all(torch.equal(a, b) for a, b in zip(states, moved, strict=True))
    assert torch.equal(world, torch.random.get_rng_state())


@pytest.mark.parametrize("name", list(RECIPES))
def test_word_tokens_tell_words_apart(name: str) -> None:
    """A token taken one place off would be an article, an end mark or padding: alike for every word."""
    asked = request(name)
    tokens = passes.word_tokens(asked, passes.adapter_of(asked.pipe), ("knife", "gun", "pistol"))
    assert [len(columns) for columns in tokens.columns] == [2 if name == "sd3" else 1] * 3
    states = tokens.text["encoder_hidden_states"]
    assert states.shape[:2] == (2, sum(map(len, tokens.columns)))
    knife, gun, pistol = (states[:, columns[-1]] for columns in tokens.columns)
    near, far = (torch.cosine_similarity(pistol, other).mean() for other in (gun, knife))
    assert near > far + 0.2  # gun is the world's synonym of pistol


# ---------------------------------------------------------------------------------------------- SLD


def test_safety_guidance_is_the_equation() -> None:
    c, u, s = (torch.tensor(v) for v in ([1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.5], [1.01, 2.0, -1.0, 1.01]))
    # d = .5 (c - s) = -.005, -.5, 1, -.005; mu = min(1, 100 |d|) where d < .1
    gamma = safety_guidance(c, u, s, sigma=0.5, scale=100.0, threshold=0.1)
    assert gamma.tolist() == pytest.approx([0.5 * 1.01, 2.0, 0.0, 0.5 * 0.51], rel=1e-4)


class Fixed(nn.Module):
    """A transformer that gives back the text it is handed."""

    def forward(self, hidden_states: Any, timestep: Any, encoder_hidden_states: Any) -> Any:
        return (encoder_hidden_states,)


def guided(
    kind: str, scale: float, c: torch.Tensor, u: torch.Tensor, s: torch.Tensor, **options: Any
) -> list[torch.Tensor]:
    """Guided velocities of two steps with constant predictions, as a pipeline would add them up."""
    adapter = passes.adapter_of(pipeline("flux"))
    pipe = type("Pipe", (), {"transformer": Fixed(), "_num_timesteps": 2})()
    method = SafeLatentDiffusion(scale=1.0, threshold=10.0, warmup=0.0, **options)
    guidance = passes.Guidance(kind, scale)  # type: ignore[arg-type]
    state = _State(
        method, pipe, guidance, {"encoder_hidden_states": s}, {"encoder_hidden_states": u}, passes.Steps(adapter)
    )
    found = []
    for sigma in (0.5, 0.25):

        def call(*parts: torch.Tensor, level: float = sigma) -> Any:
            x = torch.cat(parts)
            arguments = {"hidden_states": x, "timestep": torch.full((len(x),), level), "encoder_hidden_states": x}
            return passes.prediction(state.after(arguments, (x,)) or (x,))

        if kind == "two_pass":
            found.append((first := call(c)) + (scale - 1) * (first - (second := call(u))) + 0 * second)
        elif kind == "uc":
            low, high = call(u, c).chunk(2)
            found.append(low + scale * (high - low))
        else:
            found.append(call(c))
    return found


@pytest.mark.parametrize("kind", ["two_pass", "uc", "none"])
def test_sld_subtracts_gamma_whatever_the_form_of_guidance(kind: str) -> None:
    c, u, s = torch.tensor([[1.0, 0.3]]), torch.tensor([[0.0, 0.1]]), torch.tensor([[0.6, 0.5]])
    g = 1.0 if kind == "none" else 3.0
    mine = guided(kind, g, c, u, s, momentum=0.5, beta=0.7)
    nu: Any = 0
    for sigma, velocity in zip((0.5, 0.25), mine, strict=True):
        gamma = ((1 - sigma) * (c - s)).abs().clamp_max(1) * (s - u) + 0.5 * nu
        nu = 0.7 * nu + 0.3 * gamma
        assert torch.allclose(velocity, u + g * (c - u - gamma), atol=1e-6)


def test_sld_gathers_momentum_while_it_warms_up() -> None:
    c, u, s = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[0.6]])
    pipe = type("Pipe", (), {"transformer": Fixed(), "_num_timesteps": 2})()
    method = SafeLatentDiffusion(scale=1.0, threshold=10.0, warmup=0.5, momentum=1.0, beta=0.0)
    state = _State(
        method, pipe, passes.Guidance("none", 1.0), {"encoder_hidden_states": s}, {"encoder_hidden_states": u},
        passes.Steps(passes.adapter_of(pipeline("flux"))),
    )  # fmt: skip
    out = []
    for sigma in (0.5, 0.25):
        arguments = {"hidden_states": c, "timestep": torch.full((1,), sigma), "encoder_hidden_states": c}
        out.append(float(state.after(arguments, (c,))[0]))
    first, second = 0.5 * 0.4 * 0.6, 0.75 * 0.4 * 0.6
    assert out == pytest.approx([1.0, 1.0 - (second + first)])


@pytest.mark.parametrize("name", ["flux", "flux-kontext"])
def test_sld_without_scale_is_stock(name: str) -> None:
    before = stock(request(name))
    assert same(before, arrays(SafeLatentDiffusion(scale=0.0).generate(request(name))))
    assert same(before, arrays(SafeLatentDiffusion(scale=1e-30, momentum=0.0).generate(request(name))))  # it runs
    assert not same(before, arrays(SafeLatentDiffusion(warmup=0.0).generate(request(name))))


# ---------------------------------------------------------------------------------------------- AdaVD


def test_project_out_takes_what_resembles_the_concept() -> None:
    concept = torch.tensor([[[1.0, 0.0, 0.0]]])
    value = torch.tensor([[[2.0, 0.1, 0.0], [0.1, 2.0, 0.0], [0.0, 0.0, 1.0]]])
    whole = project_out(value, concept, height=1.0, steepness=1000.0, centre=0.9)[0]
    assert torch.allclose(whole[0], torch.tensor([0.0, 0.1, 0.0]), atol=5e-3)  # the orthogonal complement
    assert torch.equal(whole[1:], value[0, 1:])  # cosine below the centre
    twice = project_out(value, concept, height=2.0, steepness=1000.0, centre=0.9)[0]
    assert torch.allclose(twice[0], torch.tensor([-2.0, 0.1, 0.0]), atol=1e-2)
    half = project_out(value, concept, strength=0.5, height=1.0, steepness=1000.0, centre=0.9)[0]
    assert torch.allclose(half[0], torch.tensor([1.0, 0.1, 0.0]), atol=5e-3)


def test_project_out_of_two_near_synonyms_stays_small() -> None:
    """Undamped, two nearly equal concepts would be given huge shares of opposite sign."""
    concept = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 1e-4, 0.0]]])
    value = torch.tensor([[[1.0, 0.5, 0.0]]])
    new = project_out(value, concept, height=1.0, steepness=50.0, centre=0.5)[0, 0]
    assert abs(float(new[0])) < 0.02
    assert float(new[1]) == pytest.approx(0.5, abs=0.02)


def test_uni_adavd_erases_and_is_stock_without_strength() -> None:
    make = functools.partial(request, "flux", count=4, steps=10)
    before, found = make().pipe(**make().call).images, UniAdaVD().generate(make())
    seen, left = (
        [bool(set(row) & set(WEAPON.labels)) for row in uvr_zoo.judge()(images)] for images in (before, found)
    )
    assert sum(seen) >= 3
    assert sum(left) <= sum(seen) // 2
    assert same(arrays(before), arrays(UniAdaVD(strength=0.0).generate(make())))
    assert same(arrays(before), arrays(UniAdaVD(strength=1e-30).generate(make())))  # the values are recomputed


# ---------------------------------------------------------------------------------------------- ConceptAttention


def test_saliency_is_a_softmax_of_cosines() -> None:
    image = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]])
    words, rivals = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 3.0], [5.0, 0.0]]])
    share = saliency(image, words, 0.5, rivals, torch.tensor([[True, False]]))
    e = float(torch.tensor(2.0).exp())
    assert share[0, :, 0].tolist() == pytest.approx([e / (e + 1), 1 / (e + 1)])
    half = saliency(image, words, 0.5, rivals, torch.tensor([[True, False]]), weight=0.5)
    assert half[0, :, 0].tolist() == pytest.approx([e / (e + 0.5), 1 / (0.5 * e + 1)])
    assert torch.allclose(saliency(image, torch.cat([words, rivals], 1), 0.5).sum(-1), torch.ones(1, 2))


@pytest.mark.parametrize("name", list(RECIPES))
def test_the_words_ride_along_unseen_by_the_image(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the words' pass the image stream is the prompt's: the model predicts the same for other text."""
    main: list[torch.Tensor] = []
    pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
    stock_after, run = concept_attention._State.after, concept_attention.run

    def after(self: Any, arguments: Any, output: Any) -> None:
        found = passes.prediction(output)
        main.append(found[self.guidance.conditional(len(found))])
        stock_after(self, arguments, output)

    def spy(*args: Any) -> torch.Tensor:
        pairs.append((main[-1], run(*args)))
        return pairs[-1][1]

    monkeypatch.setattr(concept_attention._State, "after", after)
    monkeypatch.setattr(concept_attention, "run", spy)
    images = ConceptAttention(policy=Observe(), window=(1.0, 0.0)).generate(request(name))
    assert len(pairs) == 3
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in pairs)
    assert same(stock(request(name)), arrays(images))  # observing changes nothing


def test_concept_attention_finds_the_patches_of_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = request("flux", count=4, steps=10)
    images = asked.pipe(**asked.call).images
    shown = [bool(set(row) & set(WEAPON.labels)) for row in uvr_zoo.judge()(images)]
    truth = uvr_zoo.judge().locate(images, list(WEAPON.labels))
    maps: list[torch.Tensor] = []
    stock_after = concept_attention._State.after

    def after(self: Any, arguments: Any, output: Any) -> None:
        stock_after(self, arguments, output)
        maps.extend(now[0].clone() for now in self.maps if now)

    monkeypatch.setattr(concept_attention._State, "after", after)
    method = ConceptAttention(policy=Observe(), window=(1.0, 0.5), prompt=False, temperature=0.3)
    method.generate(request("flux", count=4, steps=10))
    inside, score = truth.flatten(1)[shown], maps[-1][shown]
    better = [(s[t][:, None] > s[~t]).float().mean() for s, t in zip(score, inside, strict=True) if t.any()]
    assert torch.stack(better).mean() > 0.7  # AUROC within a picture; 0.5 is chance


# ---------------------------------------------------------------------------------------------- output filter


def test_the_output_filter_drops_what_its_judges_see() -> None:
    asked = request("flux", count=3, steps=10)
    before = asked.pipe(**asked.call).images
    seen = [bool(set(row) & set(WEAPON.labels)) for row in uvr_zoo.judge()(before)]
    assert any(seen)
    judges = {"blind": lambda images: [{} for _ in images], **asked.judges}
    make = lambda: attrs.evolve(request("flux", count=3, steps=10), judges=judges)  # noqa: E731
    assert [image is None for image in OutputFilter().generate(make())] == seen
    assert same(arrays(OutputFilter(("blind",)).generate(make())), arrays(before))


def test_the_output_filter_needs_a_judge() -> None:
    with pytest.raises(UVRError, match="brings no judge"):
        OutputFilter().generate(attrs.evolve(request("flux"), judges={}))
    with pytest.raises(UVRError, match="asked for: nudenet; there are: zoo"):
        OutputFilter(("nudenet",)).generate(request("flux"))


@pytest.mark.parametrize(
    ("kind", "bad"),
    [
        (SafeLatentDiffusion, {"scale": -1.0}), (SafeLatentDiffusion, {"warmup": 2.0}),
        (NegativePrompt, {"scale": 1.0}),
        (UniAdaVD, {"strength": -1.0}), (UniAdaVD, {"centre": 1.5}), (ConceptAttention, {"threshold": 2.0}),
        (ConceptAttention, {"last": 0.0}), (ConceptAttention, {"temperature": 0.0}),
    ],
)  # fmt: skip
def test_bad_settings_name_the_attribute(kind: Any, bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        kind(**bad)
