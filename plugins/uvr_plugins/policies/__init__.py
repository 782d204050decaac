"""Built-in policies, one file each: pure functions from located patches to a flow edit. See uvr_core.protocols.

All work on rows of located output patches; every other row of every attention output stays bitwise stock.
"""

from .block import Block
from .noise import Noise
from .observe import Observe
from .project import Project
from .redirect import Redirect
from .refuse import Refuse
from .selective import Selective
from .uvr import Uvr
from .uvr_released import UvrReleased

__all__ = ["Block", "Noise", "Observe", "Project", "Redirect", "Refuse", "Selective", "Uvr", "UvrReleased"]
