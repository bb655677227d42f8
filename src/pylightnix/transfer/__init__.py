"""Realizations on their way from one store to another: what goes, as which bytes, and how it arrives."""
