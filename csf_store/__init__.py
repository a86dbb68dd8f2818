"""The CSF archive: checkpoints as BLAKE3-addressed blobs, in a compressed, append-only, crash-safe store."""
