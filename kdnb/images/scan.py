"""The tree of a dataset: which files lie there, and what their folders suggest about split, class
and patient."""

from __future__ import annotations

import dataclasses
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from kdnb import errors
from kdnb.images import read
from kdnb.images.source import Source


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


# breaks a row of the table, or (a surrogate) is a byte that is no UTF-8
UNREADABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|[|]|#\d+$")
SYSTEM = {"@eadir", "$recycle.bin", "lost+found", "__macosx", "system volume information"}
SYSTEM_FILES = {"thumbs.db", "desktop.ini", "icon\r"}
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "trn", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "ts", "holdout"), "test"),
}
FOLDS = {"fold", "folds", "cv", "kfold"}
FILLER = _set("set sets data dataset datasets folder split part sample samples case cases")
PICTURES = _set("image images img imgs picture pictures photo photos pics")
FORMATS = _set("png jpg jpeg tif tiff bmp dicom dcm nifti nii original originals")
MASK_WORDS = _set("mask masks groundtruth groundtruths gt gts annotation annotations")
SEGMENTATIONS = _set("segmentation segmentations seg segs")
LESION = _set(
    "lesion lesions infection infections tumor tumors tumour tumours polyp polyps nodule nodules "
    "mass masses binary"
)
ORGAN = _set("lung lungs organ organs tissue retina brain breast skull heart body fov")
NEGATIONS = _set("no non not with without wearing un")
PATIENTS = re.compile(
    r"(patient|pat|pt|subject|subj|sub|person|case|id|pid|p|s|sample|lesion|study|series|scan|exam|"
    r"volunteer|slide|wsi|animal|mouse|visit|session|ses)[ _.-]*\d+.*",
    re.IGNORECASE,
)
CLASS_WORDS = re.compile(r"(class|grade|stage|birads|bi-rads|type|level|label|cat|score)", re.I)
FEW = 60  # names of classes that a tree may suggest without being asked
MANY_NUMBERS = 20  # more numbered folders than this are patients, not classes
Problem = tuple[str, str, str]  # a file's path, its problem in a few words, the detail
Note = tuple[str, str]  # what was inferred from the files, a sentence on it


class ReadingError(
    errors.UserError,
    ValueError,
    code="KD103",
    way_out="choose one of the readings in the message with the parameter that it names; "
    "01_data_prep shows the result in seconds",
):
    """The files can be read in several ways, or in none; the message shows the readings and names
    the option that chooses."""


# --- the files that are there --------------------------------------------------------------------


@dataclass(frozen=True)
class Walk:
    """Files below a root as (path, size, time of change), those that cannot be used as (path,
    problem, detail), and the system's folders that were passed over."""

    files: list[tuple[str, int, int]] = field(default_factory=list)
    refused: list[Problem] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)


def walk(root: Path) -> Walk:
    """Every file below ``root`` in the order of names, folder by folder, without hidden files and
    those of the operating system."""
    found, seen = Walk(), set()

    def refuse(path, problem, detail):
        name = Path(path).relative_to(root).as_posix()
        name = UNREADABLE.sub(lambda match: ascii(match[0])[1:-1], name)
        found.refused.append((name, problem, detail))

    for folder, below, names in os.walk(
        root,
        followlinks=True,
        onerror=lambda error: refuse(error.filename, *read.denied(error)),
    ):
        real = os.path.realpath(folder)
        ours = [name for name in below if not (name.startswith(".") or name.lower() in SYSTEM)]
        found.passed.extend(
            Path(folder, name).relative_to(root).as_posix() for name in sorted({*below} - {*ours})
        )
        below[:] = sorted(ours)
        if real in seen:  # a link back up the tree
            below.clear()
            continue
        seen.add(real)
        for name in sorted(names):
            if not (name.startswith(".") or name.lower() in SYSTEM_FILES):
                _look(root, Path(folder, name), found, refuse)
    return found


def _look(root: Path, path: Path, found: Walk, refuse) -> None:
    short = path.relative_to(root).as_posix()
    try:
        facts = path.stat()
        # in the index's key: a change of rights changes neither size nor time
        if not os.access(path, os.R_OK):
            raise PermissionError
    except OSError as error:
        refuse(path, *read.denied(error))
        return
    if UNREADABLE.search(short):
        refuse(
            path,
            "unreadable name",
            "not UTF-8, a control character, a | or a # with a number: rename it (convmv renames "
            "whole trees)",
        )
    else:
        found.files.append((short, facts.st_size, facts.st_mtime_ns))


