from .decision import Decision, decide, pixel_shares, token_shares
from .directions import Direction, Target, find_direction, walk
from .edits import edits
from .explanation import Pictures, explain
from .maps import influence, picture_change, places, reading
from .marked import Mark, find_carriers
from .mixtures import Mixture, mixture
from .page import write_page
from .photos import Column, Photos, open_photos
from .records import Explanation, write_explanation
from .section import token_section
from .variation import Variation, latents_of, pictures_of

__all__ = [
    "Column",
    "Decision",
    "Direction",
    "Explanation",
    "Mark",
    "Mixture",
    "Photos",
    "Pictures",
    "Target",
    "Variation",
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
    "token_section",
    "token_shares",
    "walk",
    "write_explanation",
    "write_page",
]
