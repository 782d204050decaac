"""Ways in which an image once left unregulated without an error: each is regulated now, or refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import torch
from rig import MASK, Rig, Second
from runner import make_bank
from tiny import tiny_flux

import uvr_core
from uvr_core import Calibration, UVRError

PATCHES = 64


class Stranger:
    """A pipeline that no adapter lists: a real scheduler and transformer, in a loop of somebody's own.

    Args:
        forwards: (arguments of one forward at this step's sigma) of each step.
    """

    do_classifier_free_guidance = True

    def __init__(self, rig: Rig, forwards: Callable[[float], Sequence[dict[str, Any]]], images: int = 2):
        self.transformer, self.scheduler, self._forwards, self._images = (
            rig.transformer, rig.pipe.scheduler, forwards, images,
        )  # fmt: skip
        self.outputs: list[torch.Tensor] = []

    @torch.no_grad()
    def __call__(self) -> Any:
        self.outputs.clear()
        self.scheduler.set_timesteps(sigmas=[1.0, 0.5])
        latents = torch.zeros(1)
        for t in self.scheduler.timesteps:
            for arguments in self._forwards(float(t) / 1000):
                self.outputs.append(self.transformer(**arguments)[0])
            self.scheduler.step(torch.zeros(1), t, latents)
        return SimpleNamespace(images=[None] * self._images)


def arguments_of(rig: Rig) -> dict[str, Any]:
    """Arguments of the transformer in a run of its own pipeline, for two images."""
    seen: list[dict[str, Any]] = []
    handle = rig.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True
    )
    rig.run(num_inference_steps=1)
    handle.remove()
    return {name: value.clone() if isinstance(value, torch.Tensor) else value for name, value in seen[0].items()}


def rows(arguments: dict[str, Any], order: Sequence[int]) -> dict[str, Any]:
    """The same forward with these rows of its batch."""
    return {
        name: value[list(order)] if isinstance(value, torch.Tensor) and value.ndim and len(value) == 2 else value
        for name, value in arguments.items()
    }


@attrs.define
class Everywhere:
    """Locates the same patches in every row."""

    name: str = "everywhere"
    threshold: float = 0.0

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        return 2.0 * MASK[1].flatten().float().expand(len(features), -1) - 1.0


def all_regulated(rig: Rig, stranger: Stranger) -> bool:
    """Whether every row of every forward was regulated."""
    stranger()
    stock = [output.clone() for output in stranger.outputs]
    with uvr_core.attach(stranger, concepts=rig.bank, detector=Everywhere(), policy="block"):
        stranger()
    return all((a != b).flatten(1).any(1).all() for a, b in zip(stock, stranger.outputs, strict=True))


# A bare transformer


def test_1_a_run_that_starts_below_the_window() -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    calibration = Calibration("second", "single_transformer_blocks.0.attn", (1.0, 0.8), 0.0)
    bank = attrs.evolve(rig.bank, calibration=calibration)
    reg = uvr_core.attach(rig.transformer, concepts=bank, detector=attrs.make_class("D", [], bases=(Second,))())
    reg.plan = (attrs.evolve(reg.plan[0], window=(1.0, 0.8)),)
    with reg, pytest.raises(UVRError, match="was never looked for"), reg.generation():
        rig.transformer(**{**arguments, "timestep": torch.full((2,), 0.5)})


def test_2_two_generations_interleaved_in_one_thread() -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    with rig.attach(to=rig.transformer) as reg:

        def generation() -> Any:
            with reg.generation():
                for level in (1.0, 0.5):
                    with torch.no_grad():
                        rig.transformer(**{**arguments, "timestep": torch.full((2,), level)})
                    yield

        one, two = generation(), generation()
        next(one)
        with pytest.raises(uvr_core.UnsupportedRuntime, match="inside another one of this thread"):
            next(two)
        list(one)


def test_2_without_a_generation_a_regulated_transformer_refuses() -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    with rig.attach(to=rig.transformer), pytest.raises(UVRError, match=r"with reg\.generation\(\)"):
        rig.transformer(**arguments)


def test_3_samples_of_different_noise_levels() -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    with rig.attach(to=rig.transformer) as reg, pytest.raises(UVRError, match=r"from 0\.3 to 0\.9"), reg.generation():
        rig.transformer(**{**arguments, "timestep": torch.tensor([0.3, 0.9])})


class Given:
    """Locates everything in the generations it is told to."""

    name, threshold = "given", 0.0

    def __init__(self, shows: Sequence[bool]):
        self.shows = iter(shows)

    def scores(self, features: torch.Tensor, sigma: float, bank: Any, probe: str) -> torch.Tensor:
        return torch.full(features.shape[:2], 1.0 if next(self.shows) else -1.0)


@pytest.mark.parametrize("count", [1, 2], ids=["same size", "another batch"])
def test_one_step_generations_in_a_row_do_not_meet(count: int) -> None:
    """The second is drawn with the first's masks no more, and may be of another size."""
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    second = arguments if count == 1 else larger(arguments)
    with torch.no_grad():
        stock = [rig.transformer(**given)[0] for given in (arguments, second)]
        with rig.attach(to=rig.transformer, detector=Given([True, False]), policy="block") as reg:
            outputs = []
            for given in (arguments, second):
                with reg.generation():
                    outputs.append(rig.transformer(**given)[0])
    assert not torch.equal(outputs[0], stock[0])
    assert torch.equal(outputs[1], stock[1])


def larger(arguments: dict[str, Any]) -> dict[str, Any]:
    """The same forward with a third image."""
    return rows(arguments, (0, 1, 1))


@pytest.mark.parametrize("located", [True, False])
def test_a_batch_that_grows_inside_a_generation(located: bool) -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    with rig.attach(to=rig.transformer, detector=Given([located] * 2)) as reg, torch.no_grad():

        def generate() -> None:
            with reg.generation():
                rig.transformer(**arguments)
                rig.transformer(**larger(arguments))

        with pytest.raises(UVRError, match="3 samples follow the prompt, and 2 did"):
            generate()


def test_4_tokens_added_inside_the_forward() -> None:
    """Added after attach, so that the text at the root is shorter than in the attention."""
    rig = Rig("sd3")
    with rig.attach():
        rig.transformer.context_embedder.register_forward_hook(lambda module, args, out: torch.cat([out, out], 1))
        with pytest.raises(uvr_core.UnsupportedRuntime, match="adds or drops tokens inside"):
            rig.run()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e308])
