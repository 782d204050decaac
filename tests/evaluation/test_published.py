"""Published prompt sets by name, against a stand-in of the Hub on loopback."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import ran, refused
from stand_in import TOKEN, Hub, no_network, standing_in

from uvr_core import UVRError
from uvr_evaluation.published import published, read_published, terms_of, text_column

I2P = b"""prompt,categories,sd_seed,hard
a person by the sea,"sexual, shocking",41,0
,sexual,42,0
a crowd,hate,43,1
a painting of a bather,sexual,44,0
"""


def parquet(columns: Mapping[str, list]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.table(dict(columns)), buffer)
    return buffer.getvalue()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The sets of the table stand at the revisions that it pins."""
    with standing_in(monkeypatch, tmp_path / "cache") as hub:
        coco = {
            f"data/train-0000{i}-of-00002-ab.parquet": parquet(
                {"image": [b"x" * 100] * 2, "caption": [f"a dog {i}", f"a cat {i}"]}
            )
            for i in range(2)
        }
        for name, files in (("i2p", {"i2p_benchmark.csv": I2P}), ("coco-30k", {**coco, "ref.npy": b"x"})):
            row = published()[name]
            repo = hub.dataset(row.repository, files)
            repo.commits[-1] = (row.revision, repo.commits[-1][1])
        rows = {"prompt": ["x y"], "evaluation_seed": [5]}
        hub.dataset(published()["ring-a-bell"].repository, {"a.parquet": parquet(rows)}, gated=True)
        yield hub


def test_a_set_by_its_name_and_by_its_repository(hub: Hub) -> None:
    tasks, facts = read_published("hub:i2p")
    assert [(task.prompt, task.seed, task.concept, task.index) for task in tasks] == [
        ("a person by the sea", 41, "nudity", 0),
        ("a crowd", 43, "nudity", 1),
        ("a painting of a bather", 44, "nudity", 2),
    ]
    assert facts["file"] == "hub:AIML-TUDA/i2p@6594f223b0544fcbf63a6889417a6b9d2e40a77c"
    assert facts["licence"] == "mit"
    assert "FEMALE_BREAST_EXPOSED" in terms_of(["nudity", "none"])["nudity"].labels
    hub.asked.clear()
    assert read_published("hub:AIML-TUDA/i2p") == (tasks, facts)
    assert hub.asked == []  # pinned: the cache answers
    sexual, _ = read_published("hub:i2p-sexual")
    assert [task.seed for task in sexual] == [41, 44]


def test_no_more_is_fetched_than_the_limit_needs(hub: Hub) -> None:
    tasks, _ = read_published("hub:coco-30k", seed=7, limit=2)
    assert [(task.prompt, task.seed, task.group) for task in tasks] == [
        ("a dog 0", 7, "benign"),
        ("a cat 0", 8, "benign"),
    ]
    assert sum(request.startswith("GET") and ".parquet" in request for request in hub.asked) == 1
    assert len(read_published("hub:coco-30k")[0]) == 4


def test_a_gated_set_needs_the_users_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UVRError, match=r"hub:ring-a-bell: .*gated: accept its terms at https://huggingface.co/datasets/C"
    ):
        read_published("hub:ring-a-bell")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (task,), facts = read_published("hub:ring-a-bell")
    assert (task.prompt, task.seed) == ("x y", 5)
    assert facts["file"].endswith(hub.repos["dataset", "Chia15/RingABell-Nudity"].head)


def test_without_a_network_or_the_hub_ones_own_copy_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_network(monkeypatch, tmp_path / "cache")
    with pytest.raises(UVRError, match=r"cannot be reached.*; or pass your copy: hub:i2p=FILE"):
        read_published("hub:i2p")
    with pytest.raises(
        UVRError, match=r"not on the Hub; fetch https://raw\.githubusercontent.*hub:unlearndiffatk=FILE"
    ):
        read_published("hub:unlearndiffatk")
    copy = tmp_path / "nudity.csv"
    copy.write_text("prompt,evaluation_seed\na sculptor,3\n")
    (task,), facts = read_published(f"hub:unlearndiffatk={copy}")
    assert (task.prompt, task.seed, task.concept) == ("a sculptor", 3, "nudity")
    assert facts["file"] == "hub:unlearndiffatk=nudity.csv"
    with pytest.raises(UVRError, match="no such file"):
        read_published(f"hub:i2p={tmp_path / 'none.csv'}")
    copy.write_text("text\na sculptor\n")
    with pytest.raises(UVRError, match="no column 'prompt'; the columns are: text"):
        read_published(f"hub:unlearndiffatk={copy}")


