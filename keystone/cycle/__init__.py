"""The guarded cycle: the one way from experience to other weights."""
