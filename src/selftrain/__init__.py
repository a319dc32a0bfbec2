"""Algorithms by which models learn from what they generate themselves.

Names are loaded on first use: importing the package imports neither torch nor transformers. What
there is stands in the stub ``__init__.pyi`` beside this file, the one list of public names.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
