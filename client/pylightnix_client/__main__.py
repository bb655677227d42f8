"""Makes ``python -m pylightnix_client`` the command line."""

from __future__ import annotations

import sys

from pylightnix_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
