"""Judges as --judge and --masks name them."""

from __future__ import annotations

import inspect
from typing import Any

import attrs

from .. import plugins
from ..errors import PluginError, UVRError
from .options import check_registered


@attrs.frozen
class JudgeSpec:
    """NAME[=MODEL][:label,label], read.

    Attributes:
        name: the registered one.
        model: folder, file or name of the Hub that the judge loads; None: its own default.
        labels: what it looks for; empty: its own.
    """

    name: str
    model: str | None = None
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: str) -> JudgeSpec:
        """Read NAME[=MODEL][:label,label]. Whether the name is registered: `check`."""
        head, _, after = text.partition(":")
        name, _, model = head.partition("=")
        labels = tuple(label.strip() for label in after.split(",") if label.strip())
        return cls(name.strip(), model.strip() or None, labels)

    def check(self) -> None:
        """Raise PluginError, with a hint, unless the name is registered. Imports nothing."""
        check_registered("judge", self.name)

    def make(self, **options: Any) -> Any:
        """The judge, with the model that was named; `options` go to its factory.

        Raises:
            PluginError: unknown name, its package is missing, or it takes no such option.
        """
        if self.model is not None:
            options = {"model": self.model, **options}
        factory = plugins.registry().get("judge", self.name)
        if unknown := [option for option in options if not _takes(factory, option)]:
            raise PluginError(f"judge {self.name!r} takes no {unknown[0]} (got {options[unknown[0]]!r})")
        return plugins.registry().make("judge", self.name, **options).object

    def asked(self, **options: Any) -> Any:
        """The judge, told its labels, and tried on no picture, so that missing weights show before long work.

        Raises:
            UVRError: as `make`, or the judge fails.
        """
        judge = self.make(**({"labels": self.labels} if self.labels else {}), **options)
        try:
            judge([])
        except UVRError:
            raise
        except Exception as error:
            raise PluginError(f"judge {self.name!r} cannot be asked: {type(error).__name__}: {error}") from error
        return judge


def threshold_of(judge: Any) -> float | None:
    """The score above which a judge says that it sees something, if it has one and says so."""
    threshold = getattr(judge, "threshold", None)
    return float(threshold) if isinstance(threshold, (int, float)) else None


def with_threshold(name: str, threshold: float | None) -> str:
    """A judge as figures name it: with the threshold that they were counted at."""
    return name if threshold is None else f"{name} (threshold {threshold:g})"


def _takes(factory: Any, option: str) -> bool:
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return True
    return option in parameters or any(each.kind is each.VAR_KEYWORD for each in parameters.values())
