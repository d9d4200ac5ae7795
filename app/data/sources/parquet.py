"""Read parquet data sets such as DigiFace: a column of image files and a column of identities.

Image columns can be plain bytes or the struct {bytes, path} of Hugging Face's data sets. Files are read in the order of
their names, in small batches of rows. So neither a file nor a row group, which can be as large as its file, is held in
memory.

Letters: N rows in all files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from app.data.sources.photograph import UNREADABLE, decode_face, why_unreadable
from app.data.sources.source import Source, fingerprint
from app.errors import WrongUse

# Common column names, in order of preference.
IMAGE_COLUMNS = ("image", "images", "img", "image_bytes", "bytes", "face", "jpg", "jpeg", "png", "webp")
LABEL_COLUMNS = (
    "identity", "identity_id", "label", "labels", "subject", "subject_id", "person", "person_id", "class", "class_id",
    "target", "id_label", "pid", "id", "name",
)  # fmt: skip
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test", "dev": "validation", "eval": "validation",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip
UNKNOWN = -1  # the label of an unknown person
BATCH_ROWS = 64  # image files in memory at once
LABEL_BATCH_ROWS = 65536
BUFFER_BYTES = 1 << 20  # read-ahead per column; without a buffer a whole row group is fetched


class Stored(NamedTuple):
    """One stored image file, with its place."""

    file: Path
    row: int  # within the file
    data: bytes | None


def parquet(
    path: Path, image_column: str | None = None, label_column: str | None = None, split: str | None = None
) -> Source:
    """Open one parquet file, or the files of one split of a folder, as a source.

    Identities are numbered 0..M-1 in order of appearance; -1 stays -1, which means unknown. Raises WrongUse, also for a
    folder with several splits if `split` is not given.
    """
    files = _of_split(path, _files_in(path), split) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise WrongUse(f"there is no .parquet file at {path}; give path=FILE.parquet or path=DIR with such files")
    counts = []
    for file in files:
        with _opened(file) as opened:
            schema = opened.schema_arrow
            # The first file decides the columns; all others must have them.
            image_column = _column(file, schema, "image_column", image_column, IMAGE_COLUMNS, _holds_images)
            label_column = _column(file, schema, "label_column", label_column, LABEL_COLUMNS, _holds_labels)
            counts.append(opened.metadata.num_rows)
    assert image_column is not None
    assert label_column is not None
    if not sum(counts):
        raise WrongUse(f"{path} has no rows; give path=DIR with parquet files that hold images")
    labels, people = _labels(files, label_column)
    return Source(
        name=path.resolve().stem,
        count=sum(counts),
        read=_Reader(files, counts, image_column),
        decode=decode,
        labels=labels,
        people=people,
        made_of=f"{fingerprint(files, path if path.is_dir() else path.parent)} {image_column} {label_column}",
        stored=stored_files,
    )


def _files_in(path: Path) -> list[Path]:
    """The parquet files of a folder, by name; as in pyarrow's data sets, without names that begin with . or _."""
    files = sorted(path.rglob("*.parquet"))
    return [file for file in files if not any(part.startswith((".", "_")) for part in file.relative_to(path).parts)]


def _of_split(path: Path, files: list[Path], wanted: str | None) -> list[Path]:
    """Select the files of one split: those whose own or folder's name begins with the split's name. Raises WrongUse."""
    splits: dict[str | None, list[Path]] = {}
    for file in files:
        splits.setdefault(_split(file, path), []).append(file)
    named = [name for name in splits if name]
    if wanted is not None and wanted not in splits:
        known = f"choose from {', '.join(named)}" if named else "its files name no split; leave split= out"
        raise WrongUse(f"split={wanted} is not in {path}; {known}")
    if wanted is None and len(named) > 1:
        first = "train" if "train" in named else named[0]
        raise WrongUse(f"{path} holds the splits {', '.join(named)}; give split={first}, or path=FILE.parquet")
    return splits[wanted] if wanted is not None else files


def _split(file: Path, top: Path) -> str | None:
    """The split of a file by Hugging Face's names of files and folders; None if no name is known."""
    for name in (file.stem, *(folder.name for folder in file.relative_to(top).parents)):
        word = re.split(r"[-_.]", name.lower(), maxsplit=1)[0]
        if word in SPLITS:
            return SPLITS[word]
    return None


def decode(rows: Sequence[Stored]) -> NDArray[np.uint8]:
    """Decode stored images to uint8 [n, 112, 112, 3] RGB. Raises WrongUse naming the row."""
    return np.stack([_decode(row) for row in rows])


def stored_files(rows: Sequence[Stored]) -> list[bytes]:
    return [row.data or b"" for row in rows]


def _decode(stored: Stored) -> NDArray[np.uint8]:
    try:
        return decode_face(stored.data or b"")
    except UNREADABLE as error:
        what = "is not a readable image" if stored.data else "has no image bytes"
        why = why_unreadable(error, f"{what}; remove that row or export the file again")
        raise WrongUse(f"row {stored.row} of {stored.file} {why}") from error


