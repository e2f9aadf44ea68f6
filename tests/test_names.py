"""An unknown name is refused by its key, with the known name that was probably meant."""

import re

import pytest

from pipeline import names


def test_a_known_name_passes():
    names.check("a.b", "snr", {"snr": 1, "uniform": 2})


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("snrr", "a.b must be one of snr, uniform, got 'snrr'; did you mean snr?"),
        ("srn", "a.b must be one of snr, uniform, got 'srn'; did you mean snr?"),
        ("UNIFORM ", "a.b must be one of snr, uniform, got 'UNIFORM '; did you mean uniform?"),
        ("best", "a.b must be one of snr, uniform, got 'best'"),
        ("", "a.b must be one of snr, uniform, got ''"),
        (["snr"], "a.b must be one of snr, uniform, got ['snr']"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_known_one(name, sentence):
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        names.check("a.b", name, {"snr": 1, "uniform": 2})


def test_one_name_of_several_has_its_own_rule_and_the_table_can_be_qualified():
    with pytest.raises(ValueError, match="^a.b must be among all for flux, got 'al'; did you mean all"):
        names.check("a.b", "al", ("all",), "be among", " for flux")


def test_a_missing_file_is_told_from_what_lies_beside_it(tmp_path):
    (tmp_path / "example.txt").touch()
    assert names.meant_path(tmp_path / "exmaple.txt") == f"; did you mean {tmp_path / 'example.txt'}?"
    assert names.meant_path(tmp_path / "photos.txt") == ""
    assert names.meant_path(tmp_path / "nowhere" / "example.txt") == ""
