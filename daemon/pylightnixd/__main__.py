"""``python -m pylightnixd``."""

from __future__ import annotations

from pylightnixd.main import main

main()
