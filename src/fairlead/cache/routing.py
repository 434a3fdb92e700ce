"""Which node a key belongs to, such that all who ask agree and few keys move when the nodes change.

A cache in each pod holds what that pod was asked for. Spread requests at random over ten pods, and each holds a
tenth of every user's entries, or ten copies. Taking the hash modulo the number of pods moves nearly all keys when
one comes or goes. Here each node draws a weight for each key from their common hash, and the highest wins
(rendezvous, Thaler and Ravishankar 1998):

    a node leaves -> its keys go to their second choices, spread over all others; no other key moves
    a node comes  -> it takes its part from all, and nothing moves between the others

The same order of choices spreads one hot key: its first `copies` nodes each hold it. The weights are -w / ln(u)
for u uniform in (0, 1): a node's part is its weight's part of the sum. A choice looks at every node.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping

import xxhash

from fairlead.cache.keys import key_text
from fairlead.calls.bounds import check_number, check_whole
from fairlead.errors import InvalidInput

__all__ = ["Rendezvous"]

_MOST_NODES = 10_000
_UNIT = 2.0**-53


class Rendezvous:
    """Nodes by name, and which of them a key belongs to: the same in every process, in any order of the nodes.

    >>> pods = Rendezvous(["a", "b", "c"])
    >>> pods.node(("user", 7)) == Rendezvous(["c", "b", "a"]).nodes(("user", 7), 2)[0]
    True
    """

    __slots__ = ("_nodes", "names")

    def __init__(self, nodes: Mapping[str, float] | Iterable[str]) -> None:
        """nodes: names, or weights by name, each above 0; names without weights weigh 1. Name a node by what stays
        when it restarts and moves (its ordinal, not its address)."""
        given = list(nodes) if not isinstance(nodes, str) else [nodes]
        if isinstance(nodes, str) or not 1 <= len(given) <= _MOST_NODES:
            raise InvalidInput(
                f"Rendezvous: {len(given)} nodes; give 1 to {_MOST_NODES} names in a list or mapping"
            )
        if len(set(given)) != len(given):
            raise InvalidInput(f"Rendezvous: a node is named twice among {sorted(given)[:20]}")
        self.names = tuple(given)
        """The nodes, as given."""
        self._nodes: list[tuple[str, int, float]] = []
        for name in given:
            if not isinstance(name, str):
                raise InvalidInput(f"Rendezvous: {name!r} is not a name")
            weight = nodes[name] if isinstance(nodes, Mapping) else 1.0
            check_number(f"Rendezvous: weight of {name!r}", weight, above=0.0, high=1e9)
            self._nodes.append(
                (name, xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass")), weight)
            )

    def __repr__(self) -> str:
        return f"Rendezvous({len(self.names)} nodes)"

    def node(self, key: Hashable) -> str:
        """The node that `key` belongs to. Raises InvalidInput for a key that has no text (keys.py)."""
        text = key_text(key).encode()
        return max(self._nodes, key=lambda node: _score(text, node))[0]

    def nodes(self, key: Hashable, copies: int) -> tuple[str, ...]:
        """The first `copies` choices of `key`, best first, each once; all nodes if there are no more."""
        check_whole("Rendezvous.nodes: copies", copies, low=1, high=_MOST_NODES)
        text = key_text(key).encode()
        ranked = sorted(self._nodes, key=lambda node: _score(text, node), reverse=True)
        return tuple(name for name, _, _ in ranked[:copies])


def _score(text: bytes, node: tuple[str, int, float]) -> tuple[float, str]:
    name, seed, weight = node
    drawn = (xxhash.xxh3_64_intdigest(text, seed) >> 11) + 0.5
    return -weight / math.log(drawn * _UNIT), name
