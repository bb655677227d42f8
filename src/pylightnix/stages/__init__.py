"""Stages that come with the package."""

from __future__ import annotations

from pylightnix.stages.command import command
from pylightnix.stages.node import mknode

__all__ = ["command", "mknode"]
