"""What a database says it would do for a statement, and what is wrong with that, in a sentence.

A plan is a page of costs, of which one line matters: a table read from end to end, a sort that no index spares, a
table searched anew for each row of another. Those are found here, in the plan's text alone; getting it is the driver's
work. A plan without values is the generic one: the database chose it without knowing them, and may choose another for
a value that is rare.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

__all__ = ["QueryPlan", "aliased_table", "postgres_plan", "sqlite_plan"]

MANY_ROWS = 1_000
"""A table or a sort of fewer rows is done in less than a millisecond whatever the plan."""
MOST_OF_IT = 0.2
"""Share of a table's rows. Who wants more than a fifth of them is served best by reading all: no index would help."""
MANY_LOOPS = 100
"""Rows of the outer side of a nested loop from which on scanning the inner side for each is a product that grows."""


class QueryPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a database would run a statement, and what is wrong with it."""

    statement: str
    summary: str
    """The worst of it in one sentence."""
    troubles: tuple[str, ...] = ()
    """All of it, the worst first."""
    plan: str
    """As the database printed it."""
    caveats: tuple[str, ...] = ()


class _Trouble(msgspec.Struct, frozen=True):
    weight: float
    """Rows touched, as far as anybody knows: only for the order."""
    said: str


def sqlite_plan(
    statement: str, rows: Iterable[Sequence[Any]], tables: Mapping[str, float | None]
) -> QueryPlan:
    """From the rows of `EXPLAIN QUERY PLAN` (id, parent, unused, detail).

    tables: rows of each table at most, by its name; None where nobody knows.
    """
    steps = [(int(row[0]), int(row[1]), str(row[3])) for row in rows]
    details = {number: detail for number, _, detail in steps}
    parents = {number: parent for number, parent, _ in steps}
    troubles: list[_Trouble] = []
    outer: dict[int, str] = {}
    for number, parent, detail in steps:
        scan = re.match(r"SCAN (?:TABLE )?(\S+)(.*)", detail)
        known = None
        if scan is not None and scan[1] not in ("CONSTANT", "SUBQUERY") and not scan[1].isdecimal():
            table = aliased_table(statement, scan[1], tables)
            known = tables.get(table)
            correlated = _within(number, parents, details, "CORRELATED")
            if parent in outer or correlated:
                of = outer.get(parent, "the outer query")
                troubles.append(
                    _Trouble(
                        (known or MANY_ROWS) * MANY_LOOPS,
                        f"for each row of {of}, scans {_named(table, known)}",
                    )
                )
            elif "INDEX" not in scan[2] and (known is None or known >= MANY_ROWS):
                troubles.append(_Trouble(known or MANY_ROWS, f"full scan of {_named(table, known)}"))
            outer.setdefault(parent, table)
        found = re.match(
            r"SEARCH (?:TABLE )?(\S+) .*AUTOMATIC (?:PARTIAL )?(?:COVERING )?INDEX \((.*?)\)", detail
        )
        if found is not None:
            table = aliased_table(statement, found[1], tables)
            known = tables.get(table)
            columns = re.sub(r"=\?|[<>]\?", "", found[2])
            troubles.append(
                _Trouble(
                    (known or MANY_ROWS) * 2,
                    f"builds an index over {_named(table, known)} for every run, since none on ({columns}) exists",
                )
            )
        if detail.startswith("USE TEMP B-TREE FOR "):
            what = detail.removeprefix("USE TEMP B-TREE FOR ")
            troubles.append(_Trouble(MANY_ROWS / 2, f"sorts for {what} without an index"))
    plan = "\n".join(f"{'  ' * _depth(number, parents)}{detail}" for number, _, detail in steps)
    return _plan(statement, troubles, plan, ("SQLite says no costs; rows are those of the whole table",))


def postgres_plan(statement: str, document: Any, tables: Mapping[str, float | None]) -> QueryPlan:
    """From the document of `EXPLAIN (FORMAT JSON, VERBOSE)`.

    tables: rows of each table, by its name with its schema; None where it was never analysed.
    """
    root = document[0]["Plan"] if isinstance(document, list) and document else {}
    troubles: list[_Trouble] = []
    for node, limited in _nodes(root):
        kind, rows = str(node.get("Node Type", "")), float(node.get("Plan Rows", 0.0))
        children = [
            child for child in node.get("Plans", ()) if child.get("Parent Relationship") != "InitPlan"
        ]
        if kind == "Seq Scan":
            table = _relation(node)
            known = tables.get(table)
            workers = max(1.0, _gathered(root, node))
            kept = min(rows * workers, known) if known else None
            if known is not None and known >= MANY_ROWS:
                said = f"full scan of {_named(table, known)}"
                wanted = node.get("Filter")
                if wanted is None:
                    said += ", all of which it wants"
                elif kept is not None and kept > MOST_OF_IT * known:
                    said += f" for about {kept:,.0f} of them, which no index would spare"
                else:
                    said += f" for about {kept or rows:,.0f} that pass {wanted}"
                troubles.append(_Trouble(known, said))
        elif kind in ("Sort", "Incremental Sort") and children:
            sorted_rows = float(children[0].get("Plan Rows", 0.0))
            if sorted_rows >= MANY_ROWS:
                keys = ", ".join(map(str, node.get("Sort Key", ())))
                said = f"sorts about {sorted_rows:,.0f} rows by {keys} without an index"
                troubles.append(
                    _Trouble(sorted_rows / 2, said + (f", to keep {limited:,.0f}" if limited else ""))
                )
        for loops, scanned in _repeated(node, children):
            table = _relation(scanned)
            known = tables.get(table)
            if loops >= MANY_LOOPS and (known is None or known >= MANY_LOOPS):
                said = f"scans {_named(table, known)} anew for each of about {loops:,.0f} rows"
                troubles.append(_Trouble(loops * (known or MANY_ROWS), said))
    unanalysed = sorted(name for name, known in tables.items() if known is None)
    caveats = ["generic plan: chosen without the values, and another may be chosen for a rare one"]
    if unanalysed:
        caveats.append(
            f"never analysed: {', '.join(unanalysed)}; the estimates are guesses until ANALYZE has run"
        )
    return _plan(statement, troubles, "\n".join(_lines(root, 0)), tuple(caveats))


def aliased_table(statement: str, name: str, tables: Iterable[str]) -> str:
    """The table that `name` stands for in the statement."""
    for table in tables:
        if table.lower() == name.lower():
            return table
    for table in tables:
        pattern = rf'(?<!\w)["`]?{re.escape(table)}["`]?\s+(?:as\s+)?["`]?{re.escape(name)}["`]?(?!\w)'
        if re.search(pattern, statement, re.IGNORECASE):
            return table
    return name


def _plan(statement: str, troubles: list[_Trouble], plan: str, caveats: tuple[str, ...]) -> QueryPlan:
    said = tuple(dict.fromkeys(each.said for each in sorted(troubles, key=lambda each: -each.weight)))
    return QueryPlan(
        statement=statement,
        summary=said[0]
        if said
        else "nothing in the plan is wrong as it stands: look at the values, locks and load",
        troubles=said,
        plan=plan,
        caveats=caveats,
    )


def _named(table: str, rows: float | None) -> str:
    return f"table {table}" if rows is None else f"table {table} of about {rows:,.0f} rows"


def _depth(number: int, parents: Mapping[int, int]) -> int:
    depth = 0
    while (number := parents.get(number, 0)) in parents and depth < len(parents):
        depth += 1
    return depth


def _within(number: int, parents: Mapping[int, int], details: Mapping[int, str], word: str) -> bool:
    for _ in range(len(parents)):
        number = parents.get(number, 0)
        if word in details.get(number, ""):
            return True
    return False


def _nodes(root: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], float | None]]:
    """Every node, with the rows of a LIMIT directly above it."""
    waiting: list[tuple[Mapping[str, Any], float | None]] = [(root, None)]
    while waiting:
        node, limited = waiting.pop()
        yield node, limited
        limit = float(node.get("Plan Rows", 0.0)) if node.get("Node Type") == "Limit" else None
        waiting.extend((child, limit) for child in node.get("Plans", ()))


def _relation(node: Mapping[str, Any]) -> str:
    schema = node.get("Schema", "")
    return f"{schema}.{node.get('Relation Name', '')}" if schema else str(node.get("Relation Name", ""))


def _repeated(
    node: Mapping[str, Any], children: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[float, Mapping[str, Any]]]:
    """The scans that a node repeats, each with how often: the inner side of a nested loop, a subquery of each row."""
    if node.get("Node Type") == "Nested Loop" and len(children) >= 2:
        scanned = _scan_below(children[1])
        if scanned is not None:
            yield float(children[0].get("Plan Rows", 0.0)), scanned
    for child in children:
        if child.get("Parent Relationship") != "SubPlan":
            continue
        # One that is hashed is run once.
        hashed = f"hashed {child.get('Subplan Name')}" in f"{node.get('Filter')} {node.get('Output')}"
        scanned = None if hashed else _scan_below(child)
        if scanned is not None:
            yield float(node.get("Plan Rows", 0.0)), scanned


def _scan_below(node: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The sequential scan that a repetition repeats; none where an index serves it or a hash keeps its rows."""
    # What is materialized is read once, and gone through for each row all the same.
    through = ("Subquery Scan", "Result", "Aggregate", "Materialize", "Limit", "Sort")
    while node.get("Node Type") in through and len(node.get("Plans", ())) == 1:
        node = node["Plans"][0]
    return node if node.get("Node Type") == "Seq Scan" else None


def _gathered(root: Mapping[str, Any], wanted: Mapping[str, Any]) -> float:
    """Processes that share a node's work: its rows are those of one of them."""
    waiting: list[tuple[Mapping[str, Any], float]] = [(root, 1.0)]
    while waiting:
        node, workers = waiting.pop()
        if node is wanted:
            return workers if node.get("Parallel Aware") else 1.0
        planned = float(node.get("Workers Planned", 0))
        waiting.extend((child, planned + 1.0 if planned else workers) for child in node.get("Plans", ()))
    return 1.0


def _lines(node: Mapping[str, Any], depth: int) -> Iterator[str]:
    name = f" on {_relation(node)}" if node.get("Relation Name") else ""
    index = f" using {node['Index Name']}" if node.get("Index Name") else ""
    condition = next(
        (f" [{node[key]}]" for key in ("Index Cond", "Filter", "Hash Cond", "Join Filter") if node.get(key)),
        "",
    )
    yield (
        f"{'  ' * depth}{node.get('Node Type', '?')}{index}{name}{condition}"
        f"  (cost {node.get('Total Cost', 0):,.0f}, rows {node.get('Plan Rows', 0):,.0f})"
    )
    for child in node.get("Plans", ()):
        yield from _lines(child, depth + 1)
