"""The version of the distribution, in one place: the build reads it from here. Must not import anything."""

__version__ = "1.0.0.dev0"
"""The version of this package, as text."""
