"""What one checkout does, as JSON: run by tools/same.py. It knows public names alone, so that it runs in either.

python tools/same_probe.py TREE OUT.json [PATTERN]
"""

from __future__ import annotations

import copy
import hashlib
import json
import pickle
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image
from same_pipelines import PIPELINES, tiny_pipeline

import uvr_core
from uvr_core import plugins

PROMPTS = ["a cat", "a large knife on the left", "a dog and a tree"]
EDITING = ("flux-kontext", "qwen-image-edit")
STEPS = 3
MASKS = np.zeros((3, 8, 8), bool)
MASKS[1, 2:5, 3:6] = True
Case = tuple[str, Callable[[], Any]]


def digest(value: Any) -> Any:
    """Tensors, arrays and pictures as the hash of their bytes; None where there is none."""
    if isinstance(value, (list, tuple)):
        return [digest(item) for item in value]
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    if isinstance(value, torch.Tensor):
        value = value.detach().contiguous().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype} {hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()[:16]}"
    return value


class Model:
    """A tiny pipeline, with fixed prompts, noise and source pictures, and concepts that fit it."""

    def __init__(self, name: str):
        self.name, self.pipe = name, tiny_pipeline(name)
        with uvr_core.attach(self.pipe) as reg:
            self.fingerprint, taps = reg.fingerprint, reg.taps
            self.probe = reg.adapter.probe_paths(self.pipe.transformer)[0]
        self.taps = len(taps)
        pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), np.uint8)
        self.sources = [Image.fromarray(picture) for picture in pixels]

    def options(self, samples: tuple[int, ...] = (0, 1, 2), guided: bool = False) -> dict[str, Any]:
        """Keyword arguments of a call, without prompts and noise."""
        options: dict[str, Any] = {"height": 64, "width": 64, "num_inference_steps": STEPS, "max_sequence_length": 16}
        options["guidance_scale" if self.name == "sd3" else "true_cfg_scale"] = 3.0 if guided else 1.0
        if guided:
            options["negative_prompt"] = [""] * len(samples)
        if self.name in EDITING:
            options["image"] = [self.sources[i] for i in samples]
        if self.name == "flux-kontext":
            options |= {"max_area": 64 * 64, "_auto_resize": False}
        return options

    def run(self, samples: tuple[int, ...] = (0, 1, 2), guided: bool = False, kind: str = "latent") -> Any:
        noise = [torch.Generator().manual_seed(40 + i) for i in samples]
        options = {**self.options(samples, guided), "output_type": kind, "generator": noise}
        return self.pipe(prompt=[PROMPTS[i] for i in samples], **options).images

    def bank(self, name: str = "x", detector: str = "contrast", threshold: float = 2.0, **more: Any) -> Any:
        """A random concept, calibrated by hand; at this threshold some patches of every picture are hits."""
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        width = self.fingerprint.heads * self.fingerprint.head_dim
        random = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        tensors = {
            "sigma": torch.tensor([1.0, 0.8, 0.5]),
            f"anchors/{self.probe}": random(5, width),
            f"direction/{self.probe}": random(3, width * (2 if self.name in EDITING else 1)),
            f"offset/{self.probe}": torch.zeros(3),
            f"token/{self.probe}": random(3, width),
        }
        if self.name in EDITING:
            tensors |= {f"origin/{self.probe}": random(3, 2 * width), f"origin_offset/{self.probe}": torch.zeros(3)}
        calibration = uvr_core.Calibration(detector, self.probe, (1.0, 0.0), threshold, **more)
        return uvr_core.ConceptBank(name, self.fingerprint, tensors, calibration, {"seed": 7})

    def regulated(self, samples: tuple[int, ...] = (0, 1, 2), guided: bool = False, kind: str = "latent",
                  **plan: Any) -> dict[str, Any]:  # fmt: skip
        """What a regulated run gives: latents or pictures, the report, or the error."""
        with uvr_core.attach(self.pipe, **plan) as reg:
            try:
                pictures = digest(list(self.run(samples, guided, kind)))
            except uvr_core.UVRError as error:
                pictures = f"{type(error).__name__}: {error}"
            report = reg.report
            return {"pictures": pictures, "report": report and report.to_dict(), "text": str(report)}


def registered(kind: str, name: str, *args: Any, **options: Any) -> Any:
    """An object of a registered class."""
    target = plugins.registry().get(kind, name)
    return target(*args, **options) if isinstance(target, type) else target


