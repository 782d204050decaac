"""Where tokens lie: found out by changing rows of an attention output, not believed."""

from __future__ import annotations

import torch

from ...tokens import TokenSpans
from ..example import Example, Size
from ..given import Edit, Given, regulated
from ..suite import CheckFailed, expect
from .record import moved_patches, patches_of_rows
from .subject import Subject


class Placement(Subject):
    """Checks of where the output patches lie among the rows of a block's attention output."""

    def last_block(self) -> None:
        """Each output row moves its own patch alone; text and reference rows move none."""
        for references in self._reference_sets(self.make_example()):
            example = self.make_example()
            size = example.sizes[0]
            path = list(self.adapter.taps(example.model))[-1]
            moved, start = self._moved(example, size, references, path)
            count = size[0] * size[1]
            wanted = [[row - start] if start <= row < start + count else [] for row in range(len(moved))]
            expect_rows(patches_of_rows(moved), wanted, f"{path}, references {references}")

    def earlier_blocks(self) -> None:
        """Each output row moves its own patch most."""
        example = self.make_example()
        size, references = example.sizes[0], example.reference_sizes
        count = size[0] * size[1]
        for path in list(self.adapter.taps(example.model))[:-1]:
            moved, start = self._moved(example, size, references, path)
            most = moved[start : start + count].argmax(1).tolist()
            expect_rows([[i] for i in most], [[i] for i in range(count)], path, first=start)

    def edit_lands(self) -> None:
        """The engine, editing one located patch at the last block, changes that patch and no other."""
        example = self.make_example()
        size, references = example.sizes[0], example.reference_sizes
        count = size[0] * size[1]
        arguments = example.arguments(size, count, references=references)
        stock = example.run(arguments, size)
        last = list(self.adapter.taps(example.model))[-1]
        mask = torch.eye(count, dtype=torch.bool)
        with regulated(example.model, self.adapter, Given(mask), Edit(noise=1.0, only=last)):
            edited = example.run(arguments, size)
        moved = (edited - stock).abs().amax(-1)
        expect_rows(patches_of_rows(moved), [[i] for i in range(count)], f"located patch, edited at {last}")

    def _moved(self, example: Example, size: Size, references: tuple[Size, ...], path: str) -> tuple[torch.Tensor, int]:
        """(rows, N): how far each output patch moves when one row of the block's attention output is changed; and the
        row at which the adapter says that the output begins. Sample b of a batch has its row b changed.
        """
        probe = example.arguments(size, references=references)
        layout = self._read_layout(example, probe)
        call = self._joint_calls(example, probe, size, layout, only=path)[0]
        rows = call.query.shape[2]
        spans = TokenSpans.of_call(self.adapter, layout, rows, call.key.shape[2])
        assert spans is not None  # it is the joint call
        start = spans[0].output.start
        arguments = example.arguments(size, rows, references=references)
        moved = moved_patches(example, self.adapter.taps(example.model)[path], arguments, size, rows)
        why = "none: the block has no effect in this example; are its weights zero?"
        expect(bool(moved.max() > 0), f"output after a change at {path}", expected="a change", got=why)
        return moved, start


def expect_rows(moved: list[list[int]], wanted: list[list[int]], where: str, first: int = 0) -> None:
    """Each row must move the patches wanted; the message shows the first rows that do not."""
    wrong = [i for i, (got, want) in enumerate(zip(moved, wanted, strict=True)) if got != want]
    if not wrong:
        return
    shown = "; ".join(f"row {i + first}: expected {wanted[i]}, got {moved[i]}" for i in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    singles = {patches[0]: i + first for i, patches in enumerate(moved) if len(patches) == 1}
    span = f"; patch 0 lies at row {singles[0]}" if 0 in singles else ""
    raise CheckFailed(f"{where}: output patches moved by rows of the attention output: {shown}{more}{span}")
