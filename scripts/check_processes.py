"""Fail if a process is left that works below a folder: what a test run started must be gone when it ends.

Arguments: the folder, and how many seconds processes get for ending (default: 10).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.processes import assert_none_left

if __name__ == "__main__":
    try:
        assert_none_left(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 10.0)
    except AssertionError as error:
        sys.exit(str(error))
    print("no process was left behind")
