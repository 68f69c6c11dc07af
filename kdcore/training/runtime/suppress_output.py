"""Suppress the output of other libraries unless they fail."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from kdcore.errors import KdcoreError


@contextmanager
def suppress_output() -> Iterator[None]:
    """Capture stdout and stderr of this process and its children; print them if an exception is raised.

    This works on file descriptors, because compilers and linkers started in the context write to them directly.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept, disabled = [os.dup(1), os.dup(2)], logging.root.manager.disable
    if "ipykernel" in sys.modules:  # in a notebook loggers do not write to these descriptors
        logging.disable(logging.WARNING)
    with tempfile.TemporaryFile() as buffer:
        os.dup2(buffer.fileno(), 1)
        os.dup2(buffer.fileno(), 2)
        failed = False
        try:
            yield
        except (KdcoreError, KeyboardInterrupt):
            raise  # these messages are complete
        except BaseException:
            failed = True
            raise
        finally:
            logging.disable(disabled)
            sys.stdout.flush()
            sys.stderr.flush()
            for number, original in zip((1, 2), kept, strict=True):
                os.dup2(original, number)
                os.close(original)
            if failed:
                buffer.seek(0)
                sys.stderr.write(buffer.read().decode(errors="replace"))
