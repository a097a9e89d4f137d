"""Ancestors of variants."""

from pipeline import lineage

PARENTS = {"fp32": "teacher", "pruned": "fp32", "int8": "pruned"}


def test_ancestors_run_from_the_parent_to_the_teacher():
    assert lineage.ancestors(PARENTS, "int8") == ["pruned", "fp32", "teacher"]
    assert lineage.ancestors(PARENTS, "fp32") == ["teacher"]


def test_the_root_has_no_ancestors():
    assert lineage.ancestors(PARENTS, "teacher") == []


def test_a_cycle_ends_with_the_first_name_that_comes_twice():
    assert lineage.ancestors({"a": "b", "b": "a"}, "a") == ["b", "a"]
    assert lineage.ancestors({"a": "a"}, "a") == ["a"]
    assert lineage.ancestors({"a": "b", "b": "c", "c": "b"}, "a") == ["b", "c", "b"]
