"""The documentation says what the code does."""

from pathlib import Path

from lltoolkit.tensors.sharpness.registry import MEASURES
from tests.tensors.sharpness.test_invariances import INVARIANT

DOCS = Path(__file__).parents[1] / "docs"


def test_the_table_of_invariances_is_the_one_that_is_tested():
    text = (DOCS / "sharpness.md").read_text()
    _, _, after = text.partition("<!-- tests/test_docs.py holds this table to the numbers -->\n")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in after.split("\n\n")[0].splitlines()]
    told = {row[0].strip("`"): tuple(cell == "invariant" for cell in row[1:]) for row in rows[2:]}
    assert {cell for row in rows[2:] for cell in row[1:]} == {"invariant", "not"}
    assert told == INVARIANT


def test_every_measure_is_in_the_table_of_measures():
    text = (DOCS / "sharpness.md").read_text()
    table, _, _ = text.partition("What a measure does not change under")
    for name in MEASURES:
        assert f"`{name}`" in table


def test_pictures_are_there():
    for page in DOCS.glob("*.md"):
        for part in page.read_text().split("](")[1:]:
            target = part.split(")")[0]
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name} names {target}"