def generations(model: Model) -> Iterator[Case]:
    """Every policy, with guidance and without, for one picture and three."""
    oracle = lambda samples: registered("detector", "oracle", MASKS[list(samples)])  # noqa: E731
    yield "stock", lambda: digest(list(model.run(kind="np")))
    for policy in sorted(plugins.registry().names("policy")):
        for guided in (False, True):
            for samples in ((1,), (0, 1, 2)):
                yield (
                    f"{policy} oracle guided={guided} batch={len(samples)}",
                    lambda p=policy, g=guided, s=samples: model.regulated(
                        s, g, concepts=model.bank(), detector=oracle(s), policy=p
                    ),
                )
            yield (
                f"{policy} contrast guided={guided}",
                lambda p=policy, g=guided: model.regulated(
                    guided=g, concepts=model.bank(grow=1.5, min_patches=2, memory=0.5), policy=p
                ),
            )
    for detector, threshold in (("anchor", 0.01), ("anchor-cosine", 0.05), ("concept-token", 0.1)):
        yield (
            f"detector {detector}",
            lambda d=detector, t=threshold: model.regulated(concepts=model.bank(detector=d, threshold=t), policy="uvr"),
        )
    yield (
        "two concepts",
        lambda: model.regulated(
            guided=True,
            kind="np",
            concepts=[(model.bank("x"), "uvr-released"), (model.bank("y", memory=0.9), "selective")],
        ),
    )
    yield (
        "noise on top",
        lambda: model.regulated(
            concepts=model.bank(), policy=registered("policy", "uvr", alpha=0.5, startup=0.5, margin=1, mass_ratio=0.6)
        ),
    )
    yield (
        "refuse, then",
        lambda: model.regulated(
            concepts=model.bank(threshold=3.5, min_patches=9),
            policy=registered("policy", "refuse", steps=1, then=registered("policy", "block")),
        ),
    )
    yield "refuse, placeholder", lambda: model.regulated(
        kind="pil", concepts=model.bank(), detector=oracle((0, 1, 2)),
        policy=registered("policy", "refuse", instead=Image.new("RGB", (8, 8))),
    )  # fmt: skip
    yield "bare transformer", lambda: bare(model)
    yield "fit", lambda: fitted(model)
    for baseline in sorted(plugins.registry().names("baseline")):
        yield f"baseline {baseline}", lambda b=baseline: by_baseline(model, b)


def bare(model: Model) -> dict[str, Any]:
    """The transformer attached alone, driven by its pipeline."""
    plan = {"concepts": model.bank(), "policy": "selective"}
    with uvr_core.attach(model.pipe.transformer, **plan) as reg:
        with reg.generation() if hasattr(reg, "generation") else nullcontext():
            return {"pictures": digest(list(model.run(guided=True))), "report": reg.report.to_dict()}


def fitted(model: Model) -> dict[str, Any]:
    """A bank collected and calibrated on noise."""
    masks = lambda images, grid: np.repeat(MASKS[1:2], len(images), 0)  # noqa: E731
    generate = model.options((0,), guided=True)
    generate["negative_prompt"] = ""
    sources = generate.pop("image", None)
    more: dict[str, Any] = {"batch_size": 2, "generate": generate}
    if sources is not None:
        more |= {"sources": model.sources[:2], "benign_sources": model.sources[1:]}
    bank = uvr_core.collect(model.pipe, "x", prompts=PROMPTS[:2], benign_prompts=PROMPTS[1:], masks=masks, **more)
    calibrated = uvr_core.calibrate(model.pipe, bank, PROMPTS[:2], PROMPTS[1:], 0.5, masks=masks, **more)
    provenance = {key: value for key, value in bank.provenance.items() if key not in ("date", "created")}
    return {
        "tensors": {name: digest(tensor) for name, tensor in sorted(bank.tensors.items())}, "provenance": provenance,
        "kept": {name: digest(tensor) for name, tensor in sorted(calibrated.tensors.items())},
        "calibration": attrs.asdict(calibrated.calibration),
    }  # fmt: skip


def by_baseline(model: Model, name: str) -> Any:
    from uvr_core import protocols

    terms = getattr(protocols, "ConceptTerms", None) or protocols.Subject
    noise = [torch.Generator().manual_seed(40 + i) for i in range(3)]
    call = {**model.options(guided=True), "prompt": PROMPTS, "generator": noise, "output_type": "pil"}
    judges = {"all": lambda images: [{"knife": float(np.asarray(image).mean() / 255)} for image in images]}
    subject = terms("x", ("knife",), ("knife",))
    request = protocols.Request(model.pipe, call, (subject,), (model.bank(),), judges)
    return digest(list(registered("baseline", name).generate(request)))


