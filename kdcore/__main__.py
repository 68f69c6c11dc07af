"""Run `kdcore` as `python -m kdcore` if its script is not installed, for example in a container."""

import sys

from kdcore.commands.main import main

sys.exit(main())
