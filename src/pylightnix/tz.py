"""Where 0.x had its time zone."""

from __future__ import annotations

from pylightnix.timestamps import tzlocal

__all__ = ["tzlocal"]
