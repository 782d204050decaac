"""attach / detach: put the seam on a model, run sessions through it, hand out images only with a clean ledger."""

from __future__ import annotations

import contextvars
import functools
import inspect
import threading
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import nn

from . import plugins
from .adapter import Adapter
from .concepts import ConceptBank, Fingerprint, resolve
from .errors import (
    AdapterMismatch,
    AdapterNotFound,
    ConceptMismatch,
    PluginError,
    TapNotFired,
    UnsafeContent,
    UnsupportedRuntime,
    UVRError,
    did_you_mean,
)
from .protocols import Detector, Policy
from .report import Report, summarise
from .seam import AttentionCall, Hook, Seam, uncopyable
from .session import CallRecorder, Recorder, Rule, Session, TextRecorder, shape_of
from .signatures import seeds_of


class _Thread(threading.local):
    """What one thread has to do with one regulator. It goes with the regulator; a context would keep its variables."""

    report: Report | None = None
    batch: int | None = None  # of the forward in progress
    begun: contextvars.Token[Session | None] | None = None  # undoes this thread's first session of a bare transformer


class Regulator:
    """A model under regulation. Made by :func:`attach`; use as a context manager or call :meth:`detach`.

    Attributes:
        adapter: the Adapter in force.
        taps: paths of the joint attention blocks, in order of execution.
        rules: the plan, one Rule per concept.
        fingerprint: what concept banks must have been made for.
        last_grid: (H, W) of the output patches in the last finished generation.
    """

    def __init__(self, model: Any, transformer: nn.Module, adapter: Adapter, rules: Sequence[Rule]):
        self.adapter, self.rules = adapter, tuple(rules)
        self._transformer, self._pipeline = transformer, model if model is not transformer else None
        self._signature = inspect.signature(type(transformer).forward)
        modules = adapter.taps(transformer)
        self.taps = tuple(modules)
        self.fingerprint = fingerprint(transformer, modules)
        for rule in self.rules:
            _check_rule(rule, self.fingerprint, self.taps)
        self._session: contextvars.ContextVar[Session | None] = contextvars.ContextVar("uvr_session", default=None)
        self._branch: contextvars.ContextVar[str | None] = contextvars.ContextVar("uvr_branch", default=None)
        self._thread = _Thread()
        self._threads: weakref.WeakKeyDictionary[Session, int] = weakref.WeakKeyDictionary()
        self._generating = threading.Lock()
        self._last_report: Report | None = None
        self.last_grid: tuple[int, int] | None = None
        self._recorders: dict[str, Any] = {}
        self._pipeline_class: type | None = None
        self._named_branch: Any = None
        self._handles: list[Any] = []
        self._seam: Seam | None = Seam(modules, self._observe, entered=self._enter, left=self._leave)
        try:
            before, after = Hook(torch.compiler.disable(self._before)), Hook(self._after)
            self._handles.append(transformer.register_forward_pre_hook(before, with_kwargs=True))
            self._handles.append(transformer.register_forward_hook(after, with_kwargs=True, always_call=True))
            self._watch_branches()
            if self._pipeline is not None:
                self._wrap_pipeline()
        except BaseException:
            self.detach()
            raise

    # ------------------------------------------------------------------ life
    @property
    def attached(self) -> bool:
        """Whether the seam is in place."""
        return self._seam is not None

    def detach(self) -> None:
        """Restore the model and pipeline exactly. Idempotent."""
        if self._pipeline_class is not None:
            self._pipeline.__class__ = self._pipeline_class
            self._pipeline_class = None
        if self._named_branch is not None:
            if self._transformer.__dict__.get("cache_context") is self._named_branch:
                del self._transformer.__dict__["cache_context"]
            self._named_branch = None
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._seam is not None:
            self._seam.remove()
            self._seam = None
        if self._thread.begun is not None:
            self._keep_report(self.report)
            with suppress(ValueError):  # it began in a context of its own (asyncio.to_thread), which is gone
                self._session.reset(self._thread.begun)
            self._thread.begun = None

    def __enter__(self) -> Regulator:
        return self

    def __exit__(self, *exc: object) -> None:
        self.detach()

    @property
    def report(self) -> Report | None:
        """What ran: the last generation of this thread, else of any; None before the first, and if it broke off.

        Attached to a bare transformer, a generation ends when the noise level rises again; `report` then shows
        the generation in progress.
        """
        session = self._current()
        if session is not None and self._pipeline is None:
            return summarise(session, "incomplete")
        return self._thread.report or self._last_report

    def reset(self) -> None:
        """Forget the generation in progress. Only needed when a bare transformer is driven by hand and a new
        generation starts at a noise level no higher than the last one's (one-step sampling, say)."""
        self._session.set(None)

    @contextmanager
    def recording(
        self, recorder: Recorder | None = None, paths: Sequence[str] = (), text: TextRecorder | None = None,
        calls: CallRecorder | None = None,
    ) -> Iterator[None]:  # fmt: skip
        """Hand what detectors get at `paths` to `recorder(path, step, sigma, features)`; see Detector.scores.

        What the text tokens get and give there goes to `text(path, step, rows, mass)`; see Session.text_recorder. Every
        joint attention call goes to `calls(call, step, query_spans, key_spans)`; see Session.call_recorder.
        """
        self._recorders = {
            "recorder": recorder, "record": frozenset(paths), "text_recorder": text, "call_recorder": calls,
        }  # fmt: skip
        try:
            yield
        finally:
            self._recorders = {}

    # ------------------------------------------------------------------ sessions
    def _new_session(self, seeds: tuple[int, ...] = (0,)) -> Session:
        a = self.adapter
        session = Session(
            self.rules,
            self.taps,
            a.image_at,
            a.output_first,
            a.text_output,
            seeds,
            every_pass=self._pipeline is None,
            guidance=a.guidance,
            **self._recorders,
        )
        self._threads[session] = threading.get_ident()
        return session

    def _current(self) -> Session | None:
        """The session of this thread. A context may be a copy of another thread's (asyncio.to_thread), and with it
        the session in there."""
        session = self._session.get()
        return session if session is not None and self._threads.get(session) == threading.get_ident() else None

    def _watch_branches(self) -> None:
        """Hear the names that pipelines give to guidance passes: `with transformer.cache_context("cond")`."""
        stock = getattr(self._transformer, "cache_context", None)
        if stock is None or "cache_context" in self._transformer.__dict__:
            return

        @contextmanager
        def cache_context(name: str, **told: Any) -> Iterator[None]:
            token = self._branch.set(name)
            try:
                with stock(name, **told):
                    yield
            finally:
                self._branch.reset(token)

        self._named_branch = self._transformer.__dict__["cache_context"] = cache_context

    def _wrap_pipeline(self) -> None:
        pipeline = self._pipeline
        stock = type(pipeline)
        regulator = self

        @functools.wraps(stock.__call__)
        def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
            with regulator._alone():
                return regulator._generate(stock, self, args, kwargs)

        def __reduce_ex__(self: Any, protocol: object) -> str:
            raise uncopyable()

        body = {
            "__call__": __call__, "__reduce_ex__": __reduce_ex__,
            "__module__": stock.__module__, "__qualname__": stock.__qualname__,
        }  # fmt: skip
        pipeline.__class__ = type(stock.__name__, (stock,), body)
        self._pipeline_class = stock

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One call of the pipeline at a time."""
        if not self._generating.acquire(blocking=False):
            raise UnsupportedRuntime(
                "the pipeline is called while another call of it runs; a diffusers pipeline keeps the state of its "
                "call on itself: make a pipeline per thread around the one transformer, each with a scheduler and "
                "tokenizers of its own, and attach to the transformer"
            )
        try:
            yield
        finally:
            self._generating.release()

    def _generate(self, stock: Any, pipeline: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._keep_report(None)  # a call that breaks off must not show what an earlier one found
        if pipeline.transformer is not self._transformer:
            raise UnsupportedRuntime(
                "the pipeline's transformer was replaced after attach (by another one, or by torch.compile of it); "
                "detach and attach again, to an uncompiled one"
            )
        session = self._new_session(seeds_of(stock, args, kwargs))
        token = self._session.set(session)
        try:
            result = stock.__call__(pipeline, *args, **kwargs)
            expected = getattr(pipeline, "_num_timesteps", None)
            if expected is None:
                expected = len(pipeline.scheduler.timesteps)
            _check_ledger(session, int(expected))
            result = _without_refused(result, session)
            self._keep_report(summarise(session))
        except UnsafeContent:
            self._keep_report(summarise(session, "refused"))
            raise
        finally:
            self._session.reset(token)
        self.last_grid = session.layout.grid if session.layout else None
        return result

    def _keep_report(self, report: Report | None) -> None:
        self._thread.report = report
        self._last_report = report

    # ------------------------------------------------------------------ hooks
    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        along = list(_along(module, self.taps))
        _refuse_compiled(along)
        _refuse_skipping(along)
        if (parallel := getattr(module, "_parallel_config", None)) is not None:
            raise UnsupportedRuntime(
                f"{type(parallel).__name__}: context parallel splits the tokens and tensor parallel the heads that UVR "
                "must see together; run the transformer on one device, or detach UVR"
            )
        try:
            bound = self._signature.bind(module, *args, **kwargs).arguments
            layout, sigma = self.adapter.layout(bound), self.adapter.time(bound)
        except (TypeError, KeyError, AttributeError) as error:
            raise AdapterMismatch(
                f"adapter {self.adapter.name!r} cannot read the arguments of {type(module).__name__}.forward: {error}"
            ) from error
        if not layout.adds_up:
            raise AdapterMismatch(f"adapter {self.adapter.name!r} read a layout that does not add up: {layout}")
        session = self._current()
        if self._pipeline is None and (session is None or _begins(session, float(sigma.reshape(-1)[0]))):
            session = self._new_session()
            token = self._session.set(session)
            self._thread.begun = self._thread.begun or token
        if session is None:
            raise UVRError(
                "the regulated transformer was called outside its pipeline; attach to the transformer itself to "
                "drive it by hand, or detach"
            )
        session.halves, session.branch = self._halves(), self._branch.get()
        states = bound.get("hidden_states")
        self._thread.batch = None if states is None else len(states)
        session.begin_forward(layout, sigma)

    def _halves(self) -> str:
        """The order of guidance halves in the batch, while the pipeline batches them."""
        kind, _, order = self.adapter.guidance.partition(":")
        batched = kind == "batched" and bool(getattr(self._pipeline, "do_classifier_free_guidance", False))
        return order if batched else ""

    def _after(self, module: nn.Module, args: object, kwargs: Mapping[str, Any], output: object) -> None:
        session = self._current()
        if session is None or not session.in_forward:
            return
        if output is None:  # the forward raised; its own error is the one to show
            session.abort_forward()
            return
        try:
            session.end_forward()
        except TapNotFired as error:
            found = _skipping(module, kwargs)
            raise TapNotFired(f"{error}. On the model: {', '.join(found)}" if found else str(error)) from None

    def _enter(self, path: str) -> None:
        session = self._current()
        if session is None or not session.in_forward:
            raise UnsupportedRuntime(
                f"{path}: the attention of a regulated transformer ran outside a call of the transformer; call the "
                "transformer and not its forward or its blocks, train without gradient checkpointing, or detach UVR"
            )
        session.enter(path)

    def _leave(self, path: str) -> None:
        if (session := self._current()) is not None:
            session.leave(path)

    def _observe(self, call: AttentionCall) -> torch.Tensor | None:
        session, batch = self._current(), self._thread.batch
        if session is None:
            return None
        if batch is not None and session.in_forward and len(call.query) != batch:
            raise UnsupportedRuntime(
                f"{call.path}: attention over {len(call.query)} samples in a forward of {batch}; a feature that splits "
                "the batch is on (FasterCache, perturbed-attention guidance): disable it, or detach UVR"
            )
        return session.on_call(call)


def _along(transformer: nn.Module, taps: Sequence[str]) -> Iterator[nn.Module]:
    """The transformer and every module on the way to a tap, as they are now."""
    yield transformer
    seen: dict[str, nn.Module] = {"": transformer}
    for path in taps:
        parent = ""
        for name in path.split("."):
            here = f"{parent}.{name}" if parent else name
            if here not in seen:
                seen[here] = getattr(seen[parent], name)
                yield seen[here]
            parent = here


def _refuse_compiled(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        compiled = hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        if compiled or hasattr(module.forward, "_torchdynamo_orig_callable"):
            raise UnsupportedRuntime(
                f"{type(getattr(module, '_orig_mod', module)).__name__} is compiled; UVR does not regulate through "
                "torch.compile: attach to the uncompiled model and run it eagerly, or detach UVR"
            )


def _refuse_skipping(modules: Iterable[nn.Module]) -> None:
    """Layer skipping may leave an attention call in place and make it return its values: no count would tell."""
    for module in modules:
        registry = module.__dict__.get("_diffusers_hook")
        if registry is not None and any(type(h).__module__.endswith(".layer_skip") for h in registry.hooks.values()):
            raise UnsupportedRuntime(
                f"{type(module).__name__} has a layer_skip hook of diffusers, which may replace its attention by "
                "something that UVR cannot tell from it: remove it, or detach UVR"
            )


# Hooks of diffusers that change neither what is computed nor how often.
_HARMLESS_HOOKS = frozenset({"hooks", "group_offloading", "layerwise_casting"})


def _skipping(transformer: nn.Module, kwargs: Mapping[str, Any]) -> list[str]:
    """Names of what is switched on that skips attention."""
    found = {"skip_layers (skip-layer guidance)"} if kwargs.get("skip_layers") else set()
    for module in transformer.modules():
        hooks: Mapping[str, object] = getattr(getattr(module, "_diffusers_hook", None), "hooks", {})
        found |= {type(hook).__module__.rpartition(".")[2] for hook in hooks.values()} - _HARMLESS_HOOKS
    return sorted(found)


def _begins(session: Session, sigma: float) -> bool:
    """Whether a bare transformer's forward opens a new generation: the noise level rose, or the last call broke off."""
    return session.interrupted or (bool(session.sigmas) and sigma > session.sigmas[-1])


