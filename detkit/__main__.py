"""``python -m detkit`` is the ``detkit`` command."""

import sys
from pathlib import Path

# ``-m`` puts the working directory first, from where no file may replace a module; unless detkit itself lies there.
if __name__ == "__main__" and not sys.flags.safe_path and Path(sys.path[0]) != Path(__file__).parents[1]:
    del sys.path[0]

from detkit.cli import main

if __name__ == "__main__":
    sys.exit(main())