# --- the words of a folder's name ----------------------------------------------------------------


@dataclass(frozen=True)
class Role:
    """What the name of one folder says: a ``split``, a ``fold``, a ``kind`` of mask, or that it
    only holds pictures; ``half`` is a split's word among others, ``rest`` those others."""

    split: str = ""
    fold: str = ""
    kind: str = ""
    pictures: bool = False
    half: str = ""
    rest: frozenset[str] = frozenset()

    @property
    def speaks(self) -> bool:
        """Whether the folder is something else than a class, a patient or an outer folder."""
        return bool(self.split or self.fold or self.kind or self.pictures)


def words(name: str) -> list[str]:
    """Lower-case words of a name: ``TrainSet_2`` gives train, set, 2."""
    parts = re.findall(r"[^\W\d_]+|\d+", name)
    cut = [re.sub(r"(?<=[a-z])(?=[A-Z])", " ", part).split() for part in parts]
    return [word.lower() for some in cut for word in some]


def role(name: str) -> Role:
    """What a folder's name says by itself, whatever stands beside it."""
    said = [word for one in words(name) for word in _apart(one)]
    known = set(said)
    splits = {SPLIT_WORDS[word] for word in known if word in SPLIT_WORDS}
    if known & {"tr", "ts"} and not known & (PICTURES | MASK_WORDS):  # imagesTr, but no class "ts"
        splits = set()
    numbers = {word for word in known if word.isdigit()}
    if known & FOLDS and numbers and known <= FOLDS | FILLER | numbers:
        return Role(fold=name)
    kind = _kind(known, numbers)
    rest = known - {*SPLIT_WORDS} - FILLER - PICTURES - FORMATS - numbers
    if kind:
        return Role(split=splits.pop() if len(splits) == 1 else "", kind=kind)
    if len(splits) == 1 and not rest:
        return Role(split=splits.pop())
    if known and known <= PICTURES | FORMATS and not numbers:
        return Role(pictures=True)
    half = splits.pop() if len(splits) == 1 and not known & NEGATIONS else ""
    return Role(half=half, rest=frozenset(rest))


def _apart(word: str) -> list[str]:
    """``trainset`` as train and set."""
    for split in sorted(SPLIT_WORDS, key=len, reverse=True):
        if len(split) > 2 and word.startswith(split) and word[len(split) :] in FILLER | PICTURES:
            return [split, word[len(split) :]]
    for mask in ("masks", "mask"):  # lungmasks
        if word.endswith(mask) and word[: -len(mask)] in ORGAN | LESION:
            return [word[: -len(mask)], mask]
    return [word]


def _kind(known: set[str], numbers: set[str]) -> str:
    """``mask`` or ``organ_mask`` where a name is that of a folder of masks."""
    if known & NEGATIONS:  # with_mask, no_mask: classes
        return ""
    if not known & MASK_WORDS and not {"ground", "truth"} <= known:
        rest = (
            known - SEGMENTATIONS - {*SPLIT_WORDS} - LESION - ORGAN - PICTURES - FORMATS - numbers
        )
        if rest or not known & SEGMENTATIONS:  # a "segmentation data set" holds images too
            return ""
    return "organ_mask" if known & ORGAN and not known & LESION else "mask"


def same_name(name: str) -> str:
    """A class's name as it is compared: without case, blanks at the ends, and ways to compose an
    accent."""
    return " ".join(unicodedata.normalize("NFC", name).split()).casefold()


