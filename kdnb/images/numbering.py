"""Images that belong together, where only the numbers in their file names tell: a function a set,
from paths to groups, for the catalogue's ``groups_of``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

# Copies of WCEBleedGen number the frames of each class from 1, or, as img1310 for a frame without
# bleeding tells, all frames in the order of their former names as text (img1, img10, img100, …),
# bleeding ones first.
FRAMES, BLOCK = 1309, 10  # frames of a class, and of a block
_AS_TEXT = sorted(range(1, FRAMES + 1), key=str)


def capsule_frames(paths: Sequence[str]) -> dict[str, str]:
    """The block of consecutive frames of WCEBleedGen that each path belongs to; frames without a
    number have none."""
    numbers, classes = {}, {}
    for path in paths:
        if found := re.match(r"img(?:- ?\()?(\d+)\)?\.", PurePosixPath(path).name.lower()):
            numbers[path] = int(found[1])
            other = re.search(r"non[ _-]?bleeding", path, re.IGNORECASE)
            classes[path] = "non-bleeding" if other else "bleeding"
    if any(numbers[path] > FRAMES for path, name in classes.items() if name == "non-bleeding"):
        numbers = {
            path: _AS_TEXT[(number - 1) % FRAMES]
            for path, number in numbers.items()
            if 0 < number <= 2 * FRAMES
        }
    return {
        path: f"{classes[path]}-{(number - 1) // BLOCK * BLOCK + 1}"
        for path, number in numbers.items()
    }


# The Alzheimer's dataset holds 32 slices of each of 200 subjects. Its test images name slice and
# subject, "26 (71).jpg" or, for the first subject, "26.jpg": slices 27 to 32 and some of slice 26.
# The training images number the rest of a class, slice after slice, subjects in the order of those
# names as text. The pixels agree: of the 6,399 others, the image most similar to any is of the same
# subject (tests/test_real_data.py).
SUBJECTS = {"non": 100, "verymild": 70, "mild": 28, "moderate": 2}  # of each class
DIVIDED_SLICE = 26  # stands in training for some subjects, in test for others
DIVIDED_IN_TEST = {"non": 40, "verymild": 28, "mild": 11, "moderate": 0}  # subjects


def alzheimer_subjects(paths: Sequence[str]) -> dict[str, str]:
    """The subject of each image of the Alzheimer's dataset; images named otherwise have none, nor
    have training images of the divided slice in copies whose test images are incomplete."""
    subjects, numbers, kinds = {}, {}, "|".join(SUBJECTS)
    for path in map(PurePosixPath, paths):
        folder = re.match(kinds, re.sub(r"[^a-z]", "", path.parent.name.lower()))
        if folder and (found := re.fullmatch(r"(\d+)(?: \((\d+)\))?", path.stem)):
            subjects[str(path)] = (folder[0], int(found[1]), int(found[2] or 1))
        elif found := re.fullmatch(rf"({kinds})dem(\d+)", path.stem.lower()):
            numbers[str(path)] = (found[1], int(found[2]))
    orders = {kind: _subjects_in_order(kind, subjects.values()) for kind in SUBJECTS}
    by_number = {
        path: (kind, orders[kind][number])
        for path, (kind, number) in numbers.items()
        if number < len(orders[kind])
    }
    by_name = {path: (kind, subject) for path, (kind, _, subject) in subjects.items()}
    return {path: f"{kind}-{subject}" for path, (kind, subject) in (by_name | by_number).items()}


def _subjects_in_order(kind: str, tested: Iterable[tuple[str, int, int]]) -> list[int]:
    """Subjects of the training images of one class, in the order of their numbers, from the class,
    slice and subject of the test images."""
    subjects = range(1, SUBJECTS[kind] + 1)
    order = sorted(subjects, key=lambda subject: f" ({subject})" if subject > 1 else ".")
    divided = {subject for own, number, subject in tested if (own, number) == (kind, DIVIDED_SLICE)}
    rest = [subject for subject in order if subject not in divided]
    return order * (DIVIDED_SLICE - 1) + rest * (len(divided) == DIVIDED_IN_TEST[kind])
