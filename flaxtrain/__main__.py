"""`python -m flaxtrain fit ...`: the command line without an installed script."""

from __future__ import annotations

from flaxtrain.cli.main import main

__all__ = []

if __name__ == "__main__":
    main()
