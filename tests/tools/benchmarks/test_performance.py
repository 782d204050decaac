"""What keeps regulation cheap, as far as it can be counted: kernels, host syncs, sizes, peaks. Nothing is timed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

BENCHMARKS = Path(__file__).parents[3] / "tools" / "benchmarks"
sys.path.append(str(BENCHMARKS))

from measure import counted, peak_bytes  # noqa: E402
from performance_page import page  # noqa: E402
from sizes import Attention, Size, Stack, blob, policy  # noqa: E402

from uvr_adapters.flux import FLUX  # noqa: E402
from uvr_core.intercept.forwards import intervene  # noqa: E402
from uvr_core.ops.restrict import log_weights, restricted_rows  # noqa: E402
from uvr_core.ops.rows import rows_of, write_rows  # noqa: E402
from uvr_core.protocols import RowClass  # noqa: E402

CPU = torch.device("cpu")
SMALL = Size(heads=12, head_dim=64, text=128, text_width=32)
PATCHES = 896  # 1,024 tokens with the text
EDITS = ["block", "noise", "project", "redirect", "selective", "uvr", "uvr-released"]
FUSED_CALLS = {  # beyond the stock one
    "block": 1, "noise": 0, "project": 0, "redirect": 2, "selective": 2, "uvr": 2, "uvr-released": 0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def no_grad() -> Any:
    with torch.no_grad():
        yield


def attention(references: int = 0, batch: int = 1, patches: int = PATCHES) -> Attention:
    return Attention.make(SMALL, patches, CPU, torch.float32, references=references, batch=batch)


def fused(kernels: Counter[str]) -> int:
    return sum(n for name, n in kernels.items() if name.startswith("_scaled_dot_product"))


# -- idle ----------------------------------------------------------------------------------------------------


def test_an_idle_attention_does_nothing_on_the_device() -> None:
    """Outside of the probe block: no kernel, no view, no sync, and the stock output object itself."""
    a = attention()
    regulation, rows = a.regulation(policy("uvr"), None, concepts=5)
    output = a.stock()
    call = a.call("next", output)
    with counted() as (watch, syncs):
        edited = intervene(call, regulation, FLUX)
    assert (rows, edited) == (0, None)
    assert not watch.kernels
    assert not syncs.calls
    assert watch.views == 0


def test_an_idle_forward_calls_attention_as_often_as_stock() -> None:
    stack = Stack(SMALL, 3, 64, CPU, torch.float32)
    found: dict[str, tuple[Counter[str], int, Counter[str]]] = {}
    with counted() as (watch, syncs):
        stock = stack.forward()
    found["stock"] = watch.kernels, watch.views, syncs.calls
    for concepts in (1, 4):
        with stack.idle(concepts), counted() as (watch, syncs):
            assert torch.equal(stack.forward(), stock)
        found[f"idle {concepts}"] = watch.kernels, watch.views, syncs.calls
    assert fused(found["idle 1"][0]) == fused(found["stock"][0]) == 4
    # One concept more: a few kernels in the one probe block; the scores of all come over in one sync.
    each = (found["idle 4"][0] - found["idle 1"][0]).total() / 3
    assert each <= 10
    syncs_each = {name: n / 3 for name, n in (found["idle 4"][2] - found["idle 1"][2]).items()}
    assert not syncs_each


def test_the_number_of_anchors_does_not_show() -> None:
    a = attention()
    seen = []
    for anchors in (1, 1000):
        regulation, _ = a.regulation(policy("uvr"), None, anchors=anchors)
        regulation.run.leave()
        regulation.run.enter("probe")
        call = a.call("probe", a.stock())
        with counted() as (watch, _):
            intervene(call, regulation, FLUX)
        seen.append(watch.kernels)
    assert seen[0] == seen[1]


# -- active --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("references", [0, 1], ids=["synthesis", "editing"])
@pytest.mark.parametrize("name", EDITS)
def test_the_attention_matrix_is_never_held(name: str, references: int) -> None:
    """Nothing made is as large as one head's matrix, at most two q are held beside the call, few calls are made."""
    a = attention(references, patches=PATCHES // (1 + references))
    regulation, rows = a.regulation(policy(name), 0.1)
    assert rows > 0
    a.edit(regulation, a.stock())
    output = a.stock()
    with counted() as (watch, _):
        a.edit(regulation, output)
    tokens = a.query.shape[2]
    assert watch.largest < tokens * tokens
    assert watch.largest <= a.query.numel()
    expected = 2 if references and name == "uvr-released" else FUSED_CALLS[name]
    assert fused(watch.kernels) <= expected
    assert peak_bytes(lambda: a.edit(regulation, output), CPU) <= 2 * a.unit


def test_the_form_that_holds_the_matrix_is_told_apart() -> None:
    """What the test above rests on: the watch and the peak see a matrix where there is one."""
    a = attention()
    row_class = torch.from_numpy(blob(a.layout.grid, 0.1, 1)).flatten().long()
    with counted() as (watch, _):
        a.materialised(row_class)
    assert watch.largest >= a.query.shape[2] ** 2 * SMALL.heads
    assert peak_bytes(lambda: a.materialised(row_class), CPU) > 2 * a.unit


@pytest.mark.parametrize("references", [0, 1], ids=["synthesis", "editing"])
@pytest.mark.parametrize("name", EDITS)
def test_an_edit_waits_for_nothing_and_launches_little(name: str, references: int) -> None:
    """No host sync and at most 40 kernels, in the first block after the masks changed as in any later one."""
    for batch in (1, 2):
        a = attention(references, batch, PATCHES // (1 + 7 * references))  # so that a contrast is read in one piece
        regulation, rows = a.regulation(policy(name), 0.1)
        assert rows > 0
        for lists in ("new", "known"):
            output = a.stock()
            with counted() as (watch, syncs):
                edited = a.edit(regulation, output)
            assert not watch.syncs
            own = set() if lists == "known" else {"numpy", "tensor", "tolist"}  # of what lies on the host
            assert set(syncs.calls) <= own
            assert watch.kernels.total() <= 40, (batch, lists, watch.kernels)
            assert name in ("redirect", "selective") or not torch.equal(edited, a.stock())  # random words feed nothing


def test_kept_contrasts_leave_the_rows_alone_to_be_computed() -> None:
    """Of `selective`: one fused call beyond stock, of as many rows as are edited; the same bits while masks stand."""
    a = attention()
    outputs = []
    for kept in (False, True):
        regulation, _ = a.regulation(attrs.evolve(policy("selective"), contrast=1.0, kept=kept), 0.1)
        for lists in ("new", "known"):
            output = a.stock()
            with counted() as (watch, syncs):
                outputs.append(a.edit(regulation, output))
            assert not watch.syncs
            assert set(syncs.calls) <= ({"numpy", "tensor", "tolist"} if lists == "new" else set())
            assert fused(watch.kernels) == (1 if kept and lists == "known" else 2)
    assert watch.kernels.total() <= 20
    assert not torch.equal(outputs[0], a.stock())
    assert all(torch.equal(output, outputs[0]) for output in outputs)


def test_scores_of_all_concepts_come_over_in_one_sync() -> None:
    """In the step in which they are located, masks and lists of four concepts included."""
    a = attention()
    regulation, _ = a.regulation(policy("selective"), 0.1, concepts=4)
    regulation.run.leave()
    regulation.run.enter("probe")
    call = a.call("probe", a.stock())
    with counted() as (watch, syncs):
        intervene(call, regulation, FLUX)
    assert not watch.syncs
    assert set(syncs.calls) <= {"cpu", "numpy", "tensor", "as_tensor", "tolist"}
    assert syncs.calls["cpu"] == 1  # the others are of what lies on the host


def test_what_waits_for_a_device_is_told() -> None:
    """What the two tests above rest on."""
    x = torch.arange(4.0)
    for wait in (lambda: x.sum().item(), lambda: x[x > 1], lambda: torch.equal(x, x + 1), lambda: x.nonzero()):
        with counted() as (watch, _):
            wait()
        assert watch.syncs.total() == 1


# -- the short ways give what the long ones give ---------------------------------------------------------------


def test_an_output_is_written_into_only_where_nobody_sees_it() -> None:
    a = attention()
    regulation, _ = a.regulation(policy("uvr"), 0.1)
    ours, shown = a.stock(), a.stock()
    stock = ours.clone()
    assert a.edit(regulation, ours) is ours
    assert not torch.equal(ours, stock)
    regulation.run.leave()
    regulation.run.enter("probe")  # its output went to the detector
    edited = intervene(a.call("probe", shown), regulation, FLUX)
    assert edited is not None
    assert torch.equal(shown, stock)
    assert torch.equal(edited, ours)


@pytest.mark.parametrize("batch", [1, 2])
def test_classes_by_themselves_equal_one_call_with_a_weight_per_row(batch: int) -> None:
    """uvr cuts text for core rows, whose call leaves the text keys out, and attenuates it for ring rows."""
    a = attention(batch=batch)
    regulation, _ = a.regulation(policy("uvr"), 0.1)
    located = regulation._states[0].located
    assert located is not None
    edited = a.edit(regulation, a.stock())
    row_class = torch.zeros(batch, a.query.shape[2], dtype=torch.long)
    row_class[:, SMALL.text :] = located.core * RowClass.CORE + located.ring * RowClass.RING
    rows = rows_of(row_class > 0)
    key_class = torch.zeros_like(row_class)  # text
    key_class[:, SMALL.text :] = torch.where(row_class[:, SMALL.text :] > 0, 2, 1)
    table = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.05, 1.0], [0.4, 1.05, 1.0]])
    bias = log_weights(row_class.gather(1, rows.index), key_class, table)
    want = write_rows(a.stock(), restricted_rows(a.query, a.key, a.value, rows, bias), rows)
    assert (row_class[0, :] == RowClass.RING).any()
    torch.testing.assert_close(edited, want, rtol=0, atol=2e-6)


