"""Prepare raw text for kdcore: read, clean, tokenise, pack, split; train tokenizers.

Other packages may use only the names in this module. `__init__.pyi` lists them with the modules that define them.
Modules are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
