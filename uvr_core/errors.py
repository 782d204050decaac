"""Every error of UVR. Each message says what, where, expected and got, and what to do."""

from __future__ import annotations


class UVRError(Exception):
    """Base class: catching it catches everything that UVR raises on purpose."""


class AdapterNotFound(UVRError):
    """No adapter has that name, or none recognises the model."""


class AdapterMismatch(UVRError):
    """An adapter does not fit the model: paths that match nothing, spans that do not add up, other classes."""


class ConceptMismatch(UVRError):
    """A concept file is damaged, of another schema, or was made for another model, probe or head size."""


class TapNotFired(UVRError):
    """An expected attention call did not happen, or happened twice: the regulator cannot vouch for the image."""


class UnsupportedRuntime(UVRError):
    """A runtime feature that UVR cannot regulate through; refused by name."""


class PluginError(UVRError):
    """A plugin could not be loaded or clashes with another."""


class UnsafeContent(UVRError):
    """Raised by the `refuse` policy; may be raised by any policy.

    Attached to a pipeline, the engine keeps back the images in `samples` and raises it only when no other is left.

    Attributes:
        concept: name of the concept that was located.
        samples: indices in the batch.
        step: scheduler step at which it was located.
    """

    def __init__(self, message: str, *, concept: str = "", samples: tuple[int, ...] = (), step: int = -1):
        super().__init__(message)
        self.concept, self.samples, self.step = concept, samples, step


class ConformanceError(UVRError):
    """A plugin does not keep the contract; raised by the checks of `uvr_core.testing`.

    Attributes:
        report: the uvr_core.testing.Conformance of all checks, those that passed included.
    """

    def __init__(self, message: str, *, report: object = None):
        super().__init__(message)
        self.report = report


def did_you_mean(name: str, known: object) -> str:
    """'; did you mean X?' or a list of what there is."""
    import difflib

    options = sorted(str(option) for option in known)  # type: ignore[attr-defined]
    close = difflib.get_close_matches(name, options, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; there are: {', '.join(options)}." if options else "; none is installed."
