"""Run `kdcore` as `python -m kdcore` where its script is not installed: in a container, or from a copy of the code."""

import sys

from kdcore.commands.main import main

sys.exit(main())
