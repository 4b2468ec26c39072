from .decision import Decision, decide, pixel_shares, token_shares
from .directions import Direction, Target, find_direction, walk
from .edits import edits
from .explanation import BRIEF, FULL, Effort, Pictures, explain
from .maps import influence, picture_change, places, reading
from .marked import Mark, find_carriers
from .mixtures import Mixture, mixture
from .page import write_page
from .photos import Column, Photos, open_photos
from .records import Explanation, write_explanation
from .section import as_section, brief, strongest
from .variation import Variation, latents_of, pictures_of

__all__ = [
    "BRIEF",
    "FULL",
    "Column",
    "Decision",
    "Direction",
    "Effort",
    "Explanation",
    "Mark",
    "Mixture",
    "Photos",
    "Pictures",
    "Target",
    "Variation",
    "as_section",
    "brief",
    "decide",
    "edits",
    "explain",
    "find_carriers",
    "find_direction",
    "influence",
    "latents_of",
    "mixture",
    "open_photos",
    "picture_change",
    "pictures_of",
    "pixel_shares",
    "places",
    "reading",
    "strongest",
    "token_shares",
    "walk",
    "write_explanation",
    "write_page",
]
