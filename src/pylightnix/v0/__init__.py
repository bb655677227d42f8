"""Stores made by Pylightnix 0.x (`store-v0`): reading them, and bringing what they hold into a store of today. Never writes them."""

from pylightnix.v0.importing import ImportReport, Remark, RemarkKind, import_v0

__all__ = ["ImportReport", "Remark", "RemarkKind", "import_v0"]
