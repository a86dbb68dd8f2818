"""Keeping an archive healthy: verification, garbage collection, repair, statistics, parity."""
