"""The older container, CSF-Pack 0.8: read and imported, never written."""
