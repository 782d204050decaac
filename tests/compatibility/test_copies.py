"""Copies, files, and ways around the regulator."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from rig import Rig, called, reference, sibling
from situations import Attempt, Pair, Topic

topic = Topic("copies")
test_regulated_exactly = topic.regulated_exactly()
test_refused_by_name = topic.refused_by_name()
test_every_row_has_its_cases_and_every_case_its_row = topic.complete()


@topic.case("save_pretrained while attached")
def saved(rig: Rig) -> Iterator[Pair]:
    expected = reference(rig.name)
    with tempfile.TemporaryDirectory() as folder:
        stock, mine = Path(folder, "stock"), Path(folder, "mine")
        rig.transformer.save_pretrained(stock)
        rig.pipe.save_config(stock)
        with rig.attach():
            rig.transformer.save_pretrained(mine)
            rig.pipe.save_config(mine)
            yield rig.run(), expected
        files = sorted(path.name for path in stock.iterdir())
        assert len(files) == 3
        assert files == sorted(path.name for path in mine.iterdir())
        assert all((stock / name).read_bytes() == (mine / name).read_bytes() for name in files)
        rig.pipe.transformer = type(rig.transformer).from_pretrained(mine)
    yield rig.regulated_run(), expected


@topic.case("deepcopy while attached")
def deep_copied(rig: Rig) -> Iterator[Attempt]:
    with rig.attach():
        yield lambda: rig.run(copy.deepcopy(rig.pipe))
        yield lambda: copy.deepcopy(rig.transformer)(**inputs)
    inputs = called(rig)
    with rig.attach(to=rig.transformer):
        yield lambda: copy.deepcopy(rig.transformer)(**inputs)


@topic.case("pickle while attached")
def pickled(rig: Rig) -> Iterator[Attempt]:
    with rig.attach():
        yield lambda: pickle.dumps(rig.pipe)
        yield lambda: pickle.dumps(rig.transformer)
        yield lambda: torch.save(rig.transformer, io.BytesIO())


@topic.case("the transformer's forward called past its hooks")
def bare_forward(rig: Rig) -> Iterator[Attempt]:
    inputs = called(rig)
    with rig.attach():
        yield lambda: rig.transformer.forward(**inputs)
    with rig.attach(to=rig.transformer):
        yield lambda: rig.transformer.forward(**inputs)


@topic.case("the pipeline attached, its transformer called from elsewhere")
def around(rig: Rig) -> Iterator[Attempt]:
    other, stock, inputs = sibling(rig), type(rig.pipe), called(rig)
    with rig.attach():
        yield lambda: rig.run(other)
        yield lambda: rig.run(lambda **options: stock.__call__(rig.pipe, **options))
        yield lambda: rig.transformer(**inputs)


@topic.case("the transformer replaced after attach")
def transformer_replaced(rig: Rig) -> Iterator[Attempt]:
    other = Rig(rig.name)
    with rig.attach():
        rig.pipe.transformer = other.transformer
        yield lambda: rig.run()
