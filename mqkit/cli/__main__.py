"""`python -m mqkit.cli` is `mqkit`."""

from __future__ import annotations

import sys

from mqkit.cli import main

sys.exit(main())
