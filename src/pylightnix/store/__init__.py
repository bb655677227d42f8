"""Where realizations are kept: trees, index, locks, and the order that loses nothing."""
