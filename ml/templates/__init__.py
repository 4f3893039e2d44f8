"""The texts that language models are asked with, one file each, and the way they are filled in.

Here: loading a template (ours, or one of the same name from a folder of the user's), filling it in, its
identity for recipes. Not here: fencing untrusted text (ml/parsing.py) and sending messages to a model
(resources).

A template is a Jinja text. Lines `### system`, `### user` and `### assistant` start a chat message; a
template without them is one user message. Values are inserted as plain text and never interpreted, neither as
Jinja nor as such lines.
"""

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2 import Template as CompiledTemplate
from jinja2.sandbox import ImmutableSandboxedEnvironment

# What each template is given. It must use the required values: one that lacks them would silently ask
# something else.
REQUIRED: Mapping[str, frozenset[str]] = {
    "optimize": frozenset({"query"}),
    "few_shot_draft": frozenset({"examples", "query"}),
    "critique": frozenset({"query", "prompt", "nonce"}),
    "critique_repair": frozenset({"problem", "nonce"}),
    "pairwise": frozenset({"query", "prompt_a", "prompt_b", "nonce"}),
    "safety": frozenset({"prompt", "nonce"}),
}

_FOLDER = Path(__file__).parent
_ROLE_LINE = re.compile(r"^###[ \t]*(system|user|assistant)[ \t]*$", re.MULTILINE)
# Templates are plain text for a language model, not HTML, so nothing is escaped; the sandbox keeps a template
# that a user brings along from reaching into Python objects.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    autoescape=False,
)


class TemplateProblem(ValueError):
    """A template that is missing, broken, or filled in with the wrong values."""


@dataclass(frozen=True)
class Template:
    """One template: its name and its source text."""

    name: str
    source: str

    @cached_property
    def hash(self) -> str:
        """24 hex digits of the source: part of the recipe of every row made with this template."""
        return hashlib.sha256(self.source.encode()).hexdigest()[:24]

    @cached_property
    def placeholders(self) -> frozenset[str]:
        """The names of the values that the source uses."""
        try:
            return frozenset(meta.find_undeclared_variables(_ENVIRONMENT.parse(self.source)))
        except TemplateSyntaxError as error:
            raise TemplateProblem(
                f"The template {self.name!r} is broken, line {error.lineno}: {error.message}."
            ) from error

    def messages(self, **values: Any) -> list[dict[str, str]]:
        """The filled-in chat messages: a list of {"role", "content"}. Raises TemplateProblem for wrong
        values.
        """
        self._check(values)
        try:
            mark, compiled = _compiled(self.source)
            text = compiled.render(**values)
        except TemplateError as error:
            raise TemplateProblem(f"The template {self.name!r} cannot be filled in: {error}.") from error
        before, *parts = text.split(mark)
        if not parts:
            return [{"role": "user", "content": before.strip()}]
        if before.strip():
            raise TemplateProblem(f"The template {self.name!r} has text before its first `### role` line.")
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return [{"role": role, "content": content.strip()} for role, content in pairs]

    def render(self, **values: Any) -> str:
        """The filled-in text of all messages, a blank line between them, without roles."""
        return "\n\n".join(message["content"] for message in self.messages(**values))

    def _check(self, values: Mapping[str, Any]) -> None:
        missing = sorted(self.placeholders - set(values))
        if missing:
            raise TemplateProblem(f"The template {self.name!r} needs a value for {', '.join(missing)}.")
        known = self.placeholders | REQUIRED.get(self.name, frozenset())
        unknown = sorted(set(values) - known)
        if unknown:
            raise TemplateProblem(f"The template {self.name!r} has no placeholder {', '.join(unknown)}.")


@lru_cache(maxsize=64)
def _compiled(source: str) -> tuple[str, CompiledTemplate]:
    """A source ready to be filled in, and the mark of its role lines: they are marked before values come in, by what
    no value can know, so none can pass for one. Compiling takes many times as long as filling in."""
    mark = secrets.token_hex(16)
    return mark, _ENVIRONMENT.from_string(_ROLE_LINE.sub(rf"{mark}\g<1>{mark}", source))


def names() -> tuple[str, ...]:
    """The templates that the method uses."""
    return tuple(sorted(REQUIRED))


def load(name: str, folder: Path | None = None) -> Template:
    """The template `name`: `folder`/`name`.txt where there is one, else ours.

    Raises TemplateProblem for an unknown name, a folder that does not exist, and a text that lacks a value it
    is given.
    """
    if name not in REQUIRED:
        raise TemplateProblem(f"There is no template {name!r}; there are {', '.join(names())}.")
    if folder is not None and not folder.is_dir():
        raise TemplateProblem(f"The template folder {folder} does not exist.")
    path = folder / f"{name}.txt" if folder is not None else _FOLDER / f"{name}.txt"
    if not path.is_file():
        path = _FOLDER / f"{name}.txt"
    try:
        template = Template(name, path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateProblem(f"Cannot read the template {path}: {error}.") from error
    lacking = sorted(REQUIRED[name] - template.placeholders)
    if lacking:
        raise TemplateProblem(f"The template {path} does not use {', '.join(lacking)}; write {{{{ {lacking[0]} }}}}.")
    return template