def test_5_thresholds_that_nothing_reaches(bad: float) -> None:
    pipe, bank = tiny_flux(), make_bank()
    for options in ({"threshold": bad}, {"threshold": {"x": bad}}):
        with pytest.raises(UVRError):
            uvr_core.attach(pipe, concepts=bank, **options)
    for field in ("threshold", "grow", "memory"):
        with pytest.raises(UVRError):
            attrs.evolve(bank.calibration, **{field: bad})


@pytest.mark.parametrize("samples", [(5,), (-1,), ("a",)])
def test_7_a_refusal_of_images_that_are_not_there(samples: Any) -> None:
    class Refusing:
        name = "refusing"

        def edit(self, located: Any, call: Any) -> None:
            raise uvr_core.UnsafeContent("no", concept="x", samples=samples)

    rig = Rig("flux")
    with rig.attach(policy=Refusing()), pytest.raises(UVRError, match="refuses samples"):
        rig.run()


# Pipelines whose guidance is laid out otherwise


def test_8_a_batching_class_driven_with_two_passes() -> None:
    rig, arguments = Rig("sd3"), arguments_of(Rig("sd3"))
    forwards = lambda sigma: [{**arguments, "timestep": torch.full((2,), 1000 * sigma)}] * 2  # noqa: E731
    assert all_regulated(rig, Stranger(rig, forwards))


