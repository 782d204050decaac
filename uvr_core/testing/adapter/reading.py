"""What an adapter reads: which blocks are joint attention, the layout and noise level of a call, its text."""

from __future__ import annotations

import attrs
import torch

from ...engine.attach import attach
from ...errors import UnsupportedRuntime
from ...tokens import Role, TokenSpans
from ..suite import expect
from .record import record
from .subject import BATCHES, Subject

SIGMAS = (1.0, 0.75, 0.25)


class Reading(Subject):
    """Checks of the taps, and of what is read off the arguments."""

    def recognised(self) -> None:
        model = self.make_example().model
        expect(self.adapter.recognises(model), "class", expected=self.adapter.model, got=type(model).__name__)

    def taps_fire_once(self) -> None:
        for example, size, batch, references in self._cases():
            with attach(example.model, self.adapter) as reg:
                example.run(example.arguments(size, batch, references=references), size)
                report = reg.report
            fired, taps = report and report.fired, len(reg.taps)
            expect(fired == taps, f"attention calls at {size}, batch {batch}", expected=taps, got=fired)

    def execution_order(self) -> None:
        example = self.make_example()
        taps = self.adapter.taps(example.model)
        size = example.sizes[0]
        arguments = example.arguments(size, references=example.reference_sizes)
        ran = [call.path for call in record(example, taps, arguments, size)]
        first = list(dict.fromkeys(ran))
        expect(first == list(taps), "order in which the taps ran", expected=list(taps), got=first)

    def no_block_missed(self) -> None:
        example = self.make_example()
        size = example.sizes[0]
        taps = self.adapter.taps(example.model)
        arguments = example.arguments(size, references=example.reference_sizes)
        tokens = {call.key.shape[2] for call in record(example, taps, arguments, size)}
        others = {p: m for p, m in example.model.named_modules() if hasattr(m, "processor") and p not in taps}
        joint = []
        for path, module in others.items():
            try:
                seen = record(example, {path: module}, arguments, size)
            except UnsupportedRuntime:  # no attention call that the engine could see
                continue
            if any(call.key.shape[2] in tokens for call in seen):
                joint.append(path)
        what = "attention modules over as many tokens as the taps that are not tapped"
        expect(not joint, what, expected="none", got=", ".join(joint))

    def probes(self) -> None:
        probes = self.adapter.probe_paths(self.make_example().model)
        expect(probes, f"taps that match probes={self.adapter.probes}", expected="at least one", got="none")

    def layout(self) -> None:
        for example, size, batch, references in self._cases():
            layout = self._read_layout(example, example.arguments(size, batch, references=references))
            expected = attrs.evolve(layout, grid=size, references=references)
            expect(layout == expected, f"layout of {size}, batch {batch}", expected=expected, got=layout)

    def time(self) -> None:
        example = self.make_example()
        for sigma in SIGMAS:
            for batch in BATCHES:
                sigmas = self.adapter.time(example.bound(example.arguments(example.sizes[0], batch, sigma)))
                where = f"time at noise level {sigma}, batch {batch}"
                expect(isinstance(sigmas, torch.Tensor), where, expected="a tensor", got=type(sigmas).__name__)
                expect(sigmas.shape == (batch,), f"shape of {where}", expected=(batch,), got=tuple(sigmas.shape))
                values = [round(value, 6) for value in sigmas.float().tolist()]
                close = all(abs(value - sigma) < 1e-3 for value in values)
                expect(close, where, expected=sigma, got=values)

    def text_span(self) -> None:
        lengths, together = {}, set()
        for example, size, batch, references in self._cases():
            arguments = example.arguments(size, batch, references=references)
            layout = self._read_layout(example, arguments)
            for call in self._joint_calls(example, arguments, size, layout):
                spans = TokenSpans.of_call(self.adapter, layout, call.query.shape[2], call.key.shape[2])
                assert spans is not None  # it is the joint call
                queries, keys = spans
                lengths[(size, references, call.path)] = keys.count(Role.TEXT)
                together.add(queries.count(Role.TEXT) > 0)
        each = {(path, text) for (_, _, path), text in lengths.items()}
        once = len(each) == len({path for path, _ in each})
        what, numbers = "text tokens of a block, whatever the size", sorted(set(lengths.values()))
        expect(once, what, expected="one number", got=numbers)
        expect(min(lengths.values()) > 0, "text tokens", expected="at least 1", got=min(lengths.values()))
        declared = self.adapter.text_output
        expect(together == {declared}, "queries include the text", expected=declared, got=sorted(together))
