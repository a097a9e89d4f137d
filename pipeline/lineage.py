"""The tree of variants: every variant has one parent, and the teacher is the root."""

from collections.abc import Mapping

REFERENCE = "fp32"
"""Name of the variant whose latency others are compared with, where there is one of that name."""


def ancestors(parents: Mapping[str, str], name: str) -> list[str]:
    """The names of all ancestors of a variant, the nearest first.

    The walk ends with the first name that has no parent itself, which is ``teacher`` in a valid tree.
    ``teacher`` is therefore the last ancestor of every variant, and has no ancestors.
    In a cycle, the walk ends with the first name that comes a second time, counting ``name`` itself:
    ``ancestors({"a": "b", "b": "a"}, "a")`` is ``["b", "a"]``.

    Args:
        parents: the parent of each variant.
        name: the variant, or ``teacher``.
    """
    chain = [name]
    while (parent := parents.get(chain[-1])) is not None:
        seen = parent in chain
        chain.append(parent)
        if seen:
            break
    return chain[1:]
