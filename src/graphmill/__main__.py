"""``python -m graphmill`` is the command ``graphmill``."""

import sys

from graphmill.cli import main

sys.exit(main())
