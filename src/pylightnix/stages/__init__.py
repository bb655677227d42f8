"""Stages that come with the package."""

from __future__ import annotations

from pylightnix.stages.command import command
from pylightnix.stages.fetch import fetchlocal, fetchurl, fetchurl2
from pylightnix.stages.node import mknode
from pylightnix.stages.source import source
from pylightnix.stages.transform import realized, redefine
from pylightnix.stages.unpack import unpack

__all__ = ["command", "fetchlocal", "fetchurl", "fetchurl2", "mknode", "realized", "redefine", "source", "unpack"]
