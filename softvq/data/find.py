"""Which photos there are, whatever holds them."""

from pathlib import Path

from softvq.data.photos import SPLITS, Listing, find_files
from softvq.data.shards import find_shards, is_sharded
from softvq.errors import UserError


def find_photos(source: str | Path, split: str = "train") -> Listing:
    """The photos of ``split``, train, val or all, of a folder, of shards, or ``"builtin"``.

    See :func:`softvq.data.photos.find_files` for folders and what they may look like, and
    :func:`softvq.data.shards.find_shards` for what ``softvq shard`` wrote. Raises UserError as
    these do.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split '{split}'; known: {', '.join(SPLITS)}")
    if is_sharded(source):
        return find_shards(source, split)
    return find_files(source, split)
