"""Nothing changes unasked: neutral edits, no edit, and what is left after detach."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ...engine.regulator import Regulator
from ..example import Example, Size
from ..given import Edit, everywhere, regulated
from ..suite import expect
from .subject import Subject


class Untouched(Subject):
    """Checks of what the engine leaves alone on this model."""

    def neutral_edit(self) -> None:
        """Factors of 1 on every row: written back bitwise; computed anew within rounding."""
        example, arguments, size, stock = self._stock()
        for policy, tolerance in ((Edit(), 0.0), (Edit(tokens=True), 1e-4)):
            with regulated(example.model, self.adapter, everywhere(2, size), policy) as reg:
                edited = example.run(arguments, size)
                _expect_located(reg)
            error = float((edited - stock).abs().max() / stock.abs().max())
            what = "factors of 1 for each token" if policy.tokens else "a table of ones"
            expect(error <= tolerance, f"change by {what}", expected=f"at most {tolerance:g} of the output", got=error)

    def no_edit(self) -> None:
        example, arguments, size, stock = self._stock()
        with regulated(example.model, self.adapter, everywhere(2, size), Edit(nothing=True)) as reg:
            observed = example.run(arguments, size)
            _expect_located(reg)
        same, change = torch.equal(observed, stock), f"a change of {float((observed - stock).abs().max()):.3g}"
        expect(same, "output under a policy that returns None", expected="bitwise stock", got=change)

    def detach(self) -> None:
        example, arguments, size, stock = self._stock()
        model = example.model
        before = _state(model)
        with regulated(model, self.adapter, everywhere(2, size), Edit(noise=1.0)):
            edited = example.run(arguments, size)
        expect(not torch.equal(edited, stock), "output under an edit", expected="a change", got="the stock output")
        after = _state(model)
        changed = [key for key in before if before[key] != after[key]]
        expect(not changed, "what differs after detach", expected="nothing", got=", ".join(changed))
        same = torch.equal(example.run(arguments, size), stock)
        expect(same, "output after detach", expected="bitwise stock", got="another")

    def _stock(self) -> tuple[Example, dict[str, Any], Size, torch.Tensor]:
        """An example, arguments of two samples, their size, and what the model makes of them."""
        example = self.make_example()
        size = example.sizes[0]
        arguments = example.arguments(size, 2, references=example.reference_sizes)
        return example, arguments, size, example.run(arguments, size)


def _expect_located(reg: Regulator) -> None:
    report = reg.report
    located = report is not None and all(finding.located for finding in report.findings)
    expect(located, "the patches given", expected="located in every sample", got=report)


def _state(model: nn.Module) -> dict[str, object]:
    """What must be the same before attach and after detach."""
    modules = dict(model.named_modules())
    return {
        "state_dict keys": tuple(model.state_dict()),
        "hooks": {p: (len(m._forward_pre_hooks), len(m._forward_hooks)) for p, m in modules.items()},
        "processors": {p: id(m.processor) for p, m in modules.items() if hasattr(m, "processor")},
        "attributes": {p: sorted(m.__dict__) for p, m in modules.items()},
        "class": type(model),
    }
