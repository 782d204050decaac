"""What a concept is, its file, and how a user's name for it is looked up."""

from .bank import DTYPES, MAX_NAME, SCHEMA, TIME, ConceptBank, Fingerprint
from .calibration import Calibration, SourceLook, TextCarriers
from .file import MAX_DEPTH, MAX_FILE, MAX_HEADER, MAX_QUOTED, MAX_TENSORS, load_concepts
from .find import resolve
from .merge import merge, rename

__all__ = [
    "DTYPES",
    "MAX_DEPTH",
    "MAX_FILE",
    "MAX_HEADER",
    "MAX_NAME",
    "MAX_QUOTED",
    "MAX_TENSORS",
    "SCHEMA",
    "TIME",
    "Calibration",
    "ConceptBank",
    "Fingerprint",
    "SourceLook",
    "TextCarriers",
    "load_concepts",
    "merge",
    "rename",
    "resolve",
]
