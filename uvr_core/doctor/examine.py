"""A model class that no adapter knows: a small version of it, what can be found out from that, and a draft adapter.

Nothing is believed that can be tried: joint attention is what sees more keys when the text or the picture grows; an
output row is the one that moves an output patch; the scale of time is what reaches the sines of its embedding. How
pipelines guide is read off their source text, and so are their names.
"""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .errors import UnsupportedRuntime, UVRError, did_you_mean
from .seam import AttentionCall
from .testing.adapters import perturbed, record
from .testing.example import Example, Size

HEADS, HEAD_DIMS, WIDTH, TEXT = 2, (16, 24, 32, 64), 32, 5
Kind = Literal["ids", "shapes", "positions", "picture"]

_TEXT_WIDTHS = (
    "joint_attention_dim", "text_embed_dim", "cap_feat_dim", "context_in_dim", "text_in_dim", "text_dim",
    "text_hidden_dim", "caption_channels", "cross_attention_dim",
)  # fmt: skip
_TIMES = ("timestep", "timesteps", "t")
_MASKS = ("encoder_hidden_states_mask", "encoder_attention_mask", "attention_mask")
_POOLED = ("pooled_projections", "pooled_embeds")
_PIXELS = ("original_size", "target_size", "crop_coords")


def model_class(name: str) -> type[nn.Module]:
    """The model class of diffusers with that name.

    Raises:
        UVRError: there is none.
    """
    import diffusers

    found = getattr(diffusers, name, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        known = [n for n in dir(diffusers) if n.endswith("Model") and "Transformer" in n]
        raise UVRError(f"diffusers {diffusers.__version__} has no model class {name!r}{_close(name, known)}")
    return found


def _close(name: str, known: Sequence[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if "did you mean" in hint else ""


# ---------------------------------------------------------------------------------------------- a small version


def shrink(
    cls: type[nn.Module], config: Mapping[str, Any] | None = None, head_dim: int = HEAD_DIMS[0]
) -> dict[str, Any]:
    """Constructor arguments of a small version: two blocks of a kind, two heads, narrow.

    Args:
        cls: a model class of diffusers.
        config: arguments to start from where they differ from the constructor's defaults (a checkpoint's config).
        head_dim: of the joint attention.
    """
    parameters = list(inspect.signature(inspect.unwrap(cls.__init__)).parameters.values())[1:]
    known = {p.name: p.default for p in parameters if p.default is not p.empty}
    known |= {k: v for k, v in (config or {}).items() if k in {p.name for p in parameters}}
    heads = next((known[n] for n in ("num_attention_heads", "n_heads", "num_heads") if n in known), 0)
    width = next((known[n] for n in ("hidden_size", "dim") if n in known), None)
    size = known.get("attention_head_dim") or (width // heads if width and heads else 0)
    return {name: _small(name, value, heads, size, head_dim) for name, value in known.items()}


def _small(name: str, value: Any, heads: int, size: int, head_dim: int) -> Any:
    if isinstance(value, (list, tuple)) and "dual" in name:
        return type(value)(v for v in value if v < 1)
    if isinstance(value, (list, tuple)) and value and all(isinstance(v, int) for v in value):
        return type(value)(_axes(value, head_dim)) if sum(value) == size else value
    if not isinstance(value, int) or isinstance(value, bool) or value == 0:
        return value
    if re.search(r"(layers|blocks|depth)$", name):
        return min(value, 1 if re.search("refiner|text|approximator", name) else 2)
    if re.search(r"(kv|key_value)_heads$", name):
        return HEADS if value == heads else 1
    if re.search(r"heads$", name):
        return HEADS
    if name == "attention_head_dim":
        return head_dim
    if value == heads * size:
        return HEADS * head_dim
    if re.search("experts$", name):
        return min(value, 4)
    if value > WIDTH and re.search(r"(?<!axes_)dim$|hidden_size$|intermediate_size$", name):
        return WIDTH
    return value


def _axes(axes: Sequence[int], head_dim: int) -> list[int]:
    """Rotary axes, even, in about the same proportion, that sum to head_dim."""
    small = [max(2, 2 * (head_dim * axis // (2 * sum(axes)))) for axis in axes]
    small[-1] += head_dim - sum(small)
    return small


def _build(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """A model in eval mode whose weights are random, those that the class sets to zero included."""
    state = torch.random.get_rng_state()
    torch.manual_seed(0)
    try:
        model = cls(**config).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    finally:
        torch.random.set_rng_state(state)
    return model


# ---------------------------------------------------------------------------------------------- its arguments


@attrs.frozen(eq=False)
class Arguments:
    """Forward arguments of a small model, by the names that diffusers gives them.

    Attributes:
        model: the model.
        config: its constructor arguments.
        scale: the time argument at noise level 1, or at 0 if `clean`.
        clean: whether the time argument is turned round, 0 at noise level 1.
        text: number of text tokens.
    """

    model: nn.Module
    config: Mapping[str, Any]
    scale: float = 1.0
    clean: bool = False
    text: int = TEXT

    @property
    def names(self) -> dict[str, bool]:
        """{argument: whether it is required}."""
        parameters = list(inspect.signature(type(self.model).forward).parameters.values())[1:]
        return {p.name: p.default is p.empty for p in parameters}

    @property
    def kind(self) -> Kind:
        """How the picture's size reaches the model."""
        for name, kind in (("img_ids", "ids"), ("img_shapes", "shapes"), ("position_ids", "positions")):
            if name in self.names:
                return kind  # type: ignore[return-value]
        return "picture"

    @property
    def time(self) -> str:
        """Name of the time argument."""
        return next((name for name in _TIMES if name in self.names), _TIMES[0])

    @property
    def patch(self) -> int:
        """Side of a patch of a picture."""
        patch = self.config.get("patch_size") or 1
        return int(patch[-1] if isinstance(patch, (list, tuple)) else patch)

    def __call__(
        self, height: int, width: int, batch: int = 1, sigma: float = 0.5, references: tuple[Size, ...] = ()
    ) -> dict[str, Any]:
        """See uvr_core.testing.Example.inputs.

        Raises:
            UVRError: the forward requires an argument that UVR cannot make up.
        """
        grids = ((height, width), *references)
        tokens = sum(h * w for h, w in grids)
        made: dict[str, Any] = {}
        unknown = []
        for name, required in self.names.items():
            value = self._value(name, required, grids, tokens, batch, sigma)
            if value is not None:
                made[name] = value
            elif required:
                unknown.append(name)
        if unknown:
            raise UVRError(
                f"{type(self.model).__name__}.forward requires {', '.join(unknown)}, which UVR cannot make up; write "
                "the adapter and an Example by hand (CONTRIBUTING.md)"
            )
        return made

    def example(self) -> Example:
        """An Example on a fresh copy of the model."""
        fresh = attrs.evolve(self, model=_build(type(self.model), self.config))
        made = Example(fresh.model, fresh, guidance=pipelines_of(type(self.model).__name__).guidance or None)
        return attrs.evolve(made, references=self.kind in ("ids", "shapes") and _takes_references(fresh))

    def _value(
        self, name: str, required: bool, grids: tuple[Size, ...], tokens: int, batch: int, sigma: float
    ) -> Any:  # fmt: skip
        config, (height, width) = self.config, grids[0]
        axes = _axes_of(config)
        if name == "hidden_states":
            channels = config["in_channels"]
            if self.kind != "picture":
                return torch.randn(batch, tokens, channels)
            return torch.randn(batch, channels, height * self.patch, width * self.patch)
        if name in ("encoder_hidden_states", "text_bth"):
            layers = (config["num_text_layers"],) if "num_text_layers" in config else ()
            return torch.randn(batch, self.text, *layers, self._text_width())
        if name == self.time:
            return torch.full((batch,), self.scale * (1 - sigma if self.clean else sigma))
        if name == "img_ids":
            return _ids(grids, axes)
        if name == "txt_ids":
            return torch.zeros(self.text, axes)
        if name == "position_ids":
            return torch.cat([torch.zeros(self.text, axes), _ids(grids, axes)])
        if name == "img_shapes":
            return [[(1, h, w) for h, w in grids]] * batch
        if name in _POOLED and (size := config.get("pooled_projection_dim")):
            return torch.randn(batch, size)
        if name == "guidance" and config.get("guidance_embeds"):
            return torch.full((batch,), 3.5)
        if name == "text_lens":
            return torch.full((batch,), self.text)
        if name == "prior_token_id":
            return torch.randint(config["prior_vq_quantizer_codebook_size"], (batch, tokens))
        if name == "prior_token_drop":
            return torch.zeros(batch, tokens, dtype=torch.bool)
        if name in _MASKS and required:
            return torch.ones(batch, self.text, dtype=torch.bool)
        if name in _PIXELS and required:
            return torch.tensor([[8.0 * height, 8.0 * width]] * batch)
        return None

    def _text_width(self) -> int:
        for name in _TEXT_WIDTHS:
            if isinstance(self.config.get(name), int):
                return int(self.config[name])
        raise UVRError(f"{type(self.model).__name__}: which constructor argument is the width of the text is not known")


def _axes_of(config: Mapping[str, Any]) -> int:
    """Number of rotary axes, which is that of the position ids' columns."""
    return len(next((v for k, v in config.items() if re.match("axes_dim|rope_axes", k) and v), (0, 0, 0)))


def _ids(grids: Sequence[Size], axes: int) -> torch.Tensor:
    """(I, axes): number of the image, row, column, 0 ..."""
    parts = []
    for number, (height, width) in enumerate(grids):
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        ids = torch.stack([torch.full_like(rows, number), rows, columns], -1).reshape(-1, 3).float()
        parts.append(nn.functional.pad(ids, (0, axes - 3)))
    return torch.cat(parts)


def small_model(cls: type[nn.Module], config: Mapping[str, Any] | None = None) -> Arguments:
    """A small version of a class that runs, and its arguments, the time argument's scale found out.

    Raises:
        UVRError: none was found; says what each attempt met.
    """
    met: dict[str, list[int]] = {}
    for head_dim in HEAD_DIMS:
        try:
            small = shrink(cls, config, head_dim)
            arguments = Arguments(_build(cls, small), small)
            size = (2, 3)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                output = Example(arguments.model, arguments).run(arguments(*size, batch=2), size)
            if output.shape[:2] != (2, 6) or not bool(torch.isfinite(output).all()):
                raise ValueError(f"an output of shape {tuple(output.shape)} for 2 samples of 6 patches")
            clean = pipelines_of(cls.__name__).clean
            thousand = not clean and 0 < time_scale(arguments) < 30
            return attrs.evolve(arguments, scale=1000.0 if thousand else 1.0, clean=clean)
        except UVRError:
            raise
        except Exception as error:  # whatever the class makes of made-up arguments
            first = (str(error).splitlines() or [""])[0]
            met.setdefault(f"{type(error).__name__}: {first}", []).append(head_dim)
    tried = "; ".join(f"{what} (heads of {', '.join(map(str, sizes))})" for what, sizes in met.items())
    raise UVRError(f"no small version of {cls.__name__} runs; write the adapter and an Example by hand. Met: {tried}")


def tiny_example(cls: str | type[nn.Module], config: Mapping[str, Any] | None = None) -> Example:
    """An Example of a diffusers class, made up from the names of its arguments.

    Raises:
        UVRError: no such class, or no small version of it runs.
    """
    return small_model(model_class(cls) if isinstance(cls, str) else cls, config).example()


def _takes_references(arguments: Arguments) -> bool:
    try:
        Example(arguments.model, arguments).run(arguments(2, 3, references=((3, 2), (2, 2))), (2, 3))
    except Exception:  # whatever the class makes of more image tokens
        return False
    return True


class _Angles(TorchDispatchMode):
    """Records the arguments of every sine and cosine."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.sin.default, torch.ops.aten.cos.default):
            self.seen.append(args[0].detach().double())
        return func(*args, **(kwargs or {}))


def time_scale(arguments: Arguments) -> float:
    """Radians per unit of the time argument in the fastest sine of its embedding; 0 if no sine depends on it.

    About 1000 where the argument is 0..1, about 1 where it is 0..1000.
    """
    example = Example(arguments.model, arguments)
    found = []
    for value in (0.25, 0.75):
        with _Angles() as angles:
            example.run(arguments(2, 3, sigma=value / arguments.scale), (2, 3))
        found.append(angles.seen)
    steps = [float((b - a).abs().max()) / 0.5 for a, b in zip(*found, strict=True) if a.shape == b.shape and a.numel()]
    return max(steps, default=0.0)


# ---------------------------------------------------------------------------------------------- its pipelines


@attrs.frozen
class Pipelines:
    """What the source text of diffusers' pipelines says of a transformer class.

    Attributes:
        names: pipeline classes whose `transformer` it is, the plain one first.
        guidance: as Adapter.guidance, of the plain one; of the others if that has none. "" if there is no pipeline.
        others: what other pipelines do, if they guide otherwise.
        clean: whether the plain one turns the time argument round (1 = clean).
    """

    names: tuple[str, ...] = ()
    guidance: str = ""
    others: tuple[str, ...] = ()
    clean: bool = False


@functools.cache
def pipelines_of(model: str) -> Pipelines:
    """Pipelines of diffusers that drive a transformer class, from their source text; nothing is imported."""
    import diffusers

    folder = Path(str(diffusers.__file__)).parent / "pipelines"
    found: list[tuple[str, str]] = []
    for path in sorted(folder.glob("*/pipeline_*.py")):
        text = path.read_text("utf-8")
        if re.search(rf"transformer: {re.escape(model)}\b", text):
            name = re.search(r"^class (\w+)\(", text, re.MULTILINE)
            if name and "ControlNet" not in name[1] and "PAG" not in name[1]:
                found.append((name[1], text))
    found.sort(key=lambda item: (len(item[0]), item[0]))
    if not found:
        return Pipelines()
    ways = [way for way in dict.fromkeys(_guidance(text) for _, text in found) if way != "single"]
    clean = bool(re.search(r"timesteps? = .*(1000 - \w*t|\b1 - \w*t)", found[0][1]))
    return Pipelines(tuple(name for name, _ in found), ways[0] if ways else "single", tuple(ways[1:]), clean)


def _guidance(source: str) -> str:
    halves = re.search(r"(\w+), (\w+) = \w+\.chunk\(2", source)
    if halves and "cache_context" not in source:
        unconditional = [bool(re.search("uncond|neg", name)) for name in halves.groups()]
        if unconditional[0] != unconditional[1]:
            return "batched:uc" if unconditional[0] else "batched:cu"
    if "cache_context(" in source or len(re.findall(r"= self\.transformer\(", source)) > 1:
        return "two_pass"
    return "single"


# ---------------------------------------------------------------------------------------------- its attention


@attrs.frozen
class Findings:
    """What was found out of a model class.

    Attributes:
        model: class name.
        attention: patterns of the joint attention, in order of execution.
        image_at, output_first, text_output, guidance, pipelines: as Adapter has them.
        kind: how the picture's size reaches the model; patch: side of a patch, for pictures.
        time: name of the time argument; scale, clean: as Arguments has them.
        references: whether the model ran with reference images.
        unsure: {field: what to look at by hand}.
    """

    model: str
    attention: tuple[str, ...]
    image_at: Literal["start", "end"]
    output_first: bool
    text_output: bool
    guidance: str
    pipelines: tuple[str, ...]
    kind: Kind
    time: str
    scale: float
    clean: bool
    references: bool
    unsure: dict[str, str] = attrs.field(factory=dict)


def examine(arguments: Arguments) -> Findings:
    """Find out what an adapter must say of a small model.

    Raises:
        UVRError: no module was found in which text and picture attend to each other.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        return _examine(arguments)


def _examine(arguments: Arguments) -> Findings:
    unsure: dict[str, str] = {}
    example = arguments.example()
    joint, side = _joint(arguments)
    name = type(arguments.model).__name__
    if not joint:
        raise UVRError(
            f"{name}: no module was found in which text and picture attend to each other in one call (attention over "
            f"the picture or the text alone: {', '.join(side[:3]) or 'none'}); UVR regulates joint attention"
        )
    text_output = joint[-1].text_in_queries
    if len({call.text_in_queries for call in joint}) > 1:
        unsure["text_output"] = "some blocks have text among their queries, others have not"
    image_at, output_first = _roles(example, joint[-1], unsure)
    pipelines = pipelines_of(name)
    if not pipelines.names:
        unsure["guidance"] = "no pipeline of diffusers drives this class: say how guidance branches reach the model"
    elif pipelines.guidance == "single":
        unsure["guidance"] = f"no second pass was seen in {pipelines.names[0]}: is guidance distilled?"
    elif pipelines.others:
        unsure["guidance"] = f"some of its pipelines do otherwise ({', '.join(pipelines.others)})"
    if arguments.clean:
        unsure["time"] = f"{pipelines.names[0]} seems to turn time round (1 = clean): is it 0..1?"
    elif time_scale(arguments) == 0:
        unsure["time"] = "no sine of a time embedding was seen: 0..1 is a guess"
    if arguments.kind == "picture" and "patch_size" not in arguments.config:
        unsure["layout"] = "the class has no patch_size: 1 is a guess"
    return Findings(
        name, _patterns(arguments.model, [call.path for call in joint], unsure), image_at, output_first, text_output,
        pipelines.guidance or "two_pass", pipelines.names, arguments.kind, arguments.time, arguments.scale,
        arguments.clean, example.references, unsure,
    )  # fmt: skip


@attrs.frozen
class _JointModule:
    path: str
    text_in_queries: bool


def _joint(arguments: Arguments) -> tuple[list[_JointModule], list[str]]:
    """Modules whose keys grow with the text and with the picture, in order of execution; and the other attentions."""
    tapped = {}
    for path, module in arguments.model.named_modules():
        if getattr(module, "processor", None) is not None:
            try:
                record(Example(arguments.model, arguments), {path: module}, arguments(2, 3), (2, 3))
            except UnsupportedRuntime:
                continue
            tapped[path] = module
    counts = []
    for text, size in ((TEXT, (2, 3)), (TEXT + 2, (2, 3)), (TEXT, (3, 5))):
        changed = attrs.evolve(arguments, text=text)
        first: dict[str, AttentionCall] = {}
        for call in record(Example(arguments.model, changed), tapped, changed(*size), size):
            first.setdefault(call.path, call)
        counts.append({path: (call.query.shape[2], call.key.shape[2]) for path, call in first.items()})
    base, more_text, more_picture = counts
    joint, side = [], []
    for path, (queries, keys) in base.items():
        if more_text[path][1] > keys and more_picture[path][1] > keys:
            joint.append(_JointModule(path, more_text[path][0] > queries))
        else:
            side.append(path)
    return joint, side


def _patterns(model: nn.Module, paths: list[str], unsure: dict[str, str]) -> tuple[str, ...]:
    """Patterns that match these paths and no other module, in their order; else the paths themselves."""
    patterns = list(dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.|$)", "*", path) for path in paths))
    matched = []
    for pattern in patterns:
        regex = re.compile(re.escape(pattern).replace(r"\*", r"[^.]+"))
        matched += [path for path, _ in model.named_modules() if regex.fullmatch(path)]
    if matched == paths:
        return tuple(patterns)
    unsure["attention"] = "blocks of several kinds alternate: these are the small version's paths, name the real ones"
    return tuple(paths)


def _roles(example: Example, module: _JointModule, unsure: dict[str, str]) -> tuple[Literal["start", "end"], bool]:
    """(image_at, output_first) of the last joint block, by moving rows of its output."""
    size = example.sizes[0]
    tap = {module.path: dict(example.model.named_modules())[module.path]}
    call = record(example, tap, example.arguments(size), size)[0]
    queries, count = call.query.shape[2], size[0] * size[1]
    start = _first_row(example, tap, size, queries, (), unsure)
    if queries == count:  # the queries are the picture alone: look at the keys
        image_at: Literal["start", "end"] = "end" if _text_first(example, tap, size) else "start"
    else:
        image_at = "start" if start == 0 else "end"
        if start not in (0, queries - count):
            unsure["image_at"] = f"the output begins at row {start} of {queries}, at neither end"
    if not example.references:
        return image_at, True
    references = example.reference_sizes
    more = record(example, tap, example.arguments(size, references=references), size)[0].query.shape[2]
    with_references = _first_row(example, tap, size, more, references, unsure)
    begin = 0 if image_at == "start" else queries - count
    return image_at, with_references == begin


def _first_row(
    example: Example, tap: Mapping[str, nn.Module], size: Size, rows: int, references: tuple[Size, ...],
    unsure: dict[str, str],
) -> int:  # fmt: skip
    """The row that moves output patch 0; a doubt if the patches do not follow one row each."""
    (module,) = tap.values()
    moved = perturbed(example, module, example.arguments(size, rows, references=references), size, rows)
    hits = [(row > 1e-3 * moved.max()).nonzero().flatten().tolist() for row in moved]
    count = size[0] * size[1]
    start = next((row for row, patches in enumerate(hits) if patches == [0]), int(moved[:, 0].argmax()))
    if hits[start : start + count] != [[patch] for patch in range(count)]:
        unsure["image_at"] = "rows of the last joint block do not move one output patch each, in order"
    return start


def _text_first(example: Example, tap: Mapping[str, nn.Module], size: Size) -> bool:
    """Whether the keys begin with text: what changes there when the text does."""
    arguments = example.arguments(size)
    other = {**arguments, "encoder_hidden_states": torch.randn_like(arguments["encoder_hidden_states"])}
    one, two = (record(example, tap, each, size)[0].key for each in (arguments, other))
    changed = (one - two).abs().amax((0, 1, 3))
    half = len(changed) // 2
    return bool(changed[:half].sum() > changed[half:].sum())


# ---------------------------------------------------------------------------------------------- the draft

_LAYOUTS: Mapping[Kind, str] = {
    "ids": """\
def layout(arguments: Arguments) -> Layout:
    ids = arguments["img_ids"]  # (I, {axes}): image, row, column; the output has the lowest number
    ids = ids[0] if ids.ndim == 3 else ids
    images = [ids[ids[:, 0] == number] for number in ids[:, 0].unique()]
    grids = [tuple(int(n) for n in (part[:, 1:3].amax(0) - part[:, 1:3].amin(0) + 1).tolist()) for part in images]
    return Layout(arguments["hidden_states"].shape[1], len(images[0]), grids[0], tuple(grids[1:]))""",
    "shapes": """\
def layout(arguments: Arguments) -> Layout:
    (_, height, width), *references = arguments["img_shapes"][0]  # (frames, rows, columns), the output first
    others = tuple((rows, columns) for _, rows, columns in references)
    return Layout(arguments["hidden_states"].shape[1], height * width, (height, width), others)""",
    "positions": """\
def layout(arguments: Arguments) -> Layout:
    image = arguments["hidden_states"].shape[1]
    ids = arguments["position_ids"].reshape(-1, arguments["position_ids"].shape[-1])[-image:]  # text, then the picture
    height, width = (int(n) for n in (ids[:, 1:3].amax(0) - ids[:, 1:3].amin(0) + 1).tolist())
    return Layout(image, height * width, (height, width))""",
    "picture": """\
def layout(arguments: Arguments) -> Layout:
    patch = {patch}
    height, width = (side // patch for side in arguments["hidden_states"].shape[-2:])
    return Layout(height * width, height * width, (height, width))""",
}


def adapter_name(model: str) -> str:
    """A name for the adapter of a class: "QwenImageTransformer2DModel" -> "qwen-image"."""
    stem = re.sub(r"Transformer[23]DModel$|Model$", "", model)
    return re.sub(r"(?<=.)(?=Image|Edit)", "-", stem).lower()


def draft(findings: Findings, arguments: Arguments) -> str:
    """Python source of an adapter module; what is not certain carries a TODO."""
    name = adapter_name(findings.model)
    constant = re.sub(r"\W", "_", name).upper()

    def todo(field: str) -> str:
        return f"  # TODO {findings.unsure[field]}" if field in findings.unsure else ""

    patch = 'arguments["self"].config.patch_size'
    value = arguments.config.get("patch_size")
    if isinstance(value, (list, tuple)):
        patch += "[-1]"
    elif value is None:
        patch = "1"
    layout = _LAYOUTS[findings.kind].format(patch=patch, axes=_axes_of(arguments.config))
    layout = layout.replace(" -> Layout:", f" -> Layout:{todo('layout')}", 1)
    scale = "" if findings.scale == 1 else f" / {findings.scale:g}"
    turned = "1 - " if findings.clean else ""
    fields = [
        f"name={_quoted(name)},",
        f"model={_quoted(findings.model)},",
        f"attention={_tuple(findings.attention)},{todo('attention')}",
        "layout=layout,",
        "time=sigma,",
        f"image_at={_quoted(findings.image_at)},{todo('image_at')}",
        *([] if findings.output_first else ["output_first=False,"]),
        *([] if findings.text_output else ["text_output=False,"]),
        *([f"# TODO text_output: {findings.unsure['text_output']}"] if "text_output" in findings.unsure else []),
        f"guidance={_quoted(findings.guidance)},{todo('guidance')}",
        *([f"pipelines={_tuple(findings.pipelines)},"] if findings.pipelines else []),
    ]
    body = "\n".join(f"    {field}" for field in fields)
    return f'''\
"""{findings.model}, drafted by `uvr doctor` from a small random version. Check it before use."""

from __future__ import annotations

import torch

from uvr_core.adapter import Adapter, Arguments, Layout


{layout}


def sigma(arguments: Arguments) -> torch.Tensor:
    return {turned}arguments["{findings.time}"]{scale}{todo("time")}


{constant} = Adapter(
{body}
)
'''


def load_draft(source: str) -> Any:
    """The Adapter in a draft's source.

    Raises:
        UVRError: the source holds none.
    """
    from .adapter import Adapter

    names: dict[str, Any] = {}
    exec(compile(source, "<draft>", "exec"), names)
    for value in names.values():
        if isinstance(value, Adapter):
            return value
    raise UVRError("the draft's source holds no Adapter")


def _quoted(text: str) -> str:
    """A string's source, in double quotes."""
    return json.dumps(text)


def _tuple(parts: Sequence[str]) -> str:
    """A tuple's source, over several lines where one would be long."""
    inner = ", ".join(map(_quoted, parts))
    if len(inner) > 90:
        return "(\n" + "".join(f"        {_quoted(part)},\n" for part in parts) + "    )"
    return f"({inner},)" if len(parts) == 1 else f"({inner})"


__all__ = [
    "Arguments", "Findings", "Pipelines", "adapter_name", "draft", "examine", "load_draft", "model_class",
    "pipelines_of", "shrink", "small_model", "time_scale", "tiny_example",
]  # fmt: skip