def _check_ledger(session: Session, expected: int) -> None:
    steps = session.step + 1
    if steps != expected:
        raise TapNotFired(
            f"the scheduler ran {expected} steps but {steps} carried a verified forward of the transformer; "
            "the images are withheld"
        )
    if session.interrupted or session.fired != sum(session.passes) * len(session.taps):
        raise TapNotFired(
            f"{session.fired} attention calls were verified, {sum(session.passes)} forwards of {len(session.taps)} "
            "taps were begun (a hook of UVR was removed?); the images are withheld"
        )
    if session.unregulated:
        raise TapNotFired(
            f"no forward of step {session.unregulated[0]} was named as the one that follows the prompt "
            '(transformer.cache_context("cond")); the images are withheld'
        )
    session.check_edits()
    for rule in session.unscored():
        raise UVRError(
            f"concept {rule.name!r} was never looked for: its window is noise levels {rule.window[0]:.3g} to "
            f"{rule.window[1]:.3g}, the run went from {session.sigmas[0]:.3g} to {session.sigmas[-1]:.3g}; "
            "calibrate it for this schedule (fewer steps, image-to-image); the images are withheld"
        )
    if len(set(session.passes)) > 1:
        where = next(i for i, n in enumerate(session.passes) if n != session.passes[0])
        raise TapNotFired(
            f"step {where} had {session.passes[where]} transformer passes, step 0 had {session.passes[0]}; "
            "guidance that changes inside a run is not supported; the images are withheld"
        )


