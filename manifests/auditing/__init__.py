"""The audit: from a manifest to a verdict on everything it stands on."""
