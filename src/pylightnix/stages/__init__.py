"""Stages that come with the package."""

from __future__ import annotations

from pylightnix.stages.command import command
from pylightnix.stages.node import mknode
from pylightnix.stages.transform import realized, redefine

__all__ = ["command", "mknode", "realized", "redefine"]
