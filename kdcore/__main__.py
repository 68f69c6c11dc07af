"""`python -m kdcore` is `kdcore`, where no script is installed: in a container, or from a copy of the code."""

import sys

from kdcore.commands.main import main

sys.exit(main())
