"""The daemon: owns a store and realizes stages for many clients at once, each build once."""

from __future__ import annotations
