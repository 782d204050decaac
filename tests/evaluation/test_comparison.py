"""`uvr eval`: prompt sets, arms, rows that survive a crash, processes that share, and what the figures count."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pluggy
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from runner import make_bank
from tiny import tiny_flux

from uvr_core import plugins
from uvr_core.cli import main
from uvr_core.errors import UVRError
from uvr_evaluation import arms, pages, prompt_sets, terms
from uvr_evaluation.compare import behind
from uvr_evaluation.metrics import at_pixels, likeness, mask_of, overlap, patches_of
from uvr_evaluation.rows import RowFile, read_rows
from uvr_evaluation.statistics import paired_difference, wilson
from uvr_evaluation.summary import summarise

FAST = ("--steps", "2", "--size", "64x64", "--device", "cpu", "--batch", "2")
PROMPTS = 6


class Shade:
    """A judge of tiny pictures: "warm" where red outweighs blue, "bright" where the mean is high. It can point."""

    labels = ("warm", "bright")

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        seen = []
        for image in images:
            red, _, blue = np.asarray(image, float).mean((0, 1))
            mean = float(np.asarray(image).mean())
            seen.append({**({"warm": 1.0} if red > blue else {}), **({"bright": mean / 255} if mean > 100 else {})})
        return seen

    def locate(self, images: Sequence[Image.Image], labels: Sequence[str], grid: tuple[int, int]) -> np.ndarray:
        found = np.zeros((len(images), *grid), bool)
        found[:, : grid[0] // 2] = True
        return found


class Dull(Shade):
    """Another opinion."""

    def __call__(self, images: Sequence[Image.Image]) -> list[dict[str, float]]:
        return [{} for _ in images]


class Nothing:
    """A baseline that gives every second picture and refuses the rest."""

    def generate(self, request: Any) -> list[Any]:
        images = request.pipe(**request.call).images
        return [image if i % 2 else None for i, image in enumerate(images)]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny-eval") / "flux"
    tiny_flux().save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def judges() -> Iterator[None]:
    """The judges "shade" and "dull" and the baseline "every-second" come in through the door."""
    hookimpl = pluggy.HookimplMarker("uvr")

    class Plugin:
        @hookimpl
        def uvr_judges(self) -> dict[str, object]:
            return {"shade": Shade, "dull": Dull}

        @hookimpl
        def uvr_baselines(self) -> dict[str, object]:
            return {"every-second": Nothing}

    manager, plugin = plugins.registry().manager, Plugin()
    manager.register(plugin, "for-evaluation")
    yield
    manager.unregister(plugin)


@pytest.fixture
def concept(tmp_path: Path) -> Path:
    return make_bank("weapon", threshold=-1e9).save(tmp_path / "weapon.safetensors")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        {"prompt": f"a cat number {i}", "concept": "weapon" if i % 2 else "", "seed": 10 + i, "expect": ["bright"]}
        for i in range(PROMPTS)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "subjects.toml").write_text('[weapon]\nlabels = ["warm"]\nwords = ["knife"]\n')
    return path


def uvr(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == code, f"exit {result.exit_code}: {result.stderr or result.exception}"
    return result


def lasting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without what a clock gave."""
    return sorted(
        ({k: v for k, v in row.items() if k != "seconds"} for row in rows), key=lambda r: (r["task"], r["arm"])
    )


# ---------------------------------------------------------------------------------------------- the command


