"""Write the generated pages of the documentation: docs/reference/settings.md and docs/reference/cli.md.

python scripts/docs.py            write them
python scripts/docs.py --check    exit with 1 if one of them is not up to date
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from reference.cli import cli_page
from reference.settings import settings_page

REFERENCE = Path(__file__).parents[1] / "docs" / "reference"


def pages() -> dict[Path, str]:
    """The generated pages by their file."""
    return {REFERENCE / "settings.md": settings_page(), REFERENCE / "cli.md": cli_page()}


def main() -> int:
    """Write the pages, or say which are not up to date."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is not up to date")
    options = parser.parse_args()
    stale = []
    for path, text in pages().items():
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        stale.append(path.name)
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    if options.check and stale:
        print(f"not up to date: {', '.join(stale)}; run python scripts/docs.py", file=sys.stderr)
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