def test_a_set_that_has_no_name_is_read_by_the_rule(hub: Hub) -> None:
    rows = b'{"id": 1, "nsfw_prompt": "a b", "concept": "nudity"}\n{"id": 2, "nsfw_prompt": "c", "concept": ""}\n'
    hub.dataset("me/set", {"a.jsonl": rows, "other.csv": b"text\nz\n", "README.md": b"#"})
    assert [task.prompt for task in read_published("hub:me/set")[0]] == ["z"]
    tasks, _ = read_published("hub:me/set:a.jsonl@main", seed=1)
    assert [(task.prompt, task.concept, task.seed) for task in tasks] == [("a b", "nudity", 1), ("c", "", 2)]


@pytest.mark.parametrize(
    ("columns", "known", "expected"),
    [
        (["id", "prompt", "text"], "", "prompt"),
        (["id", "text", "adv_prompt"], "", "adv_prompt"),
        (["id", "prompt_text"], "", "prompt_text"),
        (["prompt", "caption"], "caption", "caption"),
        (["a_prompt", "b_prompt"], "", None),
        (["prompt"], "caption", None),
    ],
)
def test_the_rule_of_the_text_column(columns: list[str], known: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UVRError, match="no column"):
            text_column(columns, known, "x")
    else:
        assert text_column(columns, known, "x") == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hub:i2q", "did you mean 'i2p'"),
        ("hub:", "expected hub:NAME"),
        ("hub:no/set", "no such dataset on the Hub"),
        ("hub:i2p:none.csv", "no file 'none.csv'"),
        ("hub:coco-30k:*.json", r"no file \*.json; it has: data/"),
        ("hub:coco-30k:ref.npy", "this is .npy"),
        ("hub:t2i-riskyprompt", "holds pictures"),
    ],
)
def test_what_cannot_be_read(hub: Hub, name: str, message: str) -> None:
    with pytest.raises(UVRError, match=message):
        read_published(name)


def test_every_row_of_the_table_can_be_asked_for() -> None:
    for name, row in published().items():
        assert row.repository or row.url, name
        assert row.revision or "revision" in row.unverified or row.url, name
        assert row.licence or "licence" in row.unverified, name
        assert row.files or "files" in row.unverified or row.url, name
        assert row.prompt or row.kind == "pictures", name
    listed = json.loads(ran("prompt-sets", "--json").stdout)["prompt_sets"]
    assert {row["name"] for row in listed} == set(published())
    assert "gated" in ran("prompt-sets").stdout


def test_evaluated_by_name(hub: Hub, checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "subjects.toml").write_text('[nudity]\nlabels = ["warm"]\nwords = ["x"]\n')
    options = ("--steps", 2, "--size", "64x64", "--device", "cpu", "--judge", "shade", "--batch", 2)
    asked = ("--prompts", "hub:AIML-TUDA/i2p", "--limit", 2, "--subjects", tmp_path / "subjects.toml")
    summary = json.loads(
        ran(
            "eval", checkpoint, *asked, "--baseline", "every-second", "--out", tmp_path / "o", *options, "--json"
        ).stdout
    )
    assert summary["tasks"] == 2
    assert list(summary["arms"]["stock"]["groups"]) == ["nudity"]
    config = json.loads((tmp_path / "o" / "config.json").read_text())
    assert config["prompts"]["file"].startswith("hub:AIML-TUDA/i2p@6594f")
    assert "did you mean 'i2p'" in refused(
        "eval", checkpoint, "--prompts", "hub:i2q", "--judge", "shade", "--out", "o2"
    )
