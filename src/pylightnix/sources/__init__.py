"""Local files and folders as inputs: their digests, found again without reading what has not changed, and copies of them.

Must not know what a stage is, nor what a store is.
"""

from __future__ import annotations

from pylightnix.sources.copying import copy_source
from pylightnix.sources.memo import Memo
from pylightnix.sources.patterns import excluding
from pylightnix.sources.reading import source_digest
from pylightnix.sources.walking import way_below

__all__ = ["Memo", "copy_source", "excluding", "source_digest", "way_below"]