# --- where each file stands ----------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """One file: what its folders say, and those that say nothing by themselves (``levels``, with
    the depth of each below the root, 1 being the top)."""

    path: str
    splits: tuple[str, ...]
    folds: tuple[str, ...]
    kind: str  # image, mask or organ_mask
    levels: tuple[str, ...]
    depths: tuple[int, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        """The folders, from the top."""
        return PurePosixPath(self.path).parts[:-1]

    @property
    def split(self) -> str:
        """train, val, test or nothing; the outermost folder decides."""
        return self.splits[0] if self.splits else ""


def places(paths: Iterable[str]) -> list[Place]:
    """What the folders of each file say."""
    paths = list(paths)
    folders = {PurePosixPath(path).parts[:-1] for path in paths}
    folders |= {above[:depth] for above in folders for depth in range(1, len(above))}
    roles = {folder: role(folder[-1]) for folder in folders if folder}
    beside = defaultdict(set)
    for folder, one in roles.items():
        if one.half:
            beside[folder[:-1], one.rest].add(one.half)
    # chest_train and chest_test side by side, and then chest_train wherever it stands alone
    paired = {rest for (_, rest), halves in beside.items() if len(halves) > 1}
    for folder, one in roles.items():
        if one.half and one.rest in paired:
            roles[folder] = Role(split=one.half)
    known = {folder: _said(folder, roles) for folder in folders}
    return [Place(path, *known[PurePosixPath(path).parts[:-1]]) for path in paths]


def _said(folder: tuple[str, ...], roles: dict[tuple[str, ...], Role]) -> tuple:
    found = [roles[folder[: depth + 1]] for depth in range(len(folder))]
    plain = [depth for depth, one in enumerate(found) if not one.speaks]
    return (
        tuple(one.split for one in found if one.split),
        tuple(one.fold for one in found if one.fold),
        next((one.kind for one in reversed(found) if one.kind), "image"),
        tuple(folder[depth] for depth in plain),
        tuple(depth + 1 for depth in plain),
    )


def settle_splits(found: Sequence[Place]) -> tuple[list[Place], tuple[str, ...]]:
    """Places with one split each, and notes. Folds of a cross-validation are pooled.

    Raises :class:`ReadingError` where folders contradict each other.
    """
    found = list(found)
    while any(len(set(place.splits)) > 1 for place in found):
        if len({place.splits[:1] for place in found}) > 1:
            odd = next(place for place in found if len(set(place.splits)) > 1)
            raise ReadingError(
                f"{odd.path} lies in folders of two splits ({', '.join(odd.splits)}): rename one "
                "of them, or give the split in a table (-p labels)"
            )
        found = [dataclasses.replace(place, splits=place.splits[1:]) for place in found]
    folds = sorted({fold for place in found for fold in place.folds})
    if len(folds) < 2:
        return found, ()
    if any(place.splits for place in found):
        raise ReadingError(
            f"folders of folds ({', '.join(folds[:5])}) and of splits stand one in another: read "
            f"one fold (-p data_root …/{folds[0]}), or give the split in a table (-p labels)"
        )
    return found, (f"{len(folds)} folds of a cross-validation ({', '.join(folds[:5])}) are pooled",)


# --- what the levels of a tree are ---------------------------------------------------------------


@dataclass(frozen=True)
class Level:
    """Folders at one depth: how many images each holds, and why they cannot be classes (empty if
    they can)."""

    depth: int
    images: dict[str, int]
    against: str
    patients: bool  # its names look like patients

    def __str__(self) -> str:
        names = sorted(self.images)
        shown = ", ".join(f"{name} {self.images[name]:,}" for name in names[:5])
        more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
        return f"{len(names):,} folders at level {self.depth}: {shown}{more}"


@dataclass(frozen=True)
class Reading:
    """What a tree suggests: label and patient of every image (an image without one is not used),
    and sentences on how they were found."""

    labels: dict[str, str]
    patients: dict[str, str]
    found: tuple[Note, ...]
    level: int | None = None  # of the classes, in ``Place.levels`` without the outer folders
    outer: tuple[str, ...] = ()


def propose(images: Sequence[Place], source: Source) -> Reading:
    """Classes and patients as the folders of the images suggest them.

    Raises :class:`ReadingError` where two readings are plausible, or none is.
    """
    outer, kept = without_outer(images)
    levels = _levels(kept)
    level, depth = None, source.classes_level
    if depth is not None:
        labels = _at(images, depth)
        if not labels:
            raise ReadingError(f"classes_level {depth}: no image lies so deep")
    elif source.classes is not None:
        labels = _named(images, source.classes)
        at = {path: PurePosixPath(path).parts for path in labels}
        depth = Counter(
            [same_name(part) for part in at[path]].index(same_name(label)) + 1
            for path, label in labels.items()
        ).most_common(1)[0][0]
    else:
        level = _choose(levels, images)
        labels = {place.path: place.levels[level] for place in kept if len(place.levels) > level}
        depth = next(place.depths[level] for place in kept if len(place.levels) > level)
        _not_mixed(kept, labels, level)
    if source.classes is None:
        _no_collision(images, labels)
    names = settled(labels.values())
    labels = {path: names[same_name(label)] for path, label in labels.items()}
    where = f"at level {depth} below the root" if source.classes is None else "with the given names"
    patients, statements = _patients_of(kept, levels, depth, source)
    found = [("classes", f"the folders {where}"), *statements]
    if outer:
        found.append(("outer folders", f"{'/'.join(outer)}, shared by all images"))
    if source.classes_level is None and source.classes is None:
        found += _below(levels, level)
    return Reading(labels, patients, tuple(found), level, outer)


def propose_patients(images: Sequence[Place], source: Source) -> tuple[dict[str, str], list[Note]]:
    """Patients as the folders suggest them, where something else states the labels."""
    kept = without_outer(images)[1]
    return _patients_of(kept, _levels(kept), None, source)


def without_outer(images: Sequence[Place]) -> tuple[tuple[str, ...], list[Place]]:
    """The folders that all images share, and the images without them."""
    outer, kept = [], list(images)
    while True:
        tops = {place.levels[0] for place in kept if place.levels}
        if len(tops) != 1 or max(len(place.levels) for place in kept) < 2:
            return tuple(outer), kept
        outer.append(tops.pop())
        kept = [
            dataclasses.replace(place, levels=place.levels[1:], depths=place.depths[1:])
            for place in kept
        ]


def _levels(kept: Sequence[Place]) -> list[Level]:
    found = []
    for number in range(max((len(place.levels) for place in kept), default=0)):
        here = [place for place in kept if len(place.levels) > number]
        spelt = settled(place.levels[number] for place in here)
        images = Counter(spelt[same_name(place.levels[number])] for place in here)
        patients = _like_patients(images)
        found.append(
            Level(
                Counter(place.depths[number] for place in here).most_common(1)[0][0],
                dict(images),
                _against(here, images, number, patients, len(kept)),
                patients,
            )
        )
    return found


def _against(here: list[Place], images: Counter, number: int, patients: bool, total: int) -> str:
    """Why the folders of a level cannot be classes."""
    if len(images) < 2:
        return "one folder only"
    if len(here) < total / 2:
        return f"only {len(here):,} of {total:,} images lie so deep"
    if patients:
        return "the names look like patients or scans"
    if len(images) > FEW or len(images) > max(2, len(here) / 2):
        return "too many names for so few images" if len(images) <= FEW else "too many names"
    by_split = defaultdict(set)
    for place in here:
        by_split[same_name(place.levels[number])].add(place.split)
    if len({place.split for place in here}) > 1:
        repeated = sum(len(splits) > 1 for splits in by_split.values())
        if repeated < len(images) / 2:
            return "the names do not repeat across the splits"
    return ""


def _like_patients(images: Counter) -> bool:
    """Whether names of folders look like those of patients, studies or scans."""
    if len(images) < 2:
        return False

    def like(name):
        if CLASS_WORDS.match(name):
            return False
        if name.isdigit():
            return len(name) >= 3 or len(images) > MANY_NUMBERS
        return bool(PATIENTS.fullmatch(name) or re.search(r"\d{3,}", name))

    return sum(map(like, images)) >= 0.8 * len(images) or len(images) > FEW


def _choose(levels: list[Level], images: Sequence[Place]) -> int:
    """The number of the level that holds the classes; raises :class:`ReadingError`."""
    if half := [name for level in levels for name in level.images if role(name).half]:
        raise ReadingError(
            f"the folder {half[0]!r} sounds like a split, but none beside it does: rename the "
            "folders of the splits to train, val and test, or choose -p classes_level"
        )
    plausible = [number for number, level in enumerate(levels) if not level.against]
    if len(plausible) == 1:
        return plausible[0]
    if plausible:
        readings = "\n".join(
            f"  -p classes_level {levels[number].depth}   {levels[number]}" for number in plausible
        )
        raise ReadingError(
            f"the folders can be read in {len(plausible)} ways; choose the level of the classes:\n"
            f'{readings}\nor name the classes: -p classes \'["…", "…"]\''
        )
    seen = "\n".join(f"  {level}: {level.against}" for level in levels)
    raise ReadingError(
        f"no folders tell the classes of {len(images):,} images"
        + (f":\n{seen}\n" if seen else " (all lie in one place). ")
        + "Say where the labels are: -p labels table.csv (columns path and label), "
        '-p classes_level 1 (depth of the class folders), -p classes \'["…", "…"]\' (their names), '
        "or -p classes_from masks (lesion or none, by the lesion masks)"
    )


def _at(images: Sequence[Place], depth: int) -> dict[str, str]:
    """The name of each image's folder at a depth, 1 being the top."""
    return {place.path: place.parts[depth - 1] for place in images if len(place.parts) >= depth}


