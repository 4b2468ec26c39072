"""What each token of a tokenizer means on somebody's photos, with tests of what is said.

>>> from softvq.explain import explain, open_photos, write_page
>>> with open_photos("photos", size_of(tokenizer)) as photos:
...     found, pictures = explain(tokenizer, photos)
>>> write_page(found, pictures, "tokens.html", lang="ja")
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
