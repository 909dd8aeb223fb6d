"""How the files of a dataset are read: what a reader may say about labels, patients and grey
levels."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kdnb.parameters import BadParameter, Parameters, parameter

# of a table of labels
COLUMNS = ("path", "label", "split", "patient", "mask", "organ_mask", "report")
CLASSES_FROM = ("folders", "masks")
NO_PATTERN = "none"  # as patient_pattern: file names tell no patients, and none are proposed
INTENSITIES = ("image", "set", "file")


@dataclass(frozen=True)
class Source(Parameters):
    """How the files of a dataset are read; the defaults let the tree of folders speak.

    ``labels`` names a table that states what the folders only suggest. ``columns`` maps the columns
    of :data:`COLUMNS` to names in that table. ``classes_level`` and ``patients_level`` count
    folders below the dataset's root, 1 being the top. ``window`` is (centre, width) in the file's
    units, Hounsfield units for CT. Raises :class:`~kdnb.parameters.BadParameter`.
    """

    labels: str | None = parameter(None, "a CSV, TSV or XLSX file that states labels and patients")
    columns: dict[str, str] | None = parameter(
        None, 'its columns, where their names are unusual: {"path": "file", "label": "dx"}'
    )
    classes: tuple[str, ...] | None = parameter(None, "the folders that are classes, by name")
    classes_level: int | None = parameter(None, "depth of the class folders, 1 at the top", low=1)
    classes_from: str = parameter(
        "folders", "masks: lesion or no lesion, by the lesion mask", choices=CLASSES_FROM
    )
    patients_level: int | None = parameter(None, "depth of the patient folders", low=1)
    patient_pattern: str | None = parameter(
        None,
        r"regular expression of patients in file names: ^(person\d+)_, or none",
    )
    intensity: str = parameter(
        "image",
        "grey range of deep images: of each image, of the set, or as the file says",
        choices=INTENSITIES,
    )
    window: tuple[float, ...] | None = parameter(
        None, "a fixed grey range instead, centre and width: [40, 400]"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for column in self.columns or {}:
            if column not in COLUMNS:
                raise BadParameter(f"columns: {column!r} is none of {', '.join(COLUMNS)}")
        if self.columns and not all(isinstance(name, str) for name in self.columns.values()):
            raise BadParameter(f"columns must map names to names, got {self.columns!r}")
        if self.classes is not None and len(self.classes) < 2:
            raise BadParameter(f"classes must name two folders or more, got {self.classes!r}")
        if self.window is not None and (len(self.window) != 2 or not self.window[1] > 0):
            raise BadParameter(f"window must be centre and width, width above 0: {self.window!r}")
        if self.patient_pattern not in (None, NO_PATTERN):
            _compiled(self.patient_pattern)

    @property
    def pattern(self) -> str | None:
        """The pattern of patients, where one was given that is to be used."""
        return None if self.patient_pattern == NO_PATTERN else self.patient_pattern


def _compiled(pattern: str) -> re.Pattern:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise BadParameter(
            f"patient_pattern {pattern!r} is no regular expression: {error}"
        ) from None
    if compiled.groups < 1:
        raise BadParameter(
            f"patient_pattern {pattern!r} needs a group around the patient, as in ^(person\\d+)_"
        )
    return compiled