def _named(images: Sequence[Place], classes: Sequence[str]) -> dict[str, str]:
    """Labels by folders with given names, at any depth."""
    wanted = {same_name(name): name for name in classes}
    if len(wanted) < len(classes):
        raise ReadingError(f"classes: two of {', '.join(classes)} differ in case or blanks only")
    labels, twice = {}, []
    for place in images:
        found = {wanted[same_name(part)] for part in place.parts if same_name(part) in wanted}
        if len(found) > 1:
            twice.append(place.path)
        elif found:
            labels[place.path] = found.pop()
    if twice:
        raise ReadingError(
            f"{len(twice):,} images lie below two classes at once, {twice[0]} for example; "
            "use -p classes_level or -p labels"
        )
    if missing := set(classes) - set(labels.values()):
        raise ReadingError(f"classes: no image lies in a folder {' or '.join(sorted(missing))}")
    return labels


def _no_collision(images: Sequence[Place], labels: dict[str, str]) -> None:
    """Two class folders side by side whose names differ in case or blanks only are an error."""
    spelt = defaultdict(set)
    for place in images:
        if label := labels.get(place.path):
            above = place.parts[: place.parts.index(label)]
            spelt[above, same_name(label)].add(label)
    for (above, _), names in spelt.items():
        if len(names) > 1:
            raise ReadingError(
                f"the class folders {' and '.join(map(repr, sorted(names)))} in "
                f"{'/'.join(above) or 'the root'} differ in case or blanks only: one class or two? "
                "Rename one, or join them"
            )


