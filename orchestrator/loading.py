"""Reads a study file: safe YAML with line numbers, `a.b=c` overrides, and every error at once with its way out.

Numbers, true, false and null are read by the rules of YAML 1.2, so that `1e18` is a number, `no` is a word and
`12:30` is not 750. Anchors, aliases and tags are refused: none of them is needed, and aliases can grow without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from orchestrator.explain import explain
from orchestrator.study import Study

LARGEST_FILE_BYTES = 1_000_000
DEEPEST_NESTING = 20
MOST_SHOWN = 20

INTEGER = re.compile(r"[-+]?[0-9][0-9_]*")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9_]*)?)([eE][-+]?[0-9]{1,4})?")
WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "true": True, "false": False}

OVERRIDE_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*")

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
DocumentPath = tuple[str | int, ...]


class StudyError(ValueError):
    """A study file that cannot be used. The text has one line a problem: place, field, value, bound, way out."""

    def __init__(self, lines: Sequence[str]) -> None:
        self.lines = tuple(lines)
        shown = list(self.lines[:MOST_SHOWN])
        if len(self.lines) > MOST_SHOWN:
            shown.append(f"... and {len(self.lines) - MOST_SHOWN} more problems")
        super().__init__("\n".join(shown))


@dataclass
class Document:
    """A parsed document with the place ("file:line") of every value in it, by path."""

    value: Any = None
    places: dict[DocumentPath, str] = field(default_factory=dict)

    def place(self, path: DocumentPath) -> str:
        """Where the value at `path` was written, or the nearest value around it."""
        while path not in self.places:
            path = path[:-1]
        return self.places[path]


def load_study(path: Path | str, overrides: Sequence[str] = ()) -> Study:
    """The study in a file, with overrides `a.b=c` applied. Raises StudyError."""
    return parse_study(_read_file(Path(path)), str(path), overrides)


def parse_study(text: str, source: str, overrides: Sequence[str] = ()) -> Study:
    """The study in a text; `source` is the file name that errors show. Raises StudyError."""
    document = parse_document(text, source)
    if document.value is None:
        raise StudyError([f"{source}: is empty. Begin with `name:` and `design:`; `scaling schema` has all keys"])
    if not isinstance(document.value, dict):
        raise StudyError([f"{source}:1: must be a mapping of keys such as `name:`, not {_kind(document.value)}"])
    for override in overrides:
        apply_override(document, override)
    try:
        return Study.model_validate(document.value)
    except ValidationError as error:
        raise StudyError(
            [f"{document.place(found.path)}: {found.text}" for found in explain(Study, error, document.value)]
        ) from error


def parse_document(text: str, source: str) -> Document:
    """Plain values of one YAML document, with places. Raises StudyError."""
    return _Reader(text, source).read()


def apply_override(document: Document, override: str) -> None:
    """Set one value in place: `recipe.learning_rate=0.01`, `design.sizes=[12k, 25k]`. Raises StudyError."""
    key, equals, written = override.partition("=")
    place = f"override {override}"
    if not equals or not OVERRIDE_KEY.fullmatch(key):
        raise StudyError([f"{place}: must look like a.b=c, for example recipe.learning_rate=0.01"])
    path = tuple(key.split("."))
    at = document.value
    for depth, name in enumerate(path[:-1]):
        if name not in at or at[name] is None:
            at[name] = {}
            document.places[path[: depth + 1]] = place
        at = at[name]
        if not isinstance(at, dict):
            inner = ".".join(path[: depth + 1])
            raise StudyError(
                [f"{place}: {inner} is {_kind(at)} and has no key {path[depth + 1]!r}. Override {inner} as a whole"]
            )
    at[path[-1]] = parse_document(written, place).value
    for stale in [known for known in document.places if known[: len(path)] == path]:
        del document.places[stale]
    document.places[path] = place


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise StudyError(
            [f"{path}: there is no such file. Give the path of a study file, e.g. configs/quickstart.yaml"]
        ) from error
    except OSError as error:
        raise StudyError([f"{path}: cannot be read ({error.strerror}). Check the path and its permissions"]) from error
    if len(content) > LARGEST_FILE_BYTES:
        raise StudyError(
            [f"{path}: is larger than {LARGEST_FILE_BYTES:,} bytes, which no study file is. Check the path"]
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise StudyError([f"{path}: is not text in UTF-8 (byte {error.start}). Save it as UTF-8"]) from error


class _Reader:
    """Builds plain values from the parser's events in one pass, so that nothing but what is allowed is ever made."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.text = text
        self.document = Document()

    def read(self) -> Document:
        self.document.places[()] = self._place(1)
        try:
            events: Iterator[Any] = yaml.parse(self.text, Loader=Loader)
            event = next(events)
            while isinstance(event, (yaml.StreamStartEvent, yaml.DocumentStartEvent)):
                event = next(events)
            if isinstance(event, yaml.StreamEndEvent):
                return self.document
            self.document.value = self._value(event, events, ())
            next(events)  # end of the document
            if not isinstance(after := next(events), yaml.StreamEndEvent):
                raise self._refusal(after, "a second document begins here. Keep one study in a file")
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = mark.line + 1 if mark else 1
            problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
            raise StudyError([f"{self._place(line)}: is not YAML: {problem}"]) from error
        return self.document

    def _place(self, line: int) -> str:
        return self.source if self.source.startswith("override ") else f"{self.source}:{line}"

    def _event_place(self, event: Any) -> str:
        return self._place(event.start_mark.line + 1)

    def _refusal(self, event: Any, reason: str) -> StudyError:
        return StudyError([f"{self._event_place(event)}: {reason}"])

    def _value(self, event: Any, events: Iterator[Any], path: DocumentPath) -> Any:
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self._refusal(event, "anchors and aliases are not read. Write the value out")
        if event.tag is not None and event.tag != "!":
            raise self._refusal(event, f"the tag {event.tag} is not read. Write the plain value")
        if len(path) > DEEPEST_NESTING:
            raise self._refusal(event, f"is nested deeper than {DEEPEST_NESTING} levels, which no study file is")
        self.document.places[path] = self._event_place(event)
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else _plain(event.value)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                items.append(self._value(event, events, (*path, len(items))))
            return items
        return self._mapping(events, path)

    def _mapping(self, events: Iterator[Any], path: DocumentPath) -> dict[str, Any]:
        items: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            if not isinstance(event, yaml.ScalarEvent):
                raise self._refusal(event, "a key must be a word. Write `key: value`")
            key, place = str(event.value), self._event_place(event)
            if key in items:
                before = self.document.places[(*path, key)]
                raise self._refusal(event, f"the key {key!r} is given twice, first at {before}. Remove one of them")
            items[key] = self._value(next(events), events, (*path, key))
            # An error about a value is shown where its key stands.
            self.document.places[(*path, key)] = place
        return items


def _plain(text: str) -> Any:
    if text in WORDS:
        return WORDS[text]
    if INTEGER.fullmatch(text):
        # Python refuses to turn thousands of digits into an int; as text they get a readable error.
        return int(text.replace("_", "")) if len(text) <= 60 else text
    if FLOAT.fullmatch(text):
        # Kept as text where a float would lose digits or overflow: `numbers` reads it exactly.
        number = float(text.replace("_", ""))
        return text if number in (float("inf"), float("-inf")) else number
    return text


def _kind(value: object) -> str:
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return f"the single value {value!r}"
