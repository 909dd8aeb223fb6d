"""Numbers in documents: those between markers are taken from result files; the rest of a document
must not contain measured numbers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kdnb import files

FIGURE = "distilled-minus-baseline.png"  # under outputs/
ALT = (
    "Test accuracy of the distilled student minus that of the same student without a teacher, with "
    "95 % intervals, one row a setting, by dataset"
)
_BLOCK = re.compile(r"(<!-- results -->\n).*?(\n<!-- /results -->)", re.DOTALL)
_INLINE = re.compile(r"(<!-- (outputs/\S+\.json) (\S+) (\S+) -->).*?(<!-- / -->)")


def refresh(text: str, root: Path, answers: Sequence[str], drawn: bool) -> str:
    """A document with its numbers taken again from the result files of the repository ``root``.

    ``<!-- results -->`` … ``<!-- /results -->`` becomes the figure, if it was ``drawn``, and the
    lines of the table of ``answers``. Between ``<!-- outputs/x.json results.a.b .1f -->`` and
    ``<!-- / -->`` goes that value of that file in that format.
    """

    def value(match):
        node = files.read_json(root / match[2])
        for key in match[3].split("."):
            node = node[int(key)] if isinstance(node, list) else node[key]
        return f"{match[1]}{format(node, match[4])}{match[5]}"

    image = f"![{ALT}](outputs/{FIGURE})"
    nothing = "No distillation of real images under `outputs/` yet."
    lines = [image if drawn else nothing, "", *answers]
    block = "\n".join(lines)
    return _INLINE.sub(value, _BLOCK.sub(lambda match: match[1] + block + match[2], text))


# what looks measured: shares, percentages, points, times, factors, accuracies
MEASURED = re.compile(
    r"(?<![\w./])0\.\d+|\d\s?%|\d (?:points?|ms|images/s)\b|\d\s?(?:×|times\b)"
    r"|accurac\w+ (?:of )?\d|(?<![\w.])9\d\.\d"
)


def stray(text: str) -> list[str]:
    """Lines of a document with a number that looks measured and has no result file behind it.

    Code, formulas, and the parts that :func:`refresh` updates are left out, and so is the term
    "95 % interval".
    """
    code = re.compile(r"```.*?```|\$\$.*?\$\$", re.DOTALL), re.compile(r"`[^`\n]*`|95 %")
    for pattern in (_BLOCK, _INLINE, *code):
        text = pattern.sub("", text)
    return [line for line in text.splitlines() if MEASURED.search(line)]
