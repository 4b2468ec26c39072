"""Photos to a few continuous tokens and back, and generators on those tokens.

>>> from softvq import Pipeline, Tokenizer

The names are listed in ``__init__.pyi``; each is imported when it is first used, so that
``import softvq`` is instant.  Measures are in :mod:`softvq.evaluate`, photos in :mod:`softvq.data`.
"""

import lazy_loader

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
