"""The contracts that plugins fulfil: detectors, policies and their edits, judges, baselines."""

from .baseline import Baseline, Request
from .detector import Detector, TellsOrigin
from .edit import (
    ColumnScale,
    ColumnWeights,
    FlowEdit,
    KeyClass,
    KeyWeights,
    NoiseBlend,
    Projection,
    Reweight,
    RowClass,
)
from .judge import ConceptTerms, Judge
from .policy import CallInfo, Direction, Located, MaskOptions, Policy, PolicyTraits, row_classes

__all__ = [
    "Baseline",
    "CallInfo",
    "ColumnScale",
    "ColumnWeights",
    "ConceptTerms",
    "Detector",
    "Direction",
    "FlowEdit",
    "Judge",
    "KeyClass",
    "KeyWeights",
    "Located",
    "MaskOptions",
    "NoiseBlend",
    "Policy",
    "PolicyTraits",
    "Projection",
    "Request",
    "Reweight",
    "RowClass",
    "TellsOrigin",
    "row_classes",
]
