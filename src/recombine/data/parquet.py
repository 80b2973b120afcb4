"""Reader of parquet shards, the layout of the Hugging Face hub."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from recombine.core.errors import ConfigError
from recombine.data.storage import ParquetReader, SourceSplits
from recombine.data.tree import TEST_FOLDERS

__all__ = ["parquet"]


def parquet(place: Path) -> SourceSplits:
    """Parquet shards named by split (train-*.parquet, test-*.parquet, ...), with class names in the schema."""
    import pyarrow.parquet as pq

    shards: dict[str, list[Path]] = {}
    for path in sorted(place.rglob("*.parquet")):
        name = re.split(r"[-.]", path.name)[0]
        shards.setdefault(name if name in ("train", *TEST_FOLDERS) else path.parent.name, []).append(path)
    chosen = {"train": shards["train"]} if "train" in shards else {}
    schema, *_ = [_schema(path) for paths in shards.values() for path in paths]
    image = _column(schema.names, ("image", "img"), place)
    label = _column(schema.names, ("label", "labels", "fine_label", "target"), place)
    for name in TEST_FOLDERS:
        if name in shards and (pq.read_table(shards[name][0], columns=[label])[label].to_numpy() >= 0).any():
            chosen["test"] = shards[name]  # hub sets with a secret test set label it -1 and publish `validation`
            break
    if not chosen:
        raise ConfigError(f"{place} has parquet files for {', '.join(shards)} but none for train, test or validation")
    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = features.get(label, {}).get("names", [])
    return SourceSplits({split: partial(ParquetReader, paths, image, label) for split, paths in chosen.items()}, names)


def _schema(path: Path):
    """A shard's schema; it stands at the end of the file, so that a truncated one has none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path} is truncated or not a Parquet file: fetch it again") from error


def _column(names: Sequence[str], allowed: Sequence[str], place: Path) -> str:
    for name in allowed:
        if name in names:
            return name
    raise ConfigError(
        f"the parquet files in {place} have columns {', '.join(names)}; one of {', '.join(allowed)} is needed"
    )