@pytest.mark.parametrize("count", [2, 4], ids=["9: two passes, in any order", "15: four passes"])
def test_passes_without_names_are_all_regulated(count: int) -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    forwards = lambda sigma: [{**arguments, "timestep": torch.full((2,), sigma)}] * count  # noqa: E731
    assert all_regulated(rig, Stranger(rig, forwards))


def test_14_three_parts_in_one_batch() -> None:
    rig, arguments = Rig("sd3"), arguments_of(Rig("sd3"))
    batch = rows(arguments, (0, 1, 0, 1, 0, 1))
    forwards = lambda sigma: [{**batch, "timestep": torch.full((6,), 1000 * sigma)}]  # noqa: E731
    assert all_regulated(rig, Stranger(rig, forwards))


def test_14_images_that_are_not_the_regulated_rows() -> None:
    rig, arguments = Rig("sd3"), arguments_of(Rig("sd3"))
    forwards = lambda sigma: [{**arguments, "timestep": torch.full((2,), 1000 * sigma)}]  # noqa: E731
    stranger = Stranger(rig, forwards, images=3)
    with uvr_core.attach(stranger, concepts=rig.bank, detector=Everywhere(), policy="block"):
        with pytest.raises(UVRError, match="returned 3 images, where 2 rows"):
            stranger()


def test_15_a_listed_pipeline_with_one_forward_more() -> None:
    rig = Rig("flux-kontext")

    def once_more(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        if not busy:
            busy.append(1)
            for _ in range(2):
                module(**kwargs)
            busy.clear()

    busy: list[int] = []
    with rig.attach():
        rig.transformer.register_forward_hook(once_more, with_kwargs=True)
        with pytest.raises(uvr_core.UnsupportedRuntime, match="forward 3 of one step"):
            rig.run()


# Things put around or into the run


def test_10_another_pipeline_of_the_same_transformer_in_a_callback() -> None:
    rig = Rig("flux")
    inner = type(rig.pipe)(**rig.pipe.components)

    def nested(pipe: Any, step: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        rig.run(inner, num_inference_steps=1)
        return tensors

    with rig.attach(), pytest.raises(UVRError, match="called outside its pipeline"):
        rig.run(callback_on_step_end=nested)


def test_11_a_trace_of_the_regulated_transformer() -> None:
    rig, arguments = Rig("flux"), arguments_of(Rig("flux"))
    names = ("hidden_states", "encoder_hidden_states", "pooled_projections", "timestep", "img_ids", "txt_ids")
    tensors = {name: arguments[name] for name in names}
    with rig.attach(to=rig.transformer) as reg, pytest.raises(uvr_core.UnsupportedRuntime, match=r"torch\.jit"):
        with reg.generation():
            torch.jit.trace(rig.transformer, example_kwarg_inputs=tensors, strict=False)


def test_12_a_hook_that_replaces_what_a_tapped_module_gives() -> None:
    rig = Rig("flux")
    module = rig.transformer.transformer_blocks[0].attn
    replace = lambda module, args, output: tuple(x.clone() for x in output)  # noqa: E731
    for order in ("before", "after"):
        if order == "before":
            handle = module.register_forward_hook(replace)
        with rig.attach():
            if order == "after":
                handle = module.register_forward_hook(replace)
            with pytest.raises(uvr_core.UnsupportedRuntime, match="puts something of its own"):
                rig.run()
        handle.remove()


def test_12_a_hook_that_only_looks_is_welcome() -> None:
    rig, seen = Rig("flux"), []
    module = rig.transformer.transformer_blocks[0].attn
    module.register_forward_hook(lambda module, args, output: seen.append(output))
    expected = Rig("flux").regulated_run()
    assert torch.equal(rig.regulated_run(), expected)
    assert seen
