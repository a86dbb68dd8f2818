"""The storage bench: ``csf`` against backup programs and model stores, everything in one run. See ``run.py``."""
