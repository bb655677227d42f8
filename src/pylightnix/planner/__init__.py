"""The realization algorithm as pure code: no files, no clock, no trio, no randomness of its own."""

from __future__ import annotations
