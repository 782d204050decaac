"""Calls of the command line that tools/same_probe.py compares, in the folder where it saved a tiny FLUX."""

from __future__ import annotations

from pathlib import Path

FAST = ["--steps", "2", "--size", "64x64", "--max-tokens", "16", "--device", "cpu"]
DRAW = ["generate", "flux", "--prompt", "a cat", *FAST, "--out", "bad"]
NAMES = (
    "adapters", "plugins", "doctor", "collect", "calibrate", "generate", "edit", "analyze", "eval", "report", "demo",
    "zoo",
)  # fmt: skip


def lines() -> list[tuple[str, list[str], list[str]]]:
    """(name, arguments, files that it writes)."""
    write_inputs()
    bad = {name: (arguments, ["bad"]) for name, arguments in refused().items()}
    helps = {f"help {name}": ([*([name] if name else []), "--help"], []) for name in ("", *NAMES)}
    return [(name, *line) for name, line in {**helps, **works(), **bad}.items()]


def write_inputs() -> None:
    Path("shown.txt").write_text("a large knife on the left\na knife\n# a comment\na red knife\n")
    Path("benign.csv").write_text("prompt,seed\na cat,5\na dog and a tree,6\nthe tree,7\n")
    Path("damaged.jsonl").write_text('{"prompt": "a cat"}\n{"text": "a dog"}\n')
    Path("set.csv").write_text(
        "prompt,concept,seed,expect,absent,group\n"
        "a large knife on the left,knife,1,cat,,unsafe\na cat,,2,cat,dog,benign\nthe tree,,3,tree,,benign\n"
    )
    Path("subjects.toml").write_text('[knife]\nwords = ["knife"]\nlabels = ["knife"]\n')
    Path("broken.safetensors").write_bytes(b"no")
    Path("masks").mkdir(exist_ok=True)
    from PIL import Image

    for index in range(3):
        mask = Image.new("L", (64, 64))
        mask.paste(255, (8 * index, 8, 8 * index + 24, 40))
        mask.save(f"masks/{index}.png")


def works() -> dict[str, tuple[list[str], list[str]]]:
    concept = ["--concept", "knife.safetensors"]
    collect = ["collect", "flux", "knife", "--prompts", "shown.txt", "--benign", "benign.csv", "--masks", "masks"]
    return {
        "adapters": (["adapters"], []),
        "adapters json": (["adapters", "--json"], []),
        "plugins": (["plugins"], []),
        "plugins json": (["plugins", "--json"], []),
        "doctor folder": (["doctor", "flux"], []),
        "doctor folder json": (["doctor", "flux", "--json"], []),
        "doctor class": (["doctor", "CogView4Transformer2DModel"], []),
        "doctor matrix": (["doctor", "--matrix"], []),
        "observe": (
            ["generate", "flux", "--prompts", "benign.csv", *FAST, "--out", "observed"],
            ["observed/report.json", "observed/0000.png", "observed/0002.png"],
        ),
        "generate": (
            ["generate", "flux", "--prompt", "a knife", "--prompt", "a cat", *concept, "--true-cfg", "3", *FAST,
             "--batch", "1", "--seed", "9", "--out", "drawn", "--json"],
            ["drawn", "drawn/report.json", "drawn/0000.png", "drawn/0001.png"],
        ),
        "refuse": (
            ["generate", "flux", "--prompts", "shown.txt", *concept, "--policy", "refuse", *FAST, "--out", "withheld"],
            ["withheld", "withheld/report.json"],
        ),
        "report": (["report", "drawn"], []),
        "report json": (["report", "drawn/report.json", "--json"], []),
        "collect": ([*collect, *FAST, "--out", "made.safetensors", "--json"], []),
        "calibrate": (
            ["calibrate", "flux", "made.safetensors", "--unsafe", "shown.txt", "--benign", "benign.csv", "--masks",
             "masks", "--max-false-positive", "0.4", *FAST, "--out", "fitted.safetensors", "--json"],
            [],
        ),
        "analyze": (
            ["analyze", "flux", "--prompts", "shown.txt", *concept, "--masks", "masks", *FAST, "--out", "flows"],
            ["flows", "flows/analysis.json"],
        ),
        "eval": (
            ["eval", "flux", "--prompts", "set.csv", *concept, "--policy", "selective", "--policy", "uvr", "--control",
             "oracle", "--control", "random", "--baseline", "negative-prompt", "--baseline", "blocklist", "--judge",
             "zoo", "--true-cfg", "2", "--steps", "2", "--size", "64x64", "--max-tokens", "16", "--out", "compared"],
            ["compared/summary.json", "compared/config.json", "compared/rows-00000.jsonl", "compared"],
        ),
        "report eval": (["report", "compared"], []),
        "report page": (["report", "compared", "--markdown", "page.md"], ["page.md"]),
    }  # fmt: skip


def refused() -> dict[str, list[str]]:
    """Bad input: exit code 2, one line on stderr, nothing left behind."""
    return {
        "bad command": ["genrate"],
        "bad option": ["plugins", "--nope"],
        "bad model": ["generate", "nowhere", "--prompt", "a cat", "--out", "bad"],
        "bad prefix": ["generate", "zo:flux", "--prompt", "a cat", "--out", "bad"],
        "bad no prompt": ["generate", "flux", "--out", "bad"],
        "bad empty prompt": ["generate", "flux", "--prompt", " ", "--out", "bad"],
        "bad prompts": ["generate", "flux", "--prompts", "damaged.jsonl", "--out", "bad"],
        "bad policy": [*DRAW, "--policy", "selectiv"],
        "bad detector": [*DRAW, "--detector", "contrst"],
        "bad concept": [*DRAW, "--concept", "broken.safetensors"],
        "bad concept name": [*DRAW, "--concept", "nothing"],
        "bad threshold": [*DRAW, "--threshold", "nan"],
        "bad size": [*DRAW, "--size", "64"],
        "bad adapter": [*DRAW, "--adapter", "sd3"],
        "bad folder": ["generate", "flux", "--prompt", "a cat", *FAST, "--out", "drawn"],
        "bad edit": ["edit", "flux", "--instruction", "no cat", "--image", "masks/0.png", *FAST, "--out", "bad"],
        "bad masks": ["collect", "flux", "x", "--prompts", "shown.txt", "--masks", "jury", "--out", "bad"],
        "bad mask count": ["collect", "flux", "x", "--prompts", "benign.csv", "--masks", "nofolder", "--out", "bad"],
        "bad report": ["report", "flux/model_index.json"],
        "bad no report": ["report", "masks"],
        "bad doctor": ["doctor", "NoSuchTransformer"],
        "bad analyze": ["analyze", "flux", "--prompt", "a cat", "--detector", "anchor", "--out", "bad"],
        "bad eval": ["eval", "flux", "--prompts", "set.csv", "--judge", "nobody", "--out", "bad"],
        "bad zoo": ["zoo", "concepts", "nothing"],
    }
