"""Duplicates and near-duplicates: copies, also re-encoded, cropped, turned or mirrored ones.

Two searches propose pairs and one measurement decides. A 64-bit perceptual hash in all eight flips
and quarter turns finds near copies; the nearest neighbours of a rotation- and mirror-invariant
descriptor find copies under any turn and zoom about the centre. Each proposed pair is then
registered (:mod:`kdnb.leakage.registration`) and its fine detail correlated. The limit follows from
how unrelated images of the same set correlate: chest radiographs are more similar than histology
tiles and get a stricter limit. In a set made by augmentation, the groups of copies are compared
once more by landmarks (:mod:`kdnb.leakage.landmarks`), because two of them may come from
overlapping photographs. Neighbouring slices of one scan are no copies; they are looked for last
(:mod:`kdnb.leakage.slices`), unless every image names its patient.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from tqdm.auto import tqdm

from kdnb import extras, files
from kdnb.images import index, tables
from kdnb.leakage import fingerprints, landmarks, nearest, slices
from kdnb.leakage.fingerprints import Fingerprints
from kdnb.leakage.registration import RADII, log_polar, refine, register

faiss = extras.late("faiss")

VERSION = 9  # part of the stored links' name: raise it when a rule changes
HASH_BITS = 6  # perceptual hashes (64 bits) closer than this are looked at
# of them for one image: the first four, and on to the next number only while that finds copies
CLOSEST = (4, 8, 16, 32)
WORTH = 1000  # of so many pairs one must be a copy, else less likely pairs are not compared
# nearest descriptors that are looked at: the first three, and each further one only while that
# finds copies
NEIGHBOURS = 6
ROWS = 4096  # images whose candidates are sorted at a time
# a copy correlates more than unrelated images do by so many standard deviations of Fisher's z
DEVIATIONS = 8.0
DOUBT = 1.5  # from so many on, a pair gets a second look
LIMITS = (0.35, 0.97)  # the limit stays between these
# steps of the log-polar radius (7.6 % each) at which neighbours are searched: 0.74 to 1.35
ZOOMS = (0, -4, -2, 2, 4)
HARMONICS = 13
AUGMENTED = 10  # copies of the median image in a set that was made by augmentation
# images: a larger set (about 11 minutes on two cores) is searched only for a split by group
LARGEST = 100_000
COLUMNS = ["first", "second", "kind", "correlation", "turn", "zoom", "mirrored", "hash_bits"]


@dataclass(frozen=True)
class Leakage:
    """What the detector found in one dataset.

    ``links`` has the columns ``COLUMNS``: paths of two images, ``kind`` (``same pixels``, ``near
    copy``, ``turned copy``, ``same place``, ``same scan``), the correlation of their detail after
    registration, turn in degrees, zoom, mirrored or not, and the distance of the perceptual hashes
    in bits. A group of m copies has at least m − 1 links, not all m(m − 1)/2. ``facts`` tells the
    limit, what unrelated images reach, how many pairs were looked at and the seconds it took.
    """

    links: pd.DataFrame
    facts: dict

    @property
    def kinds(self) -> str:
        """Images that the links join, in words."""
        scans = bool((self.links["kind"] == "same scan").any())
        return "copies and slices of one scan" if scans else "copies"

    def groups(self, table: pd.DataFrame) -> np.ndarray:
        """Number the rows of an index table, ``(N,)``: copies, images of one patient and
        byte-identical files have one number. Links to images outside the table have no effect."""
        rows = dict(zip(table["path"], range(len(table)), strict=True))
        ends = self.links[["first", "second"]].map(rows.get).dropna().to_numpy(dtype=int)
        group = tables.groups(table)
        order = np.argsort(group, kind="stable")
        chain = np.stack([order[:-1], order[1:]], 1)[np.diff(group[order]) == 0]
        return tables.join(np.concatenate([ends, chain]), len(table))

    def conflicts(self, table: pd.DataFrame) -> pd.DataFrame:
        """Images whose pixels also occur under another label, as problems of an index table.

        Columns path, problem, detail.
        """
        rows = dict(zip(table["path"], range(len(table)), strict=True))
        same = (
            self.links.loc[self.links["kind"] == "same pixels", ["first", "second"]]
            .map(rows.get)
            .dropna()
            .to_numpy(dtype=int)
        )
        table, rows = table.assign(group=tables.join(same, len(table))), []
        labels = table.groupby("group")["label"].transform("nunique")
        for _, group in table[labels > 1].groupby("group"):
            all_ = " = ".join(f"{row.path} ({row.label})" for row in group.itertuples())
            rows += [
                (path, "label conflict", f"same pixels: {all_}; all left out")
                for path in group["path"]
            ]
        return pd.DataFrame(rows, columns=["path", "problem", "detail"])


def find(found: index.Index, name: str) -> Leakage:
    """Copies among the images of an index: searched for once, then read from the cache.

    ``name`` labels the progress bars and the folder of the cache. The search takes about 7 ms an
    image on two CPU cores; it shows its progress and goes on where it was killed. Raises
    ``MissingExtra`` where the search is needed and not installed.
    """
    folder = _folder(found, name)
    with files.lock(folder):
        if not (folder / "facts.json").exists():
            extras.require("detector")
            links, facts = detect(found.root, found.table, name, folder)
            with files.atomic(folder / "links.csv") as temporary:
                links.to_csv(temporary, index=False, float_format="%.5g")
            files.write_json(
                folder / "facts.json", facts
            )  # last: its presence says that the search is whole
            for part in folder.glob("part-*"):
                part.unlink()
    return _read(folder)


def recall(found: index.Index, name: str) -> Leakage | None:
    """What :func:`find` found earlier, without a search; None where it has not searched yet."""
    folder = _folder(found, name)
    return _read(folder) if (folder / "facts.json").exists() else None


def _folder(found: index.Index, name: str) -> Path:
    return files.cache_dir() / "leakage" / f"{name}-{found.checksum}-{VERSION}"


def _read(folder: Path) -> Leakage:
    kinds = {"first": str, "second": str, "kind": str}
    return Leakage(
        pd.read_csv(folder / "links.csv", dtype=kinds, keep_default_na=False),
        files.read_json(folder / "facts.json"),
    )


def detect(
    root: Path, table: pd.DataFrame, name: str = "images", folder: Path | None = None
) -> tuple[pd.DataFrame, dict]:
    """Links between the images of a table (columns path, mode), and the facts of the search; see
    :class:`Leakage`. Neighbouring slices are linked where the table has the columns label and
    patient, and not every image has a patient.

    Finished parts of the work are kept in ``folder`` when it is given: who was killed goes on from
    the last of them.
    """
    started = time.monotonic()
    known = fingerprints.compute(root, table, name, folder)
    read = time.monotonic()
    links = same_pixels(known)
    one_each = np.unique(pd.factorize(pd.Series(known.pixels))[0], return_index=True)[1]
    limits = limits_of(known.thumbs, one_each)
    bits = fingerprints.hash_all(known.small)
    searches = propose(known, bits, one_each, name)
    looked_at, near = confirm(known, bits, searches, limits, name, folder)
    rows = pd.concat([links, near], ignore_index=True)
    group = tables.join(rows[["first", "second"]].to_numpy(int), len(table))
    if np.median(np.bincount(group)[group]) >= AUGMENTED:
        places = _same_places(known, bits, group, limits, name)
        rows = pd.concat([rows, places], ignore_index=True)
    if "patient" in table and (table["patient"] == "").any():
        group = tables.join(rows[["first", "second"]].to_numpy(int), len(table))
        scans = slices.find(known.thumbs, table, group, name)
        rows = pd.concat([rows, _upright(scans, bits)], ignore_index=True)
    paths = table["path"].to_numpy()
    rows = rows.assign(
        first=paths[rows["first"].to_numpy(int)], second=paths[rows["second"].to_numpy(int)]
    )
    facts = {
        "images": len(table),
        **limits,
        "looked_at": looked_at,
        "links": len(rows),
        "seconds": round(time.monotonic() - started, 1),
        "seconds_reading": round(read - started, 1),
    }
    return rows[COLUMNS], facts


def _same_places(
    known: Fingerprints, bits: np.ndarray, group: np.ndarray, limits: dict[str, float], name: str
) -> pd.DataFrame:
    """Links between groups of copies that show one place in different views."""
    places = landmarks.same_place(known.thumbs, group, name)
    # landmarks of anatomy agree between any two patients, so the common part of both images must be
    # as similar as in any other copy
    places = places[places["correlation"] >= limits["limit"]]
    return places.assign(kind="same place", hash_bits=_apart(bits, places))


def _upright(scans: pd.DataFrame, bits: np.ndarray) -> pd.DataFrame:
    """Links between slices of one scan, which lie in one frame."""
    return scans.assign(
        kind="same scan", turn=0.0, zoom=1.0, mirrored=False, hash_bits=_apart(bits, scans)
    )


def same_pixels(known: Fingerprints) -> pd.DataFrame:
    """Chains of images with the same decoded pixels, as links between row numbers."""
    code = pd.factorize(pd.Series(known.pixels))[0]
    order = np.argsort(code, kind="stable")
    pairs = np.stack([order[:-1], order[1:]], 1)[np.diff(code[order]) == 0]
    return pd.DataFrame(
        {
            "first": pairs[:, 0],
            "second": pairs[:, 1],
            "kind": "same pixels",
            "correlation": 1.0,
            "turn": 0.0,
            "zoom": 1.0,
            "mirrored": False,
            "hash_bits": 0,
        }
    )


def propose(
    known: Fingerprints, bits: np.ndarray, rows: np.ndarray, name: str = "images"
) -> list[list[np.ndarray]]:
    """Pairs of rows worth a look, ``(M, 2)`` each, the likeliest first. Only ``rows`` take part.

    The later arrays of one list are worth it only where the earlier ones held copies.
    """
    if len(rows) < 2:
        return []
    first, second, *further = _neighbours(known.thumbs, known.colours, rows, name)
    return [
        [rows[pairs] for pairs in search]
        for search in (_close_hashes(bits[rows], name), [first], [second], further)
    ]


def _close_hashes(bits: np.ndarray, name: str = "images") -> list[np.ndarray]:
    """Pairs whose hashes differ by fewer than ``HASH_BITS`` bits in some orientation: one array for
    each step of ``CLOSEST``.

    Every hash is compared with every other, eight bytes each. An index of parts of hashes saves
    that for different images, but puts those that are all similar into one bucket, and then takes
    longer.
    """
    store, views = faiss.IndexBinaryFlat(64), np.ascontiguousarray(bits.transpose(1, 0, 2))
    store.add(views[0])

    def near(some):
        answers = [store.search(view[some], min(CLOSEST[-1] + 1, len(bits))) for view in views]
        apart, second = (np.hstack([answer[k] for answer in answers]) for k in (0, 1))
        return np.where(apart < HASH_BITS, second, -1), apart

    ranks = _by_rank(near, len(bits), CLOSEST[-1], f"hashes of {name}")
    steps = zip((0, *CLOSEST), CLOSEST, strict=False)
    return [_unique(np.concatenate(ranks[low:high])) for low, high in steps]


def _neighbours(
    thumbs: np.ndarray, colours: np.ndarray | None, rows: np.ndarray, name: str
) -> list[np.ndarray]:
    """Pairs of nearest descriptors over all zooms, places in ``rows``: one array for each rank,
    nearest first."""
    centre = max(abs(zoom) for zoom in ZOOMS) + 1

    def describe(zoom):
        # moduli of the Fourier transform along a ring forget where it starts and which way it runs
        rings = slice(centre + zoom, RADII - centre + zoom)
        parts = []
        for some in np.array_split(rows, math.ceil(len(rows) / 2048)):
            part = log_polar(thumbs[some]).float()
            rough = (
                torch.fft.rfft(part - part.mean((1, 2), keepdim=True), dim=2)[:, rings, :HARMONICS]
                .abs()
                .sqrt()
                .flatten(1)
            )
            parts.append(F.normalize(rough, dim=1).numpy())
        shape = np.concatenate(parts)
        return np.ascontiguousarray(shape if colours is None else np.hstack([shape, colours[rows]]))

    base = describe(0)
    store = nearest.store(base)
    count = min(NEIGHBOURS + 1, len(base))
    zooms = tqdm(ZOOMS, f"descriptors of {name}", unit="zoom", leave=False, disable=len(rows) < 500)
    answers = [store.search(base if zoom == 0 else describe(zoom), count) for zoom in zooms]
    distance, other = (np.hstack([answer[k] for answer in answers]) for k in (0, 1))
    return [
        _unique(pairs)
        for pairs in _by_rank(
            lambda some: (other[some], distance[some]), len(base), NEIGHBOURS, f"ranks of {name}"
        )
    ]


def _by_rank(
    search: Callable[[slice], tuple[np.ndarray, np.ndarray]], count: int, ranks: int, name: str
) -> list[np.ndarray]:
    """Each row's nearest others: pairs ``(row, other)``, one array for each rank from the nearest
    on.

    ``search`` gives candidates and their distances ``(n, C)`` for a slice of rows; it may repeat
    candidates, and -1 is none. Some thousand rows at a time, because a table of all candidates
    would be the largest thing in memory.
    """
    found = [[np.empty((0, 2), int)] for _ in range(ranks)]
    starts = range(0, count, ROWS)
    for start in tqdm(starts, name, unit="block", leave=False, disable=count < 500):
        other, distance = search(slice(start, start + ROWS))
        first = np.broadcast_to(start + np.arange(len(other))[:, None], other.shape)
        pairs = pd.DataFrame(
            {"first": first.ravel(), "second": other.ravel(), "distance": distance.ravel()}
        )
        pairs = pairs[(pairs["second"] >= 0) & (pairs["first"] != pairs["second"])]
        pairs = pairs.sort_values("distance", kind="stable").drop_duplicates(["first", "second"])
        rank = pairs.groupby("first").cumcount()
        for number, rows in enumerate(found):
            rows.append(pairs.loc[rank == number, ["first", "second"]].to_numpy(int))
    return [np.concatenate(rows) for rows in found]


def _unique(pairs: np.ndarray) -> np.ndarray:
    pairs = np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1)
    return np.unique(pairs, axis=0)


def limits_of(thumbs: np.ndarray, rows: np.ndarray, draws: int = 1500) -> dict[str, float]:
    """Correlations: the median of unrelated images, from where a pair is in doubt, and the limit
    from where it is a copy.

    Unrelated pairs are drawn at random and registered as well as they can be. Median and median
    absolute deviation of Fisher's z do not mind the few true copies among them.
    """
    if len(rows) < 2:
        return {"unrelated": 0.0, "doubt": 0.0, "limit": LIMITS[1]}
    rng = np.random.default_rng(0)
    pairs = _unique(rows[rng.integers(0, len(rows), (draws, 2))])
    z = np.arctanh(np.clip(register(thumbs, pairs)["correlation"], -0.999, 0.999))
    middle = np.median(z)
    spread = 1.4826 * np.median(np.abs(z - middle))
    reach = {"unrelated": 0.0, "doubt": DOUBT, "limit": DEVIATIONS}
    reach = {
        name: float(np.tanh(middle + deviations * spread)) for name, deviations in reach.items()
    }
    return reach | {"limit": float(np.clip(reach["limit"], *LIMITS))}


def confirm(
    known: Fingerprints,
    bits: np.ndarray,
    searches: list[list[np.ndarray]],
    limits: dict[str, float],
    name: str,
    folder: Path | None = None,
) -> tuple[int, pd.DataFrame]:
    """Register the pairs of :func:`propose` and keep the copies: number of pairs looked at, links.

    Pairs whose ends are joined already are passed over. Pairs in doubt get a second look with free
    stretch (:func:`refine`), where they must come half way from the limit to 1.
    """
    links, looked_at, tried = [], 0, np.empty((0, 2), int)
    group = np.arange(len(known))
    total = sum(len(pairs) for search in searches for pairs in search)
    bar = tqdm(
        total=total, desc=f"comparing {name}", unit="pair", leave=False, disable=len(known) < 500
    )
    with bar, _comparing(known.thumbs, limits, folder, bar) as compare:
        for number, search in enumerate(searches):
            for step, pairs in enumerate(search):
                seen = np.isin(pairs @ [len(known), 1], tried @ [len(known), 1])
                open_ = pairs[~seen & (group[pairs[:, 0]] != group[pairs[:, 1]])]
                tried = np.concatenate([tried, open_])
                bar.update(len(pairs) - len(open_))
                found = compare(open_, f"pairs-{number}-{step}")
                if found:
                    links += found
                    group = tables.merge(group, pd.concat(links)[["first", "second"]].to_numpy(int))
                    looked_at += len(open_)
                if sum(map(len, found)) * WORTH < len(open_):
                    bar.update(sum(map(len, search[step + 1 :])))
                    break
    found = (
        pd.concat(links, ignore_index=True)
        if links
        else register(known.thumbs, np.empty((0, 2), int))
    )
    return looked_at, found.assign(kind=_kinds(found), hash_bits=_apart(bits, found))


@contextmanager
def _comparing(
    thumbs: np.ndarray, limits: dict[str, float], folder: Path | None, bar: tqdm
) -> Iterator[Callable[[np.ndarray, str], list[pd.DataFrame]]]:
    """A function that finds the copies among pairs, on all cores; its parts are kept by name."""
    threads = torch.get_num_threads()

    def compare(pairs, part):
        def look(start):
            some = pairs[start : start + fingerprints.PART]
            work = functools.partial(_copies, thumbs, some, limits)
            found = pd.DataFrame(fingerprints.kept(folder, f"{part}-{start}", work))
            bar.update(len(some))
            return found

        return list(pool.map(look, range(0, len(pairs), fingerprints.PART)))

    # many small transforms: two threads with a batch each are faster than two threads for one batch
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield compare
    torch.set_num_threads(threads)  # an initializer may reach further than its thread


def _kinds(found: pd.DataFrame) -> np.ndarray:
    """``near copy`` or ``turned copy`` for each registered pair, by its turn and zoom."""
    upright = (found["turn"] % 90).pipe(lambda turn: np.minimum(turn, 90 - turn)) < 3
    near = upright & (np.abs(np.log(found["zoom"])) < 0.08)
    return np.where(near, "near copy", "turned copy")


def _apart(bits: np.ndarray, links: pd.DataFrame) -> np.ndarray:
    """Bits in which the hashes of linked images differ, in the orientation that suits them best,
    ``(n,)``."""
    one, other = links["first"].to_numpy(int), links["second"].to_numpy(int)
    return np.bitwise_count(bits[one] ^ bits[other, :1]).sum(-1).min(1)


def _copies(
    thumbs: np.ndarray, pairs: np.ndarray, limits: dict[str, float]
) -> dict[str, np.ndarray]:
    measured, limit, stricter = register(thumbs, pairs), limits["limit"], (1 + limits["limit"]) / 2
    # likelier than chance and not yet sure: a stretch may keep two copies apart
    refined = refine(
        thumbs,
        measured[measured["correlation"].between(limits["doubt"], limit, inclusive="left")],
        stricter,
    )
    kept = pd.concat(
        [measured[measured["correlation"] >= limit], refined[refined["correlation"] >= stricter]]
    )
    return {column: kept[column].to_numpy() for column in kept}