def test_a_whole_evaluation(checkpoint: Path, concept: Path, prompts: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    line = (
        "eval", checkpoint, "--prompts", prompts, "--concept", concept, "--policy", "uvr", "--policy", "observe",
        "--without", "ring", "--vary", "threshold=1e9", "--vary", "strong=0.5,0.9", "--control", "random",
        "--control", "oracle", "--baseline", "every-second", "--judge", "shade", "--judge", "dull", *FAST,
    )  # fmt: skip
    result = uvr(*line, "--out", out)
    config, summary = pages.load(out)
    names = [arm["name"] for arm in config["arms"]]
    assert names == [
        "stock", "uvr", "observe", "uvr without ring", "uvr, threshold=1000000000.0", "uvr, strong=0.5",
        "uvr, strong=0.9", "random mask", "oracle mask", "baseline every-second",
    ]  # fmt: skip
    rows = {(row["task"], row["arm"]): row for row in read_rows(out)}
    assert len(rows) == len(names) * PROMPTS == len(read_rows(out))
    for (task, arm), row in rows.items():
        assert row["seed"] == 10 + task
        if arm == "baseline every-second":
            assert row["refused"] == (task % 2 == 0)
        assert (row["file"] is None) == row["refused"]
        if row["file"]:
            with Image.open(out / row["file"]) as image:
                assert image.size == (64, 64)
    # The threshold that nothing reaches, and observing, leave every picture as it is; the others change the located.
    for arm, same in (("observe", True), ("uvr, threshold=1000000000.0", True), ("uvr", False), ("oracle mask", None)):
        identical = [rows[task, arm]["identical"] for task in range(PROMPTS)]
        wanted = [same if same is not None else task % 2 == 0 for task in range(PROMPTS)]  # benign: no true mask
        assert identical == wanted, arm
        if same:
            assert all(rows[task, arm]["psnr"] == 100 for task in range(PROMPTS))
    assert [f["located"] for f in rows[1, "uvr"]["findings"].values()] == [True]
    truth = rows[1, "stock"]["truth"]
    assert truth["patches"] == patches_of(mask_of(range(truth["grid"][0] // 2 * truth["grid"][1]), truth["grid"]))
    assert rows[0, "stock"]["truth"]["patches"] == []
    assert rows[1, "oracle mask"]["findings"]["weapon"]["iou"] == 1
    assert rows[1, "random mask"]["findings"]["weapon"]["patches"] == len(truth["patches"])

    unsafe = summary["arms"]["uvr"]["groups"]["weapon"]
    warm = [rows[task, arm]["seen"]["shade"].get("warm") is not None for arm in ("stock", "uvr") for task in (1, 3, 5)]
    assert unsafe["stock_shown"]["hits"] == sum(warm[:3])
    assert unsafe["left"]["hits"] == sum(warm[3:])
    assert unsafe["erased"]["of"] == sum(warm[:3])
    assert summary["arms"]["uvr, threshold=1000000000.0"]["groups"]["benign"]["false_located"]["hits"] == 0
    assert summary["arms"]["uvr"]["groups"]["benign"]["false_located"]["hits"] == 3
    assert summary["arms"]["baseline every-second"]["groups"]["benign"]["refused"]["hits"] == 3
    assert summary["judges"]["shade, dull"]["only dull"] == 0
    assert summary["arms"]["uvr"]["time"]["batches"] == 3
    for part in ("**weapon: 3 unsafe tasks**", "| uvr without ring |", "baseline every-second"):
        assert part in result.stdout
    html = (out / "report.html").read_text()
    assert html.count("<img") == 1 + sum(row["file"] is not None for row in rows.values())
    with Image.open(out / "pareto.png") as image:
        assert image.size == (750, 550)
    assert {"versions", "git", "settings", "prompts"} <= set(config)

    # Again: nothing is made anew. With another question: refused. Then the page, from the folder alone.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.png") if path.name != "pareto.png"}
    uvr(*line, "--out", out)
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert "other arms" in uvr(*line, "--policy", "block", "--out", out, code=2).stderr
    assert "other settings" in uvr(*line[:-1], "3", "--out", out, code=2).stderr
    written = tmp_path / "results.md"
    uvr("report", out, "--markdown", written)
    assert written.read_text() == pages.page([out])
    assert uvr("report", out).stdout.strip() == pages.text(summary, config).strip()
    uvr("eval", checkpoint, "--prompts", prompts, "--judge", "shade", *FAST, "--out", out, "--overwrite")
    assert {row["arm"] for row in read_rows(out)} == {"stock"}
    assert not (out / "images" / "uvr").exists()


def _launch(arguments: Sequence[object], processes: int = 0) -> subprocess.Popen[str]:
    start = [sys.executable, "-m", "uvr_core.cli"]
    if processes:
        start = [
            str(Path(sys.executable).with_name("accelerate")), "launch", "--multi_gpu",
            "--num_processes", str(processes),
            "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
            "--no_python", *start,
        ]  # fmt: skip
    return subprocess.Popen(
        [*start, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True,
    )  # fmt: skip


def _wait(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.mark.slow
def test_kill_and_several_processes_lose_and_double_nothing(checkpoint: Path, concept: Path, tmp_path: Path) -> None:
    """One process; one killed with SIGKILL and run again; two by accelerate, killed as well: the same rows."""
    many = tmp_path / "prompts.csv"
    many.write_text(
        "prompt,concept,seed\n" + "".join(f"a cat {i},{'weapon' if i % 3 else ''},{i}\n" for i in range(40))
    )
    (tmp_path / "subjects.toml").write_text('[weapon]\nlabels = ["knife"]\n')
    line = ("eval", checkpoint, "--prompts", many, "--concept", concept, "--policy", "uvr", "--judge", "zoo",
            "--control", "observe", *FAST)  # fmt: skip
    whole = tmp_path / "whole"
    _wait(_launch([*line, "--out", whole]))
    expected = lasting(read_rows(whole))
    assert len(expected) == 40 * 3

    for processes in (0, 2):
        out = tmp_path / f"cut{processes}"
        running = _launch([*line, "--out", out], processes)
        deadline = time.monotonic() + 200
        while _rows_on_disk(out) < 12 and time.monotonic() < deadline:
            assert running.poll() is None, running.communicate()[1]
            time.sleep(0.01)
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()
        _kill_orphans(str(out))
        there = read_rows(out)
        assert 12 <= len(there) < len(expected), "killed in the middle"
        assert not (out / "summary.json").exists()
        kept = {path: path.read_bytes() for path in out.glob("rows-*.jsonl")}
        _wait(_launch([*line, "--out", out], processes))
        for path, data in kept.items():
            assert path.read_bytes().startswith(data[: data.rfind(b"\n") + 1]), "what was on disk is kept"
        assert lasting(read_rows(out)) == expected
        assert (out / "summary.json").is_file()
        assert len(list(out.glob("rows-*.jsonl"))) == max(1, processes)


def _rows_on_disk(out: Path) -> int:
    return (
        sum(path.read_bytes().count(b"\n") for path in out.glob("rows-*.jsonl"))
        if (out / "config.json").is_file()
        else 0
    )


def _kill_orphans(mark: str) -> None:
    """Workers of a launcher that was killed have process groups of their own."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (entry / "cmdline").read_bytes() and int(entry.name) != os.getpid():
                os.kill(int(entry.name), signal.SIGKILL)
        except (OSError, ProcessLookupError):
            continue
    time.sleep(0.2)


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--policy", "uvr"), "--policy needs a --concept"),
        (("--judge", "shaed"), "unknown judge 'shaed'; did you mean 'shade'?"),
        (("--concept", "BANK", "--policy", "blokc"), "unknown policy 'blokc'; did you mean 'block'?"),
        (("--concept", "BANK", "--without", "rings"), "unknown term 'rings'; did you mean 'ring'?"),
        (("--concept", "BANK", "--policy", "noise", "--without", "boost"), "none of the policies (noise) has it"),
        (("--concept", "BANK", "--vary", "strnog=1"), "has no parameter 'strnog'; did you mean 'strong'?"),
        (("--concept", "BANK", "--vary", "strong"), "expected NAME=VALUE"),
        (("--concept", "BANK", "--vary", "strong=7"), "strong"),
        (("--concept", "BANK", "--policy", "uvr", "--policy", "uvr"), "asked for twice"),
        (("--concept", "BANK", "--control", "orcale"), "unknown control 'orcale'; did you mean 'oracle'?"),
        (("--concept", "BANK", "--baseline", "every-secnd"), "did you mean 'every-second'?"),
        (("--concept", "BANK", "--anchors-from", "toy"), "expected LABEL=FILE"),
        (("--subjects", "nowhere.toml"), "nowhere.toml: no such file"),
        (("--lpips",), "LPIPS is not available here"),
    ],
)  # fmt: skip
def test_bad_options(
    checkpoint: Path, concept: Path, prompts: Path, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    given = [str(concept) if a == "BANK" else a for a in arguments]
    out = tmp_path / "out"
    result = uvr("eval", checkpoint, "--prompts", prompts, "--judge", "shade", *given, *FAST, "--out", out, code=2)
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "prompt,seed\na cat,-3\n", "a.csv:2: seed: expected a whole number >= 0, got '-3'"),
        ("a.csv", "prompt,seed\na cat,1.5\n", "got '1.5'"),
        ("a.csv", "text\na cat\n", "a.csv:2: no prompt"),
        ("a.csv", "prompt\na cat, a dog\n", "more values than columns"),
        ("a.csv", "prompt\n", "no prompts in this file"),
        ("a.csv", "prompt,image\na cat,none.png\n", "no such file"),
        ("a.jsonl", '{"prompt": "a cat"\n', "a.jsonl:1: not JSON"),
        ("a.jsonl", "[1]\n", "a.jsonl:1: expected an object, got list"),
        ("a.jsonl", '{"prompt": 3}\n', "prompt: expected text, got 3"),
        ("a.jsonl", '{"prompt": "a", "expect": [1]}\n', "expect: expected labels"),
        ("a.jsonl", '{"prompt": "a", "seed": true}\n', "seed: expected a whole number"),
        ("a.parquet", "PAR1", "not a Parquet file"),
        ("a.txt", "a cat\n", "a prompt set is .csv, .jsonl or .parquet"),
    ],
)
def test_bad_prompt_sets(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UVRError) as caught:
        prompt_sets.read_tasks(path)
    assert message in str(caught.value)


def test_every_format_says_the_same(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    Image.new("RGB", (8, 8)).save(tmp_path / "source.png")
    rows: list[dict[str, Any]] = [
        {"prompt": "a cat, on a mat", "concept": "weapon", "seed": 7, "image": "source.png", "expect": ["cat", "mat"]},
        {"prompt": "ein Hügel", "concept": None, "seed": None, "image": "source.png", "expect": []},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    (tmp_path / "a.csv").write_text(
        "instruction,concept,seed,image,expect,more\n"
        '"a cat, on a mat",weapon,7,source.png,cat; mat,x\nein Hügel,,,source.png,,\n', "utf-8",
    )  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    sets = [prompt_sets.read_tasks(tmp_path / f"a.{kind}", seed=100) for kind in ("jsonl", "csv", "parquet")]
    assert sets[0] == sets[1] == sets[2]
    assert [task.seed for task in sets[0]] == [7, 101]
    assert [task.group for task in sets[0]] == ["weapon", "benign"]


def test_an_image_in_some_rows_only_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "source.png")
    (tmp_path / "a.csv").write_text("prompt,image\na,source.png\nb,\n")
    with pytest.raises(UVRError, match="row 2 has no image"):
        prompt_sets.read_tasks(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[weapon\n", "not TOML"),
        ("weapon = 3\n", "expected a table"),
        ("[weapon]\nlabel = ['x']\n", "unknown key 'label'"),
        ("[weapon]\nlabels = []\n", "expected a list of text"),
    ],
)
def test_bad_subjects(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "subjects.toml"
    path.write_text(text)
    with pytest.raises(UVRError, match=message):
        terms.read_subjects(path)


def test_labels_that_no_judge_reports(checkpoint: Path, prompts: Path, tmp_path: Path) -> None:
    (tmp_path / "subjects.toml").write_text('[weapon]\nlabels = ["wram"]\n')
    line = ("eval", checkpoint, "--prompts", prompts, "--judge", "shade", *FAST, "--out", tmp_path / "out")
    assert "did you mean 'warm'?" in uvr(*line, code=2).stderr


# ---------------------------------------------------------------------------------------------- rows


def test_rows_survive_a_torn_line_and_admit_one_writer(tmp_path: Path) -> None:
    with RowFile(tmp_path) as file:
        file.append([{"task": 1, "arm": "stock", "score": float("nan")}, {"task": 0, "arm": "stock"}])
        with pytest.raises(UVRError, match="another process"), RowFile(tmp_path):
            pass
    path = tmp_path / "rows-00000.jsonl"
    path.write_bytes(path.read_bytes() + b'{"task": 2, "arm"')
    assert [row["task"] for row in read_rows(tmp_path)] == [0, 1]
    with RowFile(tmp_path) as file:
        file.append([{"task": 3, "arm": "stock"}])
    rows = read_rows(tmp_path)
    assert [row["task"] for row in rows] == [0, 1, 3]
    assert rows[1]["score"] is None
    packed = tmp_path / "rows-00000.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_rows(tmp_path) == rows
    (tmp_path / "rows-00001.jsonl").write_text('{"task": 3}\n')
    with pytest.raises(UVRError, match=r"rows-00001.jsonl:1: a damaged row"):
        read_rows(tmp_path)


# ---------------------------------------------------------------------------------------------- figures


def synthetic() -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Ten unsafe tasks, all shown by stock; the policy erases eight and loses one neighbour; the filter refuses all."""
    names = ("stock", "selective", "baseline filter")
    kinds = ("stock", "policy", "baseline")
    config = {
        "arms": [{"name": n, "kind": k} for n, k in zip(names, kinds, strict=True)], "judges": {"one": None},
        "subjects": {"weapon": {"labels": ["knife"]}},
        "tasks": [{"index": i, "concept": "weapon", "expect": ["cat"], "absent": []} for i in range(10)],
    }  # fmt: skip
    rows = []
    for i in range(10):
        common = {"task": i, "group": "weapon", "concept": "weapon", "batch": i // 2, "refused": False}
        rows.append({**common, "arm": "stock", "seen": {"one": {"knife": 1, "cat": 1}}, "seconds": 1.0})
        seen = {**({"knife": 1} if i < 2 else {}), **({"cat": 1} if i != 5 else {})}
        found = {"weapon": {"located": i != 0, "iou": 0.5, "auroc": 0.9}}
        rows.append({
            **common, "arm": "selective", "seen": {"one": seen}, "seconds": 1.5, "identical": i == 0, "ssim": 0.9,
            "findings": found,
        })  # fmt: skip
        rows.append({**common, "arm": "baseline filter", "seen": {"one": {}}, "refused": True, "seconds": 1.1})
    return rows, config


def test_figures_count_what_they_say() -> None:
    rows, config = synthetic()
    summary = summarise(rows, config)
    cell = summary["arms"]["selective"]["groups"]["weapon"]
    assert (cell["erased"]["hits"], cell["erased"]["of"]) == (8, 10)
    assert cell["erased"]["ci95"] == list(wilson(8, 10))
    assert cell["relative_reduction"] == pytest.approx(0.8)
    assert cell["safe_share"]["rate"] == pytest.approx(0.8)
    assert cell["difference"]["left_minus_stock"] == pytest.approx(-0.8)
    assert (cell["kept"]["hits"], cell["kept"]["of"]) == (9, 10)
    assert cell["located"]["hits"] == 9
    assert cell["identical_where_not_located"] == {"hits": 1, "of": 1, "rate": 1.0, "ci95": list(wilson(1, 1))}
    assert (cell["iou"], cell["auroc"], cell["ssim"]) == pytest.approx((0.5, 0.9, 0.9))
    assert summary["arms"]["selective"]["time"]["ratio_to_stock"] == pytest.approx(1.5)
    filtered = summary["arms"]["baseline filter"]["groups"]["weapon"]
    assert (filtered["erased"]["hits"], filtered["kept"]["hits"], filtered["refused"]["hits"]) == (10, 0, 10)
    assert behind(summary) == summary["behind"]
    assert any("baseline filter does better than selective in erased: 10 of 10 against 8 of 10" in s for s in
               summary["behind"])  # fmt: skip
    assert any("faster" in said for said in summary["behind"])
    assert not any("kept" in said for said in summary["behind"])
    text = pages.text(summary, {"judges": {"one": None}})
    assert text.index("does better") < text.index("| arm |"), "said first"


def test_an_unfinished_task_is_not_counted() -> None:
    rows, config = synthetic()
    summary = summarise(rows[:-1], config)
    assert (summary["tasks"], summary["unfinished"]) == (9, 1)


def test_an_arm_that_does_not_run_here_is_said() -> None:
    rows, config = synthetic()
    rows = [
        {"task": r["task"], "arm": r["arm"], "group": "weapon", "concept": "weapon", "unsupported": "no guidance"}
        if r["arm"] == "baseline filter"
        else r
        for r in rows
    ]
    summary = summarise(rows, config)
    assert summary["arms"]["baseline filter"] == {"unsupported": "no guidance"}
    assert "baseline filter does not run here: no guidance" in pages.text(summary, {"judges": {"one": None}})


def test_paired_difference_covers_and_is_paired() -> None:
    rng = np.random.default_rng(0)
    one = rng.random(200) < 0.5
    same = paired_difference(list(one), list(one))
    assert same == (0.0, 0.0, 0.0)
    other = one.copy()
    other[:20] = ~other[:20]
    mean, low, high = paired_difference(list(one), list(other))
    assert low <= mean <= high
    assert high - low < 0.1, "pairs that agree add no spread; unpaired, it would be 0.2"
    assert paired_difference([], []) == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="as many"):
        paired_difference([True], [])


def test_likeness_looks_outside_the_mask() -> None:
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 255, (64, 64, 3), np.uint8)
    changed = picture.copy()
    changed[:16, :16] = 0
    mask = np.zeros((8, 8), bool)
    mask[:3, :3] = True  # wider than the change by one window
    assert likeness(changed, picture, mask) == pytest.approx({"ssim": 1.0, "psnr": 100.0})
    assert likeness(changed, picture)["ssim"] < 0.95
    error = np.mean((changed.astype(float) - picture) ** 2)
    assert likeness(changed, picture)["psnr"] == pytest.approx(10 * np.log10(255**2 / error))
    assert likeness(changed, picture, np.ones((8, 8), bool)) == {}
    assert at_pixels(mask, (64, 64)).sum() == 24 * 24
    assert overlap(mask, mask.T) == 1
    assert overlap(mask, np.zeros_like(mask)) == 0
    assert overlap(np.zeros_like(mask), np.zeros_like(mask)) is None


def test_random_masks_have_the_area_and_follow_the_seed() -> None:
    masks = np.zeros((2, 8, 8), bool)
    masks[0, :3, :3] = True
    scattered = arms.scattered(masks, [5, 6])
    assert scattered.sum((1, 2)).tolist() == [9, 0]
    assert np.array_equal(scattered, arms.scattered(masks, [5, 6]))
    assert not np.array_equal(scattered, arms.scattered(masks, [7, 6]))


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("true", True), ("1:0.8", (1, 0.8)), ("matched", "matched")]
)
def test_values(text: str, value: object) -> None:
    assert arms.parse_value(text) == value


def test_the_page_of_results_is_what_the_committed_rows_give() -> None:
    """docs/results.md from its folders, and every summary from its rows."""
    docs = Path(__file__).parents[2] / "docs"
    folders = [docs / "results" / name for name in ("flux", "sd3", "flux-kontext", "qwen-image", "qwen-image-edit")]
    assert pages.page(folders) == (docs / "results.md").read_text("utf-8")
    for folder in folders:
        config, summary = pages.load(folder)
        assert json.loads(json.dumps(summarise(read_rows(folder), config))) == summary
