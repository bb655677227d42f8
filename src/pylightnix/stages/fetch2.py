"""Where 0.x had these two stages."""

from __future__ import annotations

from pylightnix.stages.fetch import fetchurl2
from pylightnix.stages.unpack import unpack

__all__ = ["fetchurl2", "unpack"]
