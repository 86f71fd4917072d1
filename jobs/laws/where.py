"""Where-expressions over the columns of a table: `split == 'train' and params > 1e6`, and nothing that runs code.

Allowed: comparisons (== != < <= > >= in, not in, chained), and, or, not, numbers, strings, lists of them, columns,
and + - * / of numbers. A column whose name is no identifier is written in backquotes.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
}
ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
ORDERED = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)


@dataclass(frozen=True)
class Where:
    """A checked expression; calling it with a row (column name to value) says whether the row is kept."""

    text: str
    tree: ast.expr
    quoted: dict[str, str]

    @property
    def names(self) -> tuple[str, ...]:
        """The columns the expression reads."""
        found = {node.id for node in ast.walk(self.tree) if isinstance(node, ast.Name)}
        return tuple(sorted(self.quoted.get(name, name) for name in found))

    def check_names(self, known: Collection[str]) -> None:
        """Raises ValueError for a column that is not there."""
        for name in self.names:
            if name not in known:
                raise ValueError(f"where {self.text!r}: no column {name!r}; columns are {', '.join(known)}")

    def __call__(self, row: Mapping[str, object]) -> bool:
        return bool(self._value(self.tree, row))

    def _value(self, node: ast.expr, row: Mapping[str, object]) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name):
                return row[self.quoted.get(name, name)]
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                return [self._value(element, row) for element in elements]
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, row)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -self._number(operand, row)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(self._value(value, row) for value in values)
            case ast.BoolOp(values=values):
                return any(self._value(value, row) for value in values)
            case ast.BinOp(left=left, op=op, right=right):
                try:
                    return ARITHMETIC[type(op)](self._number(left, row), self._number(right, row))
                except ZeroDivisionError:
                    raise ValueError(f"where {self.text!r}: divides by zero") from None
            case ast.Compare(left=left, ops=ops, comparators=comparators):
                values = [self._value(part, row) for part in (left, *comparators)]
                return all(
                    self._compare(op, first, second)
                    for op, first, second in zip(ops, values[:-1], values[1:], strict=True)
                )
            case _:
                raise AssertionError(f"parse_where lets no {type(node).__name__} pass")

    def _number(self, node: ast.expr, row: Mapping[str, object]) -> float:
        value = self._value(node, row)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"where {self.text!r}: {ast.unparse(node)} is {value!r}, which is not a number")
        return value

    def _compare(self, op: ast.cmpop, left: Any, right: Any) -> bool:
        if isinstance(op, ORDERED) and (isinstance(left, str) != isinstance(right, str) or isinstance(left, list)):
            # An empty or textual cell is neither above nor below a number.
            return False
        if isinstance(op, (ast.In, ast.NotIn)) and not isinstance(right, (list, str)):
            raise ValueError(f"where {self.text!r}: 'in' needs a list, such as ['a', 'b']")
        return bool(COMPARISONS[type(op)](left, right))


def parse_where(text: str) -> Where:
    """Reads an expression. Raises ValueError for anything outside the small language."""
    quoted: dict[str, str] = {}

    def stand_in(match: re.Match[str]) -> str:
        name = f"column_{len(quoted)}_"
        quoted[name] = match.group(1)
        return name

    try:
        tree = ast.parse(re.sub(r"`([^`]+)`", stand_in, text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"where {text!r} cannot be read ({error}); write for instance: split == 'train'") from None
    _check(tree, text)
    return Where(text, tree, quoted)


def _check(node: ast.AST, text: str) -> None:
    allowed = (
        isinstance(node, (ast.Name, ast.BoolOp, ast.And, ast.Or, ast.Compare, ast.List, ast.Tuple, ast.Load))
        or (isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str)))
        or (isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)))
        or isinstance(node, (ast.Not, ast.USub))
        or (isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC)
        or type(node) in ARITHMETIC
        or type(node) in COMPARISONS
    )
    if not allowed:
        raise ValueError(
            f"where {text!r}: {type(node).__name__} is not allowed; "
            "use columns, numbers, strings, comparisons, and, or, not"
        )
    for child in ast.iter_child_nodes(node):
        _check(child, text)
