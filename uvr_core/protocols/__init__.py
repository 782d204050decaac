"""The contracts that plugins fulfil: detectors, policies and their edits, judges, baselines."""

from .baseline import Baseline, Request
from .detector import Detector, TellsOrigin
from .edit import (
    CORE,
    K_FACING_CORE,
    K_FACING_RING,
    K_OUTPUT,
    K_REFERENCE,
    K_TEXT,
    LOCATED,
    Q_OUTPUT,
    Q_REFERENCE,
    Q_TEXT,
    REFERENCE,
    RING,
    SAFE,
    STOCK,
    TEXT,
    ColumnScale,
    FlowEdit,
    Projection,
)
from .judge import ConceptTerms, Judge
from .policy import CallInfo, Direction, Located, MaskOptions, Policy, row_classes

__all__ = [
    "CORE",
    "K_FACING_CORE",
    "K_FACING_RING",
    "K_OUTPUT",
    "K_REFERENCE",
    "K_TEXT",
    "LOCATED",
    "Q_OUTPUT",
    "Q_REFERENCE",
    "Q_TEXT",
    "REFERENCE",
    "RING",
    "SAFE",
    "STOCK",
    "TEXT",
    "Baseline",
    "CallInfo",
    "ColumnScale",
    "ConceptTerms",
    "Detector",
    "Direction",
    "FlowEdit",
    "Judge",
    "Located",
    "MaskOptions",
    "Policy",
    "Projection",
    "Request",
    "TellsOrigin",
    "row_classes",
]
