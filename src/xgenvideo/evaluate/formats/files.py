"""Rows of an annotation file: JSON, JSON lines, CSV or Parquet, each as a dict."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from xgenvideo.errors import DataError

Row = dict[str, Any]


def read_values(path: Path) -> Any:
    """What the file holds: rows of JSON lines, CSV and Parquet; whatever a JSON file is. Raises DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such annotation file; give the file that the benchmark publishes")
    try:
        if path.suffix == ".parquet":
            import pyarrow.parquet

            return pyarrow.parquet.read_table(path).to_pylist()
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".csv":
            return list(csv.DictReader(io.StringIO(text, newline="")))
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        return json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); it must be .json, .jsonl, .csv or .parquet") from error


def read_rows(path: Path) -> list[Row]:
    """As `read_values`, where it must be a list of rows."""
    values = read_values(path)
    if not isinstance(values, list) or not values or not all(isinstance(row, dict) for row in values):
        raise DataError(f"{path}: must be a list of rows with names; is it of this benchmark?")
    return values


def field(row: Row, path: Path, *names: str) -> Any:
    """The first of `names` that the row has. Raises DataError naming the file and the fields it does have."""
    for name in names:
        if row.get(name) is not None:
            return row[name]
    raise DataError(f"{path}: a row has no {' or '.join(names)}, only {sorted(row)}; is it of this benchmark?")
