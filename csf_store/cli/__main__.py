"""``python -m csf_store.cli``, for where the entry point is not on the path."""

from csf_store.cli import main

if __name__ == "__main__":
    main()
