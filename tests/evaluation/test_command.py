"""`uvr eval`: whole runs, processes that share them and are killed, and what it refuses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from judged import FAST, PROMPTS, lasting, uvr
from PIL import Image

from uvr_evaluation import pages
from uvr_evaluation.metrics import mask_of, patches_of
from uvr_evaluation.rows import read_rows


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
        deadline = time.monotonic() + 1800
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
