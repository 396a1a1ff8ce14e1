"""Fail if a test was skipped for a reason that an installation could have cured.

A skip is allowed only where its reason begins with one of `ALLOWED`. Arguments: JUnit XML files as pytest writes them.
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

ALLOWED = ("other platform:", "other Python:")


def wrong_skips(path: Path) -> list[str]:
    """Every skipped test of one report whose reason is not allowed."""
    if not path.exists():
        return [f"{path.name}: no report, the tests did not run"]
    cases = list(ElementTree.parse(path).iter("testcase"))
    if not cases:
        return [f"{path.name}: no test ran"]
    wrong = []
    for case in cases:
        skipped = case.find("skipped")
        if skipped is None or skipped.get("type") == "pytest.xfail":
            continue
        reason = skipped.get("message", "")
        if not reason.startswith(ALLOWED):
            wrong.append(f"{case.get('classname')}::{case.get('name')}: {reason}")
    return wrong


def main(paths: list[str]) -> int:
    wrong = [line for path in paths for line in wrong_skips(Path(path))]
    print("\n".join(wrong) or "no test was skipped that could have run")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
