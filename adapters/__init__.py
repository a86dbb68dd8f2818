"""Adapters: the only way weights may change."""
