"""Keystone: the Parallel Loop Transformer and the loader that turns a manifest into a running model."""