def _without_refused(result: Any, session: Session) -> Any:
    """A pipeline's result with the refused images replaced; arrays and tensors become lists, to hold None."""
    if not session.refusals:
        return result
    images = result[0] if isinstance(result, tuple) else getattr(result, "images", None)
    if images is None or len(images) != session.batch:
        raise UnsafeContent(
            f"{len(session.refusals)} of {session.batch} images are refused and the pipeline's result "
            f"({type(result).__name__}) does not say which is which; none is returned",
            concept=next(iter(session.refusals.values())).concept, samples=tuple(sorted(session.refusals)),
            step=session.step,
        )  # fmt: skip
    kept = [session.refusals[i].instead if i in session.refusals else image for i, image in enumerate(images)]
    if isinstance(result, tuple):
        return (kept, *result[1:])
    result.images = kept
    return result


# ---------------------------------------------------------------------------------------------- attach


def fingerprint(transformer: nn.Module, modules: dict[str, nn.Module]) -> Fingerprint:
    """Class, block count, heads and head size of a transformer."""
    config: Mapping[str, Any] = getattr(transformer, "config", {})
    first = next(iter(modules.values()))
    heads: Any = config.get("num_attention_heads") or getattr(first, "heads", 0)
    size: Any = config.get("attention_head_dim") or getattr(first, "head_dim", 0)
    if not size and heads:  # Lumina 2 gives its width alone
        size = getattr(first, "inner_dim", 0) // heads
    return Fingerprint(type(transformer).__name__, len(modules), int(heads), int(size))


