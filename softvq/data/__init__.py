"""Folder or built-in photos -> batches.

find_photos -> Listing -> open_store -> Store (every photo decoded once, uint8, on disk)
  -> Crops + Positions (training, resumable from the images seen) | fixed_batches (evaluation)
  -> find_marks -> Marks (what masks or boxes mark in each photo)
"""

from softvq.data.marks import Box, Marks, find_marks, mvtec_masks, read_masks
from softvq.data.order import Crop, Crops, Positions, fixed_batches
from softvq.data.photos import (
    BUILTIN,
    BUILTIN_MIN_SIDE,
    SPLITS,
    SUFFIXES,
    Listing,
    find_photos,
    split_of,
)
from softvq.data.store import Store, open_store, temporary_store

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
    "Positions",
    "Store",
    "find_marks",
    "find_photos",
    "fixed_batches",
    "mvtec_masks",
    "open_store",
    "read_masks",
    "split_of",
    "temporary_store",
]
