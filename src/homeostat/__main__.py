"""`python -m homeostat` is the console command `homeostat`."""

from __future__ import annotations

from homeostat.cli import main

if __name__ == "__main__":
    main()