def _check_rule(rule: Rule, model: Fingerprint, taps: Sequence[str]) -> None:
    rule.bank.fingerprint.check(model, f"concept {rule.name!r}")
    if rule.probe not in taps:
        raise ConceptMismatch(
            f"concept {rule.name!r}: probe {rule.probe!r} is no joint attention block of the model"
            f"{did_you_mean(rule.probe, taps)}"
        )


def find_adapter(model: object, adapter: str | Adapter | None = None) -> Adapter:
    """The adapter of that name, or the one that recognises the model.

    Raises:
        AdapterNotFound: unknown name, or nothing recognises the model; names what is nearest.
        AdapterMismatch: the named adapter is for another class.
        PluginError: the named adapter does not load, or several recognise the model. Without a name, an adapter
            that does not load is a warning that names its plugin (strict: this error).
    """
    registry = plugins.registry()
    known = registry.names("adapter")
    if isinstance(adapter, Adapter):
        chosen = adapter
    elif adapter is not None:
        if adapter not in known:
            raise AdapterNotFound(f"unknown adapter {adapter!r}{did_you_mean(adapter, known)}")
        chosen = registry.get("adapter", adapter)
    else:
        adapters = registry.resolve_all("adapter")
        kind, line = type(model).__name__, [cls.__name__ for cls in type(model).__mro__]
        matching = {name: found for name, found in adapters.items() if found.recognises(model)}
        if not matching:
            skipped = ", ".join(repr(name) for name in known if name not in adapters)
            raise AdapterNotFound(
                f"no adapter recognises {kind}{did_you_mean(kind, {a.model for a in adapters.values()})} "
                + (f"Skipped, because they do not load: {skipped}. " if skipped else "")
                + "Pass adapter=..., or port the model: CONTRIBUTING.md, 'Add a model in 20 lines'"
            )
        distance = {name: line.index(a.model) if a.model in line else len(line) for name, a in matching.items()}
        nearest = [name for name in matching if distance[name] == min(distance.values())]  # a subclass before its base
        if len(nearest) > 1:
            claims = ", ".join(f"{name!r} of plugin {known[name][1]!r}" for name in nearest)
            raise PluginError(f"several adapters recognise {kind}: {claims}; pass adapter=..., or uninstall one")
        chosen = matching[nearest[0]]
    if not chosen.recognises(model):
        raise AdapterMismatch(f"adapter {chosen.name!r} is for {chosen.model}, the model is a {type(model).__name__}")
    return chosen


