"""Drafts as trees: paths, leaves, depths, and what a chain has of them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edgecs.core.draft import NOTHING, Draft
from tests.core.trees import drafts

CHAIN = Draft.chain([4, 5, 6], ["a", "b", "b"], [0.5, 0.4, 0.3])


def path_to(draft: Draft, node: int) -> list[int]:
    """Nodes from the context outwards to a node, the long way round."""
    path: list[int] = []
    while node >= 0:
        path.insert(0, node)
        node = int(draft.parents[node])
    return path


def test_a_chain_is_a_tree_with_one_leaf():
    assert CHAIN.depths == [0, 1, 2]
    assert CHAIN.leaves == [2]
    assert CHAIN.first_path is CHAIN
    assert CHAIN.path_along([4, 5, 7]) == [0, 1]
    assert NOTHING.depths == NOTHING.leaves == NOTHING.path_along([1]) == []


@given(drafts())
def test_depths_and_leaves_are_those_of_the_paths(draft: Draft):
    paths = [path_to(draft, node) for node in range(len(draft))]
    assert draft.depths == [len(path) - 1 for path in paths]
    inner = {node for path in paths for node in path[:-1]}
    assert draft.leaves == [node for node in range(len(draft)) if node not in inner]
    draft.check()


@given(drafts())
def test_the_first_path_takes_the_first_child_each_time(draft: Draft):
    path, here = list[int](), -1
    while here in draft.parents.tolist():
        here = draft.parents.tolist().index(here)
        path.append(here)
    first = draft.first_path
    assert first.is_chain
    assert first.tokens.tolist() == draft.tokens[path].tolist()
    assert first.sources == tuple(draft.sources[node] for node in path)
    assert first.confidences.tolist() == draft.confidences[path].tolist()


@given(drafts(), st.lists(st.integers(0, 2), max_size=9))
def test_a_path_along_a_text_says_what_the_text_says(draft: Draft, text: list[int]):
    path = draft.path_along(text)
    assert draft.tokens[path].tolist() == text[: len(path)]
    assert path == (path_to(draft, path[-1]) if path else [])
    if len(path) < len(text):  # no child goes on
        here = path[-1] if path else -1
        children = draft.tokens[draft.parents == here].tolist()
        assert text[len(path)] not in children


@given(drafts(), drafts())
def test_a_joined_draft_keeps_both_parts(one: Draft, other: Draft):
    both = one.then(other)
    both.check()
    tokens = [*one.tokens.tolist(), *other.tokens.tolist()]
    assert both.tokens.tolist() == tokens
    for node in range(len(other)):
        before = path_to(one, len(one) - 1) if len(one) else []
        moved = [len(one) + i for i in path_to(other, node)]
        assert path_to(both, len(one) + node) == before + moved
