"""What the tokens mean, in the report: found while the study ran, see trying/explaining.py."""

from softvq.explain import Explanation, as_section
from softvq.report import Section
from softvq.study.records import read, read_pictures
from softvq.study.telling.view import View
from softvq.study.trying.explaining import EXPLANATION, PAGE, STRONGEST, TOKENS

MEND = "delete it and run softvq study again, it makes it anew"


def meaning(view: View) -> Section | None:
    """The strongest tokens' maps and whether they can be believed; None where it was not found.

    Raises UserError for damaged files.
    """
    folder = view.out / TOKENS
    if not (folder / EXPLANATION).is_file():
        return None
    found = read(Explanation, folder / EXPLANATION, MEND)
    section = as_section(found, read_pictures(folder / STRONGEST), view.words.lang)
    section.text.append(view.words("tokens.page", page=f"{TOKENS}/{PAGE}"))
    return section