def settled(labels: Iterable[str]) -> dict[str, str]:
    """One spelling for each name, the most frequent, then the first by alphabet."""
    counted = Counter(labels)
    order = sorted(counted, key=lambda name: (counted[name], [-ord(c) for c in name]))
    return {same_name(name): " ".join(name.split()) for name in order}


def _not_mixed(kept: Sequence[Place], labels: dict[str, str], level: int) -> None:
    """A class's name at another depth too means that the tree is uneven; raises ReadingError."""
    classes = {same_name(label) for label in labels.values()}
    for place in kept:
        others = [name for number, name in enumerate(place.levels) if number != level]
        if both := [name for name in others if same_name(name) in classes]:
            raise ReadingError(
                f"the folder {both[0]!r} stands at several depths, in {place.path} for example. "
                f"Choose: -p classes_level {place.depths[min(level, len(place.depths) - 1)]}, or "
                '-p classes \'["…", "…"]\' for folders of these names wherever they stand'
            )


def _below(levels: list[Level], level: int) -> list[Note]:
    """Folders that are neither classes nor patients, in words."""
    rest = [
        one
        for number, one in enumerate(levels)
        if number != level and not one.patients and len(one.images) > 1
    ]
    if not rest:
        return []
    hint = f"if they are patients: -p patients_level {rest[0].depth}"
    return [("not read", f"{'; '.join(map(str, rest))} ({hint})")]


def _patients_of(
    kept: Sequence[Place], levels: list[Level], classes_depth: int | None, source: Source
) -> tuple[dict[str, str], list[Note]]:
    """The patient of each image: by a pattern, by a level that was named, or by the first that
    looks like patients; and a sentence on it. Raises :class:`ReadingError`."""
    if source.pattern is not None:
        found = by_pattern([place.path for place in kept], source.pattern)
        return found, [
            (
                "patients",
                f"by {source.pattern}: {len(set(found.values())):,} in {len(found):,} of "
                f"{len(kept):,} images",
            )
        ]
    if source.patients_level is not None:
        found = _at(kept, source.patients_level)
        if not found:
            raise ReadingError(f"patients_level {source.patients_level}: no image lies so deep")
        return found, [("patients", f"the folders at level {source.patients_level}")]
    for number, level in enumerate(levels):
        if level.patients and level.depth != classes_depth:
            found = {p.path: p.levels[number] for p in kept if len(p.levels) > number}
            return found, [
                (
                    "patients",
                    f"the {len(level.images):,} folders at level {level.depth}, "
                    f"{min(level.images)} for example; one name under two classes is one patient",
                )
            ]
    return {}, []


def by_pattern(paths: Iterable[str], pattern: str) -> dict[str, str]:
    """The first group of a regular expression in each file's name, or else in its path."""
    compiled = re.compile(pattern)
    found = {}
    for path in paths:
        match = compiled.search(PurePosixPath(path).name) or compiled.search(path)
        if match and any(match.groups()):
            found[path] = next(part for part in match.groups() if part)
    if not found:
        raise ReadingError(f"patient_pattern {pattern!r} fits no file name")
    return found
