"""Folder, shards or built-in photos -> batches.

find_photos -> Listing -> open_store -> Store (every photo decoded once, uint8, on disk)
                       -> stream_store -> Store (decoded when asked for)
  -> Crops + Positions (training, resumable from the images seen) | fixed_batches (evaluation)
  -> find_marks -> Marks (what masks or boxes mark in each photo)
"""

from softvq.data.find import find_photos
from softvq.data.marks import Box, Marks, find_marks, mvtec_masks, read_masks
from softvq.data.order import Crop, Crops, Positions, fixed_batches
from softvq.data.photos import (
    BUILTIN,
    BUILTIN_MIN_SIDE,
    SPLITS,
    SUFFIXES,
    Listing,
    split_of,
)
from softvq.data.shards import is_sharded
from softvq.data.store import Store, open_store, stream_store, temporary_store
from softvq.data.stream import Pixels, Rows

__all__ = [
    "BUILTIN",
    "BUILTIN_MIN_SIDE",
    "SPLITS",
    "SUFFIXES",
    "Box",
    "Crop",
    "Crops",
    "Listing",
    "Marks",
    "Pixels",
    "Positions",
    "Rows",
    "Store",
    "find_marks",
    "find_photos",
    "fixed_batches",
    "is_sharded",
    "mvtec_masks",
    "open_store",
    "read_masks",
    "split_of",
    "stream_store",
    "temporary_store",
]