class _Reader:
    """Read rows start..stop of all files; consecutive calls continue where the last one stopped."""

    def __init__(self, files: list[Path], counts: list[int], column: str) -> None:
        self.files, self.column = files, column
        self.starts = np.cumsum([0, *counts])
        self.at = -1
        self.rows: Iterator[Stored] = iter(())

    def __call__(self, start: int, stop: int) -> list[Stored]:
        if start != self.at:
            self.rows = self._from(start)
        self.at = stop
        return list(islice(self.rows, stop - start))

    def _from(self, start: int) -> Iterator[Stored]:
        first = int(np.searchsorted(self.starts, start, side="right")) - 1
        for number in range(first, len(self.files)):
            yield from self._rows_of(self.files[number], max(0, start - int(self.starts[number])))

    def _rows_of(self, file: Path, start: int) -> Iterator[Stored]:
        """Yield the file's rows from `start` on; earlier row groups are not read."""
        with _opened(file) as opened:
            sizes = [opened.metadata.row_group(group).num_rows for group in range(opened.num_row_groups)]
            group, row = 0, 0
            while group < len(sizes) and row + sizes[group] <= start:
                row += sizes[group]
                group += 1
            groups = list(range(group, len(sizes)))
            for batch in _batches(file, opened, self.column, BATCH_ROWS, groups):
                if row + len(batch) > start:
                    for data in batch.slice(max(0, start - row)).to_pylist():
                        place = max(row, start)
                        yield Stored(file, place, data)
                        start = row = place + 1
                else:
                    row += len(batch)


def _labels(files: list[Path], column: str) -> tuple[NDArray[np.int32], list[str]]:
    """Read the identities [N], numbered in order of appearance, and their names. Only this column is read."""
    numbers: dict[Any, int] = {UNKNOWN: UNKNOWN}
    labels = []
    for file in files:
        row = 0
        with _opened(file) as opened:
            for values in _batches(file, opened, column, LABEL_BATCH_ROWS, list(range(opened.num_row_groups))):
                if values.null_count:
                    first = row + int(np.flatnonzero(values.is_null().to_numpy(zero_copy_only=False))[0])
                    raise WrongUse(f"row {first} of {file} has no {column}; fill it in or remove that row")
                coded = values if pa.types.is_dictionary(values.type) else values.dictionary_encode()
                codes = coded.indices.to_numpy(zero_copy_only=False)
                names = coded.dictionary.to_pylist()
                # Number by first appearance in the rows; the file's own dictionary may be in any order.
                seen, first_at = np.unique(codes, return_index=True)
                for code in seen[np.argsort(first_at)]:
                    numbers.setdefault(names[code], len(numbers) - 1)
                table = np.array([numbers.get(name, UNKNOWN) for name in names], np.int32)
                labels.append(table[codes])
                row += len(values)
            if row != opened.metadata.num_rows:
                raise WrongUse(
                    f"{file} has {row} rows, but its footer lists {opened.metadata.num_rows}; copy or download it again"
                )
    names = [name for name in numbers if name != UNKNOWN]
    if len({*map(type, names)}) > 1:  # 3 and "3" would be two people
        raise WrongUse(
            f"{column} holds numbers in some files of {files[0].parent}, and names in others; export it alike"
        )
    return np.concatenate(labels), [*map(str, names)]


def _opened(file: Path) -> Any:
    try:
        return pq.ParquetFile(file, buffer_size=BUFFER_BYTES, pre_buffer=False)
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: names that are not UTF-8
        raise WrongUse(f"{file} is not a complete parquet file; copy or download it again") from error


def _batches(file: Path, opened: Any, column: str, rows: int, groups: list[int]) -> Iterator[Any]:
    """Yield one column in arrays; for a struct column its `bytes` field. Raises WrongUse if the file is damaged."""
    try:
        for batch in opened.iter_batches(rows, row_groups=groups, columns=[column], use_threads=False):
            array = batch.column(0)
            yield array.field("bytes") if pa.types.is_struct(array.type) else array
    except (pa.ArrowException, OSError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise WrongUse(f"{file} is truncated or damaged ({said}); copy or download it again") from error


def _holds_images(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_images(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        return _holds_images(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind))


def _holds_labels(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    is_name = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    return bool(pa.types.is_integer(kind) or is_name)


def _column(file: Path, schema: Any, option: str, wanted: str | None, usual: Sequence[str], fits: Any) -> str:
    """Choose a column of a suitable type: the wanted one, else the first common name, else the only one.

    Raises WrongUse, which lists the columns.
    """
    fitting = [field.name for field in schema if fits(field.type)]
    lower = {name.lower(): name for name in reversed(fitting)}
    chosen = next((lower[name] for name in usual if name in lower), None) if wanted is None else wanted
    if chosen is None and len(fitting) == 1:
        chosen = fitting[0]
    if chosen not in fitting:
        kinds = ["struct" if pa.types.is_struct(field.type) else field.type for field in schema]
        columns = ", ".join(f"{name} ({kind})" for name, kind in zip(schema.names, kinds, strict=True))
        what = "image files (bytes)" if option == "image_column" else "identities (whole numbers or names)"
        missing = f"has no column {wanted} with {what}" if wanted else f"has no known column with {what}"
        advice = f"name one with {option}={fitting[0]}" if fitting else "export the file again with one"
        raise WrongUse(f"{file} {missing}; its columns are {columns}: {advice}")
    return str(chosen)
