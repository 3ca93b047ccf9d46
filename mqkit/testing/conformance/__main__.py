"""Run one program of the suite in a process of its own: `python -m mqkit.testing.conformance PROGRAM URL [ARGUMENT ...]`."""

from __future__ import annotations

import sys

from mqkit.testing.conformance import programs

if __name__ == "__main__":
    program, *arguments = sys.argv[1:]
    getattr(programs, program)(*arguments)