def attach(
    model: Any,
    adapter: str | Adapter | None = None,
    *,
    concepts: object = None,
    detector: str | Detector | None = None,
    policy: str | Policy = "selective",
    threshold: float | Mapping[str, float] | None = None,
    concept_folder: str | None = None,
) -> Regulator:
    """Regulate a diffusers pipeline or its transformer.

    Several concepts: each is located by itself, and the order in which they are listed is their rank. In every
    attention call a patch (core or ring) that an earlier concept's policy edits is not edited by a later one; a policy
    that does nothing in that call ("observe", "noise" after the start-up) claims nothing. What a policy is told is not
    cut by this: "refuse" refuses for a concept that lies under another. Column scales ("uvr-released" in editing),
    which reach every query of an image, multiply, and leave the patches that earlier concepts claimed as these made
    them.

    A bare transformer: no pipeline says which forward, or which half of a batch, follows the prompt. All are
    regulated, but for passes named "uncond" through `cache_context`: with guidance the unconditional prediction is
    restricted too, where the concept is located in it. To keep it stock, attach to the pipeline.

    Args:
        model: a pipeline with a `transformer`, or the transformer.
        adapter: registered name or Adapter; None: recognised by the transformer's class.
        concepts: one or a list of: path, ConceptBank, name in the concept folder, or a (concept, policy) pair.
            None: taps are verified, nothing changes; the report's posture is "observe".
        detector: registered name or object; None: the one each bank was calibrated with ("anchor" if it was not).
        policy: registered name or object for concepts that bring none of their own. The default attenuates only the
            text tokens that feed the located patches; "uvr" is the paper's restriction.
        threshold: tau, overriding every bank's calibration, or {concept name: tau}, overriding those.
        concept_folder: where concept names are looked up; else the UVR_CONCEPTS variable.

    Returns:
        A Regulator: a context manager whose `detach()` restores the model bitwise.

    Raises:
        AdapterNotFound, AdapterMismatch, ConceptMismatch, UnsupportedRuntime, PluginError: nothing was changed. A
            threshold for a concept that is not given is a ConceptMismatch.
    """
    transformer = getattr(model, "transformer", None) if not isinstance(model, nn.Module) else model
    if not isinstance(transformer, nn.Module):
        raise AdapterMismatch(
            f"expected a diffusers pipeline with a transformer, or a transformer; got {type(model).__name__}"
        )
    _refuse_compiled(transformer.modules())
    chosen = find_adapter(transformer, adapter)
    banks = resolve(concepts, concept_folder)
    names = [bank.name for bank, _ in banks]
    if len(set(names)) < len(names):
        raise ConceptMismatch(f"the same concept is given twice: {', '.join(names)}")
    for name in threshold if isinstance(threshold, Mapping) else ():
        if name not in names:
            raise ConceptMismatch(
                f"threshold: no concept {name!r} is given{did_you_mean(name, names) if names else ''}"
            )
    rules = [
        make_rule(
            bank, policy if own is None else own, detector,
            threshold.get(bank.name) if isinstance(threshold, Mapping) else threshold, chosen, transformer,
        )
        for bank, own in banks
    ]  # fmt: skip
    return Regulator(model, transformer, chosen, rules)


