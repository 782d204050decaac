"""`python -m uvr_core.cli` is `uvr`."""

from . import main

main()