def refusals(model: Model) -> Iterator[Case]:
    """Bad input through Python."""
    bank, pipe = model.bank(), model.pipe
    other = attrs.evolve(bank, fingerprint=attrs.evolve(bank.fingerprint, heads=5))
    uncalibrated = attrs.evolve(bank, calibration=None)
    attach = lambda target=pipe, *args, **plan: uvr_core.attach(target, *args, **plan).detach()  # noqa: E731
    yield "no model", lambda: attach(object())
    yield "unknown adapter", lambda: attach(pipe, "flix")
    yield "unknown policy", lambda: attach(concepts=bank, policy="selectiv")
    yield "unknown detector", lambda: attach(concepts=bank, detector="contrst")
    yield "another model's concept", lambda: attach(concepts=other)
    yield "not calibrated", lambda: attach(concepts=uncalibrated, detector="contrast")
    yield "no such file", lambda: attach(concepts="no/such.safetensors")
    yield "no such concept", lambda: attach(concepts="nothing")
    yield "twice the same", lambda: attach(concepts=[bank, bank])
    yield (
        "no such block",
        lambda: attach(concepts=attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, probe="blocks.7"))),
    )
    yield "threshold of nobody", lambda: attach(concepts=bank, threshold={"y": 1.0})
    yield "no policy", lambda: attach(concepts=bank, policy=object())
    yield "no detector", lambda: attach(concepts=bank, detector=object())
    yield "bad option", lambda: registered("policy", "uvr", strong=2.0)
    yield "refuse alone", lambda: registered("policy", "refuse", steps=2)
    yield "attached twice", lambda: nested(pipe)
    yield (
        "oracle of another batch",
        lambda: model.regulated(concepts=bank, detector=registered("detector", "oracle", MASKS[:2])),
    )
    yield (
        "window never met",
        lambda: model.regulated(
            concepts=attrs.evolve(bank, calibration=attrs.evolve(bank.calibration, window=(0.02, 0.01)))
        ),
    )
    yield "outside its pipeline", lambda: outside(pipe)
    for what, copied in (("pickled", pickle.dumps), ("copied", copy.deepcopy)):
        yield what, lambda c=copied: within(pipe, c)
    yield "collect without prompts", lambda: uvr_core.collect(pipe, "x", prompts=[], masks=MASKS)


def nested(pipe: Any) -> None:
    with uvr_core.attach(pipe):
        uvr_core.attach(pipe)


def outside(pipe: Any) -> None:
    with uvr_core.attach(pipe):
        pipe.transformer(hidden_states=torch.zeros(1, 64, 16))


def within(pipe: Any, function: Callable[[Any], Any]) -> None:
    with uvr_core.attach(pipe):
        function(pipe)


def commands(tree: Path) -> Iterator[Case]:
    """The command line on a saved pipeline: exit codes, what is printed, what is written."""
    from same_commands import lines

    model = Model("flux")
    model.pipe.save_pretrained("flux")
    model.bank("knife").save(Path("knife.safetensors"))
    for name, arguments, written in lines():
        yield f"command {name}", lambda a=arguments, w=written: invoked(tree, a, w)


def invoked(tree: Path, arguments: list[str], written: list[str]) -> dict[str, Any]:
    from uvr_core.cli import main

    result = CliRunner().invoke(main, arguments)
    files = {name: content(Path(name)) for name in written}
    texts = {"stdout": result.stdout, "stderr": result.stderr}
    return {"code": result.exit_code, **{k: plain(tree, v) for k, v in texts.items()}, "files": plain(tree, files)}


def content(path: Path) -> Any:
    """A file's picture or tensors as a hash, its JSON as it is, a folder's names; None if it is not there."""
    if path.is_dir():
        return sorted(str(file.relative_to(path)) for file in path.rglob("*"))
    if not path.is_file():
        return None
    if path.suffix == ".png":
        return digest(Image.open(path))
    if path.suffix == ".json":
        return json.loads(path.read_text("utf-8"))
    if path.suffix in (".md", ".toml"):
        return path.read_text("utf-8")
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def plain(tree: Path, value: Any) -> Any:
    """Without what differs from run to run: seconds, commits, the checkout's own place."""
    if isinstance(value, dict):
        return {k: plain(tree, v) for k, v in value.items() if not re.search(r"seconds$|^(commit|git|date|time)$", k)}
    if isinstance(value, list):
        return [plain(tree, item) for item in value]
    if isinstance(value, str):
        value = re.sub(r'"(seconds|commit|git|date)": [^\n]*', r'"\1"', value.replace(str(tree), "TREE"))
        value = re.sub(r"\d+(\.\d+)? s\b", "S s", re.sub(r"commit \w+", "commit", value))
        return re.sub(r".*(stock's time.*|\| [\d.]+ \| [\d.]+–[\d.]+ \|)\n", "", value)
    return value


def outcome(work: Callable[[], Any]) -> Any:
    try:
        return work()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def cases(tree: Path, pattern: str) -> Iterator[Case]:
    for name in PIPELINES:
        if re.search(pattern, f"{name} ") or not re.search(pattern, "command refused"):
            model = Model(name)
            yield from ((f"{name} {case}", work) for case, work in generations(model))
            if name == "flux":
                yield from ((f"refused {case}", work) for case, work in refusals(model))
    yield from commands(tree)


def main(tree: str, out: str, pattern: str = "") -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = {}
    seconds: dict[str, float] = {}
    for case, work in cases(Path(tree), pattern):
        if re.search(pattern, case):
            start = time.perf_counter()
            results[case] = outcome(work)
            seconds[case] = time.perf_counter() - start
    Path(out).write_text(json.dumps({**results, "seconds": seconds}, indent=1, default=str), "utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
