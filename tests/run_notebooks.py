"""Run every notebook from top to bottom, as ``make notebooks`` and CI do; the files stay as they are."""

import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"
TIMEOUT = 600  # seconds for one cell


def main() -> int:
    """Return the number of notebooks that failed."""
    failed = 0
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(notebook, timeout=TIMEOUT, resources={"metadata": {"path": str(NOTEBOOKS)}})
        try:
            client.execute()
            verdict = "ok"
        except Exception as error:
            verdict, failed = f"failed: {error}", failed + 1
        sys.stdout.write(f"{path.name}: {verdict} ({time.monotonic() - start:.0f} s)\n")
    return failed


if __name__ == "__main__":
    os.environ.setdefault("SCALE", "ci")
    sys.exit(main())
