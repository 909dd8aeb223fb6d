"""``python -m kdnb.report`` writes the ledger and the README's numbers from the result files,
``site`` builds the static site, ``supplement <dataset>`` prints its pages as one PDF, and
``citation`` writes CITATION.cff and codemeta.json."""

from __future__ import annotations

import argparse
import sys

from kdnb import files
from kdnb.report import citation, ledger, site, supplement

COMMANDS = {"ledger": ledger.write, "site": site.report, "citation": citation.write}


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 0 on success."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.report", description=__doc__)
    parser.add_argument("what", nargs="?", choices=(*COMMANDS, "supplement"), default="ledger")
    parser.add_argument("dataset", nargs="?", help="of a supplement")
    options = parser.parse_args(arguments)
    if options.what != "supplement":
        COMMANDS[options.what]()
        return 0
    if options.dataset is None:
        parser.error("a supplement needs a dataset, for example: supplement brain_tumor")
    try:
        supplement.report(options.dataset)
    except (files.UserError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
