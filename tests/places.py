"""Where the tests find what lies beside them, from any room."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
