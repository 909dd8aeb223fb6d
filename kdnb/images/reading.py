"""From labelled files to the table of images: files are opened once, each image or frame becomes a
row, and the numbers of files add up."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd
from tqdm.contrib.concurrent import thread_map

from kdnb.images import masks, read, sorting
from kdnb.images.labelling import BY_MASK, Labelling, by_file, entry
from kdnb.images.scan import Note, Problem, ReadingError, Walk
from kdnb.images.sorting import Sorted, Tree
from kdnb.images.tables import COLUMNS, join_trees, official_split, settle_copies

Facts = dict[str, dict | tuple[str, str]]  # by file, as ``read.inspect`` gives them


# --- what is in the files ------------------------------------------------------------------------


def look(tree: Tree, found: Sorted, labelled: Labelling) -> Facts:
    """Decode every labelled image and all masks once."""
    jobs = dict.fromkeys(labelled.images, False)
    jobs |= dict.fromkeys(masks.files_of(labelled.masks), True)
    jobs = {name: mask for name, mask in jobs.items() if name not in found.refused}
    facts = thread_map(
        lambda job: read.inspect(tree.root / job[0], mask=job[1]),
        jobs.items(),
        desc=f"indexing {tree.spec.name}",
        unit="file",
        max_workers=2 * (os.cpu_count() or 1),
        leave=False,
        disable=len(jobs) < 500,
    )
    return found.refused | dict(zip(jobs, facts, strict=True))


def with_facts(labelled: Labelling, facts: Facts) -> Labelling:
    """The labelling with the masks that can be used, and with patients that files state: by DICOM's
    PatientID, else each volume or film is one patient. Patients known before stand."""
    usable, problems = masks.usable(labelled.masks, facts)
    patients, notes = labelled.patients, []
    good = {name: facts[name] for name in labelled.images if isinstance(facts[name], dict)}
    numbers = {name: fact["patient"] for name, fact in good.items() if fact["patient"]}
    if len({*numbers.values()}) > 1:
        new = {name: f"dicom-{n}" for name, n in numbers.items() if name not in patients}
        if new:
            text = f"{len({*new.values()}):,} by the number in DICOM's PatientID"
            notes.append(("patients", text))
        patients = new | patients
    volumes = [name for name, fact in good.items() if fact["frames"] and name not in patients]
    if volumes:
        text = f"{len(volumes):,} volumes or films; all slices of one are one patient"
        notes.append(("volumes", text))
    return replace(
        labelled,
        masks=usable,
        patients={name: name for name in volumes} | patients,
        problems=labelled.problems + problems,
        notes=labelled.notes + notes,
    )


def rule(tree: Tree, labelled: Labelling, facts: Facts) -> read.Rule:
    """How images with more than 8 bits become grey levels."""
    good = [facts[name] for name in labelled.images if isinstance(facts[name], dict)]
    samples = [fact["sample"] for fact in good if fact["sample"] is not None]
    return read.rule_of(tree.how, samples)


# --- rows ----------------------------------------------------------------------------------------


def tabulate(
    tree: Tree, labelled: Labelling, facts: Facts
) -> tuple[pd.DataFrame, list[Problem], list[Note]]:
    """The table of all usable images, with all problems and notes so far.

    Raises ``FileNotFoundError`` where no image is usable.
    """
    rows, problems = [], list(labelled.problems)
    refused = {path for path, _, _ in tree.walk.refused}
    for name in labelled.images:
        fact = facts[name]
        if isinstance(fact, dict):
            more, odd = _rows(name, fact, labelled, facts)
            rows += more
            problems += odd
        elif name not in refused:
            problems.append((name, *fact))
    if not rows:
        raise sorting.nothing_found(tree, problems)
    table, joined = pd.DataFrame(rows, columns=COLUMNS), []
    if tree.spec.trees:
        table, joined = join_trees(table, tree.spec.trees)
    table, copies = settle_copies(table)
    for kind in masks.KINDS:
        table[f"{kind}_sha256"] = [_sha256(names, facts) for names in table[kind]]
    odd, notes = _odd_masks(tree, table, facts)
    problems += [*joined, *copies, *odd]
    used, named = {*map(_file, table["path"])}, {path for path, _, _ in problems}
    problems += masks.left_out(labelled.masks, used, named)
    return table, problems, labelled.notes + notes


def _rows(
    name: str, fact: dict, labelled: Labelling, facts: Facts
) -> tuple[list[dict], list[Problem]]:
    """The rows of one file, a row each frame, and problems."""
    rows, problems, ends = [], [], [""]
    if fact["pages"] > 1:
        problems.append((name, "several pages", f"{fact['pages']} pages, the first is read"))
    if fact["blank"]:
        text = f"{len(fact['blank'])} of {fact['frames']} slices have one value: left out"
        problems.append((name, "slices without content", text))
    if fact["frames"] is not None:
        ends = [f"#{frame}" for frame in range(fact["frames"]) if frame not in fact["blank"]]
    for end in ends:
        row = _row(name, end, fact, labelled, facts)
        if row["label"] == "":  # the mask decides
            row["label"] = _label_by_mask(row["mask"], facts)
            if row["label"] is None and end in ("", "#0"):
                problems.append((name, "no mask", "its class is unknown: left out"))
        if row["label"] is not None:  # a table may name some slices of a volume only
            rows.append(row)
    return rows, problems


def _row(name: str, end: str, fact: dict, labelled: Labelling, facts: Facts) -> dict:
    path = name + end
    drawn = {
        kind: read.SEVERAL.join(mask + end for mask in by_image.get(name, []))
        for kind, by_image in labelled.masks.items()
    }
    return {
        "path": path,
        "label": entry(labelled.labels, path),
        "split": entry(labelled.splits, path) or "",
        "patient": entry(labelled.patients, path) or "",
        **drawn,
        "report": entry(labelled.reports, path) or "",
        **{key: fact[key] for key in ("width", "height", "mode")},
        "sha256": _sha256(path, facts),
    }


def _file(path: str) -> str:
    return read.frame_of(path)[0]


def _sha256(names: str, facts: Facts) -> str:
    """SHA-256 of a file or frame; of several, that of all their hashes; empty for none."""
    hashes = []
    for name in filter(None, names.split(read.SEVERAL)):
        file, frame = read.frame_of(name)
        of_file = facts[file]["sha256"]
        hashes.append(of_file if frame is None else _digest(f"{of_file}#{frame}"))
    return _digest("".join(hashes)) if len(hashes) > 1 else "".join(hashes)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _label_by_mask(names: str, facts: Facts) -> str | None:
    """The class by the lesion masks of a row; None without a mask."""
    lesion, none = BY_MASK
    if not names:
        return None
    return lesion if _share(names, facts) > 0 else none


def _share(names: str, facts: Facts) -> float:
    """The share of the foreground in the masks of one row, the largest of several."""
    shares = []
    for name in names.split(read.SEVERAL):
        file, frame = read.frame_of(name)
        covered = facts[file]["covered"]
        shares.append(covered if frame is None else covered[frame])
    return max(shares)


def _odd_masks(tree: Tree, table: pd.DataFrame, facts: Facts) -> tuple[list[Problem], list[Note]]:
    """Lesion masks of single images that may be wrong."""
    if tree.spec.synthetic or tree.by_masks:
        return [], []
    single = table[[read.frame_of(path)[1] is None for path in table["path"]]]
    problems, notes = masks.odd(
        single, {names: _share(names, facts) for names in single["mask"] if names}
    )
    return problems, [("masks", note) for note in notes]


# --- what it adds up to --------------------------------------------------------------------------


def classes_of(
    tree: Tree, labelled: Labelling, table: pd.DataFrame, problems: Sequence[Problem]
) -> tuple[tuple[str, ...], list[Problem]]:
    """Classes with images, in label order, and problems for known ones without.

    Raises :class:`~kdnb.images.scan.ReadingError` where there is one class only, or where none of
    the files of a class can be used.
    """
    labels, here = by_file(labelled.labels), set(table["label"])
    had = Counter(labels.values())
    wanted = list(tree.spec.classes) or sorted({*labels.values(), *here} - {""})
    if not here <= set(wanted):  # a table of labels with classes of its own
        wanted = sorted(here)
    for name in wanted:
        if name not in here and had[name]:
            why = Counter(problem for path, problem, _ in problems if labels.get(path) == name)
            counted = ", ".join(f"{problem} {count:,}" for problem, count in why.most_common(4))
            raise ReadingError(
                f"class {name!r}: none of its {had[name]:,} images can be used ({counted}); "
                "mend or remove them"
            )
    if len(here) < 2 and not tree.spec.classes:
        raise ReadingError(
            f"all {len(table):,} images are of one class, {min(here)!r}; a network learns from "
            "two or more. State the labels in a table (-p labels), or choose -p classes_level"
        )
    missing = [
        (name, "class without images", "it is left out of the label set")
        for name in wanted
        if name not in here
    ]
    return tuple(name for name in wanted if name in here), missing


def account(
    walk: Walk,
    table: pd.DataFrame,
    classes: Sequence[str],
    problems: Sequence[Problem],
    notes: Sequence[Note],
) -> tuple[Note, ...]:
    """All that was inferred, with the numbers of files, of images by class and of the splits."""
    sizes = table["label"].value_counts()
    counted = ", ".join(f"{name} {sizes[name]:,}" for name in classes)
    found = [
        ("files", _files(walk, table, problems)),
        ("images", f"{len(table):,}: {counted}"),
        *notes,
        ("splits", official_split(table)),
    ]
    if walk.passed:
        text = f"{len(walk.passed):,} hidden or system folders: {', '.join(walk.passed[:5])}"
        found.append(("passed over", text))
    return tuple(found)


def _files(walk: Walk, table: pd.DataFrame, problems: Sequence[Problem]) -> str:
    """Numbers of images, masks and files left out, which add up to all files below the root."""
    used = {
        kind: {_file(name) for names in table[kind] for name in names.split(read.SEVERAL) if name}
        for kind in ("path", *masks.KINDS)
    }
    everything = {path for path, *_ in (*walk.files, *walk.refused)}
    left = everything - set().union(*used.values())
    reasons = {path: problem for path, problem, _ in reversed(problems)}  # the first one counts
    if unnamed := sorted(left - reasons.keys()):
        raise RuntimeError(f"{len(unnamed)} files would vanish, {unnamed[0]} for example")
    counts = Counter(reasons[name] for name in sorted(left))
    counted = ", ".join(f"{problem} {count:,}" for problem, count in counts.most_common())
    text = f"{len(everything):,} = {len(used['path']):,} images"
    for kind, name in (("mask", "lesion masks"), ("organ_mask", "organ masks")):
        text += f" + {len(used[kind]):,} {name}" if used[kind] else ""
    return text + f" + {len(left):,} left out" + (f" ({counted})" if counted else "")
