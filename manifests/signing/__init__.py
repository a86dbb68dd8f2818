"""Signatures: operator keys, what they signed, and who was trusted when."""
