"""`python -m keystone.cli`, for where the entry point is not on the path."""

from keystone.cli import main

if __name__ == "__main__":
    main()
