"""Manifests: small immutable documents that say what a runnable model is."""
