"""Where 0.x had references, configs, the store, matchers and realization. All names of `pylightnix` can be imported from here, too."""

from __future__ import annotations

from pylightnix import *  # noqa: F403  # whatever programs import from here
