"""`python -m draftrank`."""

from __future__ import annotations

from draftrank.cli.main import main

if __name__ == "__main__":
    main()
