"""Where 0.x had these stages."""

from __future__ import annotations

from pylightnix.stages.node import mknode
from pylightnix.stages.transform import realized, redefine

__all__ = ["mknode", "realized", "redefine"]
