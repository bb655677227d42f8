"""Where 0.x had hashes, folders, small files and time. All names of `pylightnix` can be imported from here, too."""

from __future__ import annotations

from pylightnix import *  # noqa: F403  # whatever programs import from here
