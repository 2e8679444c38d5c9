"""What makes a book of the chapters: run one, judge a claim, draw an explorer, render the site."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "_build"
EXECUTED = BUILD / "executed"
RECORDS = BUILD / "records"
HOSTS = BUILD / "hosts"  # small pretrained models, shared by the chapters
LEDGER = RECORDS / "ledger.json"
REFERENCE = ROOT / "book" / "reference"
CLAIMS = ROOT / "book" / "claims.yml"


class PressError(Exception):
    """Something the reader can mend; its message is one line that says how."""
