"""Run kdcore as `python -m kdcore` where the script `kdcore` is not installed, for example in a container."""

import sys

from kdcore.commands.main import main

sys.exit(main())
