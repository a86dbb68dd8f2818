"""Serving: one base in memory, many adapters on it, and the two APIs that existing clients speak."""
