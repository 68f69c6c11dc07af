"""Train kdcore's encoders on labelled texts: read the texts, and score predictions.

Other packages may use only the names in this module. `__init__.pyi` lists them with the modules that define them; each
is imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
