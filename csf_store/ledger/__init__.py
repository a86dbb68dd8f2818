"""The ledger: what happened to an archive, line by line, provable and fast however long it is."""
