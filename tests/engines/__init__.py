"""Real engines. The suite that several modules share gets its assertions explained as theirs are."""

import pytest

pytest.register_assert_rewrite("tests.engines.real")
