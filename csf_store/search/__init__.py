"""Finding what the archive holds, and telling how two checkpoints differ."""
