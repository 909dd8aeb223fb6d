"""``python -m kdnb.report`` writes the ledger and the README's numbers from the result files,
``python -m kdnb.report site`` builds the static site."""

from __future__ import annotations

import argparse
import sys

from kdnb.report import ledger, site


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.report", description=__doc__)
    parser.add_argument("what", nargs="?", choices=("ledger", "site"), default="ledger")
    chosen = parser.parse_args(arguments).what
    {"ledger": ledger.write, "site": site.report}[chosen]()
    return 0


if __name__ == "__main__":
    sys.exit(main())