def test_one_weight_for_all_rows_is_a_weight_per_row() -> None:
    a = attention(batch=2)
    mask = torch.zeros(2, a.query.shape[2], dtype=torch.bool)
    mask[0, 5:80], mask[1, 700:710] = True, True
    rows = rows_of(mask)
    assert rows.padded
    assert torch.equal(rows.index, rows_of(mask, [75, 10]).index)
    weight = torch.randn(2, 1, a.query.shape[2])
    weight[1] = -math.inf  # nothing is left for sample 1
    alike = restricted_rows(a.query, a.key, a.value, rows, weight)
    each = restricted_rows(a.query, a.key, a.value, rows, weight.expand(-1, rows.width, -1))
    assert torch.equal(alike[0], each[0])
    assert alike[1, :, :10].isnan().all()
    assert each[1, :, :10].isnan().all()


# -- the script ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script_runs_and_its_page_follows_from_its_json(tmp_path: Path) -> None:
    parts = [word for part in ("stack", "growth", "attach", "help") for word in ("--part", part)]
    command = [sys.executable, str(BENCHMARKS / "performance.py"), "--quick", "--out", str(tmp_path), *parts]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "figures" / "performance.json").read_text())
    assert set(results) == {"environment", "quick", "minutes", "stack", "growth", "attach", "help"}
    text = (tmp_path / "performance.md").read_text()
    assert text == page(results)
    for bar in ("idle at most", "`uvr` on 10%", "extra peak", "further concept", "flat in anchors", "attach at most"):
        assert bar in text


def test_the_published_page_follows_from_the_published_json() -> None:
    docs = BENCHMARKS.parents[1] / "docs"
    published = docs / "figures" / "performance.json"
    if not published.exists():
        pytest.skip("not measured yet")
    assert (docs / "performance.md").read_text() == page(json.loads(published.read_text()))
