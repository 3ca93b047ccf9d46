"""The fresh process of one side: `python -m benchmarks.side MODULE FUNCTION` prints its sample as JSON."""

from __future__ import annotations

import importlib
import json
import sys

if __name__ == "__main__":
    module, function = sys.argv[1:]
    print(json.dumps(getattr(importlib.import_module(module), function)()))
