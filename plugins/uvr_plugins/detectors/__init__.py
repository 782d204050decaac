"""Built-in detectors, one file each: pure functions from tapped attention output to patch scores.

See uvr_core.protocols.Detector.
"""

from .anchor import Anchor, AnchorCosine
from .concept_token import ConceptToken
from .contrast import Contrast
from .oracle import Oracle

__all__ = ["Anchor", "AnchorCosine", "ConceptToken", "Contrast", "Oracle"]
