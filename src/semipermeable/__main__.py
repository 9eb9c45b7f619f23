"""`python -m semipermeable` and the command `spm`."""

from semipermeable.cli import main

__all__ = ["main"]

if __name__ == "__main__":
    main()