def make_rule(
    bank: ConceptBank,
    policy: object,
    detector: object,
    threshold: float | None,
    adapter: Adapter,
    transformer: nn.Module,
) -> Rule:
    """Resolve names and calibration of one concept into a Rule."""
    calibration = bank.calibration
    chosen = detector if detector is not None else (calibration.detector if calibration else "anchor")
    registry = plugins.registry()
    (det, det_name), (pol, pol_name) = registry.make("detector", chosen), registry.make("policy", policy)
    if not isinstance(det, Detector):
        raise UVRError(f"detector {det_name!r} has no scores(features, sigma, bank, probe) method")
    if not isinstance(pol, Policy):
        raise UVRError(f"policy {pol_name!r} has no edit(located, call) method")
    same = calibration is not None and det_name == calibration.detector
    if threshold is None:
        fixed = getattr(det, "threshold", None)
        if fixed is not None:
            threshold = float(fixed)
        elif same and calibration is not None:
            threshold = calibration.threshold
        else:
            was = f"calibrated for {calibration.detector!r}" if calibration else "not calibrated"
            raise ConceptMismatch(
                f"concept {bank.name!r} is {was} and detector {det_name!r} needs a threshold: run `uvr calibrate`, "
                "or pass threshold="
            )
    probe = calibration.probe if calibration else (bank.probes or adapter.probe_paths(transformer))[0]
    window = calibration.window if calibration and (same or getattr(det, "threshold", None) is None) else (1.0, 0.0)
    grow = calibration.grow if same and calibration and calibration.grow is not None else threshold
    return Rule(
        bank, det, pol, det_name, pol_name, probe, window, threshold, grow,
        min_patches=calibration.min_patches if same and calibration else 1,
        memory=calibration.memory if same and calibration else 0.0,
        **shape_of(pol),
    )  # fmt: skip
