"""What `pytest -m "not slow"` leaves out."""

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest
from tests.conftest import pytest_collection_modifyitems, slow

@pytest.fixture
@slow
def run(): ...

@pytest.fixture
def bundle(run): ...
"""
TESTS = """
import pytest

def test_directly(run): ...

def test_through_another_fixture(bundle): ...

@pytest.mark.parametrize("n", [1, 2])
def test_parametrized(bundle, n): ...

@pytest.mark.slow
def test_marked(): ...

def test_fast(tmp_path): ...

class TestOverride:
    @pytest.fixture
    def run(self): ...

    def test_with_a_fast_fixture_of_that_name(self, run): ...
"""


def test_what_needs_a_slow_fixture_is_left_out(pytester):
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(TESTS)
    result = pytester.runpytest("-m", "not slow", "-W", "ignore")
    result.assert_outcomes(passed=2, deselected=5)
    assert pytester.runpytest("-m", "slow", "-W", "ignore").parseoutcomes() == {"passed": 5, "deselected": 2}
