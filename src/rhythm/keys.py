"""The keys of a config: which there are, what each takes, and which one was probably meant."""

from __future__ import annotations

import difflib
import inspect
import re
import shlex
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

CONFIGS = Path(__file__).parents[2] / "configs"
KINDS = {  # of a default: what may stand in its place, and its name
    bool: ({bool}, "true or false"),
    int: ({int}, "a whole number"),
    float: ({float, int}, "a number"),
    list: ({list}, "a list"),
    str: ({str, list}, "a word"),  # a word may name a list: layers, targets
}
# What may be left null is otherwise like this.
OPTIONAL = {"ckpt_path": "last", "output": "results", "output_dir": "logs/mine", "max_prompt_tokens": 512}
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")
OF_ANY_KIND = {"trainer.devices"}  # Lightning takes numbers, words and lists


def check_kinds(cfg: DictConfig, config_name: str, overrides: Sequence[str]) -> None:
    """Refuses a value of another kind than its default: a word for a number, a fraction for a count.

    Raises:
        ValueError: names the key and what it takes.
    """
    given, defaults = flatten(OmegaConf.to_container(cfg)), default_values(config_name, overrides)
    for key, value in given.items():
        default = defaults.get(key)
        like = OPTIONAL.get(key) if default is None else _followed(default, defaults)
        if key in OF_ANY_KIND or type(like) not in KINDS or _is_reference(value):
            continue
        kinds, named = KINDS[type(like)]
        if key in OPTIONAL and config_name != "analyze":  # which takes several ckpt_path
            kinds = kinds - {list}
        fits = type(value) in kinds if value is not None else default is None or _may_be_null(key, given)
        if not fits:
            raise ValueError(f"{key}={'null' if value is None else value}: takes {named}, like {like}")


def _may_be_null(key: str, given: dict[str, Any]) -> bool:
    """Whether what reads a key takes None, as far as signatures say; what a key at the top is used for is not known."""
    readers = [key, *(other for other, value in given.items() if value == f"${{{key}}}")]
    return "." in key and all(_takes_none(reader, given) for reader in readers)


def _takes_none(key: str, given: dict[str, Any]) -> bool:
    group, _, name = key.rpartition(".")
    target = given.get(f"{group}._target_")
    found = None if target is None else parameter(target, name)
    return found is None or bool(re.search("None|Optional|Any|_empty", str(found.annotation)))


def parameter(target: str, name: str) -> inspect.Parameter | None:
    """What the object that a config's `_target_` names takes under a name; None where it takes no such thing."""
    return inspect.signature(get_object(target)).parameters.get(name)


def _followed(value: Any, values: dict[str, Any]) -> Any:
    """A value, or the one that it is a plain reference to; None for any other interpolation."""
    if not _is_reference(value):
        return value
    reference = _REFERENCE.fullmatch(value)
    return _followed(values.get(reference[1]), values) if reference else None


def _is_reference(value: Any) -> bool:
    return isinstance(value, str) and "${" in value


def typed(name: str, node: str, config_name: str, overrides: Sequence[str]) -> str:
    """A setting of a node as it is typed: credit.top_fraction, or signals.window where a callback's refers to that."""
    key = f"{node}.{name}"
    values = default_values(config_name, overrides)
    if key not in values:
        return name
    reference = _REFERENCE.fullmatch(str(values[key]))
    return reference[1] if reference else key


def override(key: str, value: Any) -> str:
    """A setting as one types it in bash, on one line, quoted for the shell and for Hydra."""
    word = f"{key}={_spelled(value)}"
    if "\n" not in word:
        return shlex.quote(word)
    return "$'{}'".format(word.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n"))


def _spelled(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(_spelled, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if not isinstance(value, str):
        return str(value)
    if re.fullmatch(r"[A-Za-z/][\w./:-]*", value) and value.lower() not in ("null", "true", "false", "nan", "inf"):
        return value
    # Hydra reads a backslash as itself but before a quote, where it is doubled.
    return '"' + re.sub(r'(\\*)("|$)', lambda end: end[1] * 2 + end[2].replace('"', '\\"'), value) + '"'


def unknown_option(path: str) -> str:
    """What to say of an option that its group does not have, such as credit/ancor."""
    group, _, option = path.removesuffix(".yaml").rpartition("/")
    folder = CONFIGS / group
    options = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
    meant = difflib.get_close_matches(option, options, n=1)
    hint = f"did you mean {group}={meant[0]}? " if meant else ""
    return f"{group}={option}: there is no such option; {hint}There are {', '.join(options)}"


def options_with(key: str) -> list[str]:
    """The options of a key's group whose files have the key: of credit.top_fraction credit=anchor, ..."""
    group, _, rest = key.partition(".")
    files = sorted((CONFIGS / group).glob("*.yaml")) if rest else []
    return [f"{group}={file.stem}" for file in files if rest in flatten(OmegaConf.to_container(OmegaConf.load(file)))]


def nearest(key: str, keys: list[str]) -> str | None:
    """The key that was probably meant: the same name elsewhere in the tree, or nearly the same letters."""
    same_name = [known for known in keys if known.rpartition(".")[2] == key.rpartition(".")[2]]
    return next(iter(same_name + difflib.get_close_matches(key, keys, n=1, cutoff=0.75)), None)


def known_keys(config_name: str, overrides: Sequence[str]) -> list[str]:
    """Every dotted key of a config with the overrides' choices of groups."""
    return [key for key in default_values(config_name, overrides) if not key.endswith("_")]


def default_values(config_name: str, overrides: Sequence[str]) -> dict[str, Any]:
    """Dotted keys to values of a config with the overrides' choices of groups, and nothing else of them."""
    groups = {str(folder.relative_to(CONFIGS)) for folder in CONFIGS.rglob("*") if folder.is_dir()}
    # Of a sweep the first choice: with -m, `experiment=uniform,anchor` is two.
    choices = [
        word if "[" in word else word.partition(",")[0] for word in overrides if word.partition("=")[0] in groups
    ]
    running = GlobalHydra.instance().is_initialized()
    with nullcontext() if running else hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return flatten(OmegaConf.to_container(hydra.compose(config_name, choices)))


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested dictionaries, inner nodes included, to values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found[prefix + key] = value
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}.")
    return found
