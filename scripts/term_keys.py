"""Write docs/terms.md: every key of every term, with type, default and meaning, from the contracts.

python scripts/term_keys.py
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from aicsd import losses
from aicsd.losses.adapters import ADAPTERS
from aicsd.methods import list_methods, load_recipe
from aicsd.methods.contract import LossContract, choices, contract_of
from aicsd.methods.recipe import COMMON_KEYS, Resolution, TermRecipe
from aicsd.schedules import SCHEDULES

PAGE = Path(__file__).parent.parent / "docs" / "terms.md"
HEAD = """# Keys of every term

<!-- written by scripts/term_keys.py -->

A method is a list of terms. On the command line, `--terms.TERM.KEY VALUE` sets a key of a term, and
a term that the method does not have is added: `--terms.dice.weight 0.5`. In a config or a recipe,
the same keys are YAML:

```yaml
terms:
  icsd: {weight: 20.0, schedule: rising, temperature: 1.0}
```

[Losses](losses.md) has the formulas. From Python, the options are the arguments of the loss:
`aicsd.losses.ICSDLoss(temperature=1.0)`.

## Keys that every term has

"""
IGNORED = "ignore_index"
DOCUMENTED = {
    IGNORED: "id of unlabelled pixels",
    "class_weights": "one number for each class; or `balanced`, `sqrt_balanced` or `log_balanced`, "
    "which weigh a class by its share of the labelled training pixels",
    "masked": "share of the student's pixels that are hidden",
    "numerics": "`released`: what the released AICSD code computes",
}
"""Options that several losses have in common."""


def page() -> str:
    """The text of the page."""
    parts = [HEAD + _table(_common())]
    for name in losses.list_losses():
        parts.append(_section(contract_of(name)))
    return "\n\n".join(parts) + "\n"


def _common() -> list[tuple[str, str, str, str]]:
    meanings = {
        **_documented(TermRecipe.__doc__),
        "loss": "name of the loss; without it the name of the term",
        "adapter": "network between the two maps, trained with the student",
    }
    kinds = {
        "loss": "a loss of this page, or your own",
        "weight": "number",
        "schedule": _either(SCHEDULES),
        "at": "name, list or mapping",
        "resolution": _either(get_args(Resolution)),
        "adapter": _either(ADAPTERS),
    }
    defaults = {"loss": "the term's name", "resolution": "that of the loss"}
    rows = []
    for key in COMMON_KEYS:
        default = defaults.get(key) or f"`{TermRecipe.__dataclass_fields__[key].default}`"
        rows.append((key, kinds[key], default, meanings[key]))
    return rows


def _section(contract: LossContract) -> str:
    facts = [f"Inputs: {_either(contract.inputs)}"]
    if contract.needs_teacher:
        facts.append(f"reads {contract.needs} of the teacher")
        if contract.same_channels:
            facts.append("needs maps of equal width, or an adapter")
    facts.append(f"resolution `{contract.resolution}`")
    used = [name for name in list_methods() if contract.name in _losses_of(name)]
    if used:
        facts.append(f"used by {_either(used)}")
    text = f"## `{contract.name}`\n\n{'; '.join(facts)}."
    options = contract.options
    if not options:
        return f"{text} It has no keys of its own."
    meanings = _meanings(contract)
    rows = [
        (key, _kind(hint, default), f"`{_yaml(default)}`", meanings.get(key, ""))
        for key, (hint, default) in options.items()
    ]
    return f"{text}\n\n{_table(rows)}"


def _losses_of(method: str) -> set[str]:
    return {term.contract.name for term in load_recipe(method).terms.values()}


def _meanings(contract: LossContract) -> dict[str, str]:
    """Docstrings of the options: those of the function, then those of the class."""
    found: dict[str, str] = {}
    function = getattr(losses, f"{contract.name}_loss", None)
    for target in (*reversed(contract.loss.__mro__), contract.loss.forward, function):
        found |= _documented(getattr(target, "__doc__", None))
    found |= {key: text for key, text in DOCUMENTED.items() if key in contract.options}
    return found


def _documented(docstring: str | None) -> dict[str, str]:
    """``Args:`` of a docstring as Markdown."""
    section = re.search(r"^Args:\n((?: .*\n?|\n)*)", inspect.cleandoc(docstring or ""), re.M)
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section[1] if section else "", re.M)
    return {key: _markdown(text) for key, text in entries}


def _markdown(text: str) -> str:
    words = re.sub(r":\w+:`([^`]*)`", r"`\1`", " ".join(text.split())).replace("``", "`")
    return words.replace("|", "\\|").removesuffix(".")


def _kind(hint: Any, default: object) -> str:
    if listed := choices(hint):
        return _either(listed) + (" or a list of numbers" if list[float] in get_args(hint) else "")
    if isinstance(default, bool):
        return "true or false"
    return "whole number" if isinstance(default, int) or int in get_args(hint) else "number"


def _yaml(value: object) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _either(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _table(rows: list[tuple[str, str, str, str]]) -> str:
    lines = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    lines += [f"| `{key}` | {kind} | {default} | {text} |" for key, kind, default, text in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
