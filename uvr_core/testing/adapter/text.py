"""The text: prompts of unequal length, and what of it reaches the picture beside the joint attention."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ...adapter import Adapter, TextRoute, matching
from ...errors import UVRError
from ..example import Example, Size
from ..given import Edit, Given, everywhere, regulated
from ..inputs import shortened
from ..suite import CheckSkipped, expect
from .placement import expect_rows
from .record import patches_of_rows
from .subject import Subject

LENGTHS = (5, 3)
ROUNDING = 1e-5  # of what the text moves


class Text(Subject):
    """Checks of what the engine does where prompts differ in length, and of where the text goes."""

    def ragged(self) -> None:
        """Prompts of unequal length: the located patch of each sample moves, and no other."""
        example = self.make_example()
        size = example.sizes[0]
        count = size[0] * size[1]
        last = list(self.adapter.taps(example.model))[-1]
        for first in (0, 1):
            lengths = tuple(LENGTHS[(first + sample) % 2] for sample in range(count))
            arguments = _of_lengths(example, size, count, lengths)
            stock = example.run(arguments, size)
            with regulated(example.model, self.adapter, Given(torch.eye(count).bool()), Edit(noise=1.0, only=last)):
                moved = (example.run(arguments, size) - stock).abs().amax(-1)
            where = f"prompts of {', '.join(map(str, lengths))} tokens, sample i with patch i located"
            expect_rows(patches_of_rows(moved), [[i] for i in range(count)], where)

    def text_route(self) -> None:
        """With every output row cut off from the text, nothing of the text is left in the output but what takes the
        routes that the adapter declares."""
        example = self.make_example()
        shut = [name for name, weight in example.model.named_parameters() if weight.numel() == 1 and not weight.any()]
        expect(
            not shut, "gates of one element that are zero and let nothing pass", expected="none", got=", ".join(shut)
        )
        for route in self.adapter.routes:
            for pattern in route.modules:
                hit = matching(example.model, pattern)
                expect(hit, f"modules of the route {route.name!r} that match {pattern!r}", expected="some", got="none")
        left = leaks(self.adapter, example)
        expect(left, "arguments of the text that move the output", expected="at least one", got="none")
        beside = {name: share for name, share in left.items() if share > ROUNDING}
        shown = ", ".join(f"{name} {share:.2g} of it" for name, share in beside.items())
        what = "what the text still moves where every row is cut off from it (declare it as a TextRoute)"
        expect(not beside, what, expected="nothing", got=shown)


def _of_lengths(example: Example, size: Size, batch: int, lengths: tuple[int, ...]) -> dict[str, Any]:
    """Arguments of samples whose prompts have so many tokens."""
    if example.ragged:
        return example.arguments(size, batch, references=example.reference_sizes, text=lengths)
    try:
        return shortened(example.arguments(size, batch, references=example.reference_sizes), lengths)
    except UVRError as error:
        raise CheckSkipped(f"{error}, and Example.inputs takes no text=") from error


def leaks(adapter: Adapter, example: Example) -> dict[str, float]:
    """{argument of the text: the share of what it moves that is left where every row is cut off from the text}.

    The text's arguments are those that differ between two draws, but for the latents and those of declared routes.
    """
    size = example.sizes[0]
    one, two = (example.arguments(size, 2) for _ in range(2))
    declared = {argument for route in adapter.routes for argument in route.arguments}
    names = [
        name for name in one if name != adapter.latents and name not in declared and not _same(one[name], two[name])
    ]
    changed = [{**one, name: two[name]} for name in names]
    with closed(example.model, adapter.routes):
        stock, *moved = (example.run(arguments, size) for arguments in (one, *changed))
        cut = []
        for arguments in (one, *changed):
            with regulated(example.model, adapter, everywhere(2, size), Edit(cut=True)):
                cut.append(example.run(arguments, size))
    pairs = {
        name: (_distance(a, stock), _distance(b, cut[0])) for name, a, b in zip(names, moved, cut[1:], strict=True)
    }
    return {name: left / before for name, (before, left) in pairs.items() if before > 0}


@contextmanager
def closed(model: nn.Module, routes: Sequence[TextRoute]) -> Iterator[None]:
    """The modules of declared routes give zeros meanwhile."""

    def zeros(module: nn.Module, args: Any, output: Any) -> Any:
        return tree_map_only(torch.Tensor, torch.zeros_like, output)

    with ExitStack() as stack:
        for route in routes:
            for pattern in route.modules:
                for module in matching(model, pattern).values():
                    stack.callback(module.register_forward_hook(zeros).remove)
        yield


def _same(one: Any, other: Any) -> bool:
    """Whether two draws of an argument hold the same tensors."""
    pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
    return all(torch.equal(a, b) for a, b in pairs if isinstance(a, torch.Tensor))


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())
