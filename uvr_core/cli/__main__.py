"""`python -m uvr_core.cli` is `uvr`."""

from . import main

if __name__ == "__main__":
    main()
