"""The command line, `spm`. Importing this package loads neither torch nor diffusers."""

from semipermeable.cli.app import app, main

__all__ = ["app", "main"]
