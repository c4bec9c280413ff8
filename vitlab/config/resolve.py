"""From an experiment's file to one validated configuration, or to an error that says where the mistake is: `file:line: key: ...`.

In this order, a later one winning: the file that it `extends` (recursively), the file itself, the profile, `--set`. The result is
validated once, as a whole, and is frozen.
"""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vitlab.config.places import MAX_DEPTH, MAX_KEY, Keys, Place, cut, dotted, parse, read_yaml, shown
from vitlab.config.schema import (
    EMA,
    MODELS,
    OPTIMS,
    Augment,
    Claim,
    ClaimedClass,
    ClaimedRange,
    ColorJitter,
    Data,
    Distill,
    Experiment,
    Length,
    Mix,
    Phase,
    Schema,
    Train,
)
from vitlab.errors import UserError
from vitlab.files import UNPRINTABLE
from vitlab.paths import EXPERIMENTS

PROFILES = ("quick", "ledger", "overnight", "full")  # the smaller one first
PROFILE_DIR = EXPERIMENTS / "profiles"
OF_ONE = ("title", "description", "claim")  # these speak of one experiment alone, and change nothing of its training
SECTIONS: dict[str, tuple[type[Schema], ...]] = {  # of an experiment, but for lists of them and what speaks of it alone
    "data": (Data,), "model": tuple(MODELS.values()), "optim": tuple(OPTIMS.values()), "train": (Train,), "ema": (EMA,), "distill": (Distill,),
}  # fmt: skip


# -------------------------------------------------------------------------------- extends, profile, --set


def _merge(base: dict[str, Any], over: dict[str, Any], places: dict[Keys, Place], over_places: dict[Keys, Place], at: Keys = ()) -> None:
    """Lay `over` on `base`, in place. Mappings are merged, other values and sections with another `name` (model, optim) replaced."""
    for key, value in over.items():
        path = (*at, key)
        old = base.get(key)
        renamed = isinstance(value, dict) and isinstance(old, dict) and value.get("name", old.get("name")) != old.get("name")
        if isinstance(value, dict) and isinstance(old, dict) and not renamed:
            _merge(old, value, places, over_places, path)
        else:
            base[key] = copy.deepcopy(value)
            for p in [p for p in places if p[: len(path)] == path]:
                del places[p]
        places.update({p: place for p, place in over_places.items() if p[: len(path)] == path})


def file_of(name: str | Path, folder: Path) -> Path:
    """Return the file that `name` stands for: a path from `folder`, or one of vitlab's own experiments by its name without `.yaml`.

    The path from `folder` comes first. Whoever reads the file says so if neither is there.
    """
    path, own = folder / name, EXPERIMENTS / f"{name}.yaml"
    return own if os.path.isfile(own) and not os.path.isfile(path) else path


def files_in(folder: Path) -> list[Path]:
    """Return the files of the experiments in `folder`, by name: all YAMLs but claims.yaml."""
    return sorted(path for path in folder.glob("*.yaml") if path.name != "claims.yaml")


def own_names() -> dict[str, str]:
    """Return the names of vitlab's own experiments as `file_of` takes them, by the id that their records have: resnet18 -> teachers/resnet18."""
    files = [*files_in(EXPERIMENTS), *files_in(EXPERIMENTS / "teachers")]
    return {path.stem: path.relative_to(EXPERIMENTS).with_suffix("").as_posix() for path in files}


def settings_called(key: str) -> list[str]:
    """Return the settings whose last part is `key`, each with its section, as --set takes them: `optim.lr` for `lr`."""
    return [f"{section}.{key}" for section, kinds in SECTIONS.items() if any(key in kind.model_fields for kind in kinds)]


def _read_extended(path: Path, chain: tuple[Path, ...] = ()) -> tuple[dict[str, Any], dict[Keys, Place], tuple[str, ...]]:
    """Return the file's values laid on those of the file it extends, the place of each, and the names of all files read, its own last."""
    path = path.resolve()
    if path in chain:
        names = " -> ".join(p.name for p in (*chain, path))
        raise UserError(f"{shown(chain[-1])}: circular 'extends': {names}; let one of them stand alone")
    if len(chain) == MAX_DEPTH:
        raise UserError(f"{shown(chain[0])}: extends more than {MAX_DEPTH} files, one by way of the other; extend a nearer one")
    own, own_places = read_yaml(path)
    distill = own.get("distill")
    if isinstance(distill, dict) and isinstance(distill.get("teacher"), str):
        distill["teacher"] = os.path.abspath(file_of(distill["teacher"], path.parent))  # relative to the file that names it
    parent = own.pop("extends", None)
    if parent is None:
        return own, own_places, (path.stem,)
    place = own_places[("extends",)]
    if not isinstance(parent, str):
        raise UserError(f"{place}: extends: expected another experiment's file name")
    target = file_of(parent, path.parent)
    if not os.path.isfile(target):
        raise UserError(f"{place}: extends: {cut(parent)}: no such file; name it relative to the file that extends it")
    values, places, names = _read_extended(target, (*chain, path))
    for inherited in OF_ONE:
        values.pop(inherited, None)
    _merge(values, own, places, own_places)
    return values, places, (*names, path.stem)


def _overlay(values: dict[str, Any], places: dict[Keys, Place], profile: str, names: tuple[str, ...]) -> None:
    """Lay a profile on an experiment. It scales what is there and never switches on what the experiment leaves off.

    Its sections apply in this order: `all`, then the model's name (`vit`), then `experiments.NAME` for each of `names`, which are the files
    that the experiment extends, the farthest first, and its own. A section has sizes and settings as an experiment has them, and
    `epochs_percent`: how many percent of the experiment's own epochs to train. `regularisation` is one factor for all probabilities
    and rates of regularisation.
    """
    over, over_places = read_yaml(PROFILE_DIR / f"{profile}.yaml")
    known = ("regularisation", "all", *MODELS, "experiments")
    for key in over:
        if key not in known:
            raise UserError(f"{over_places[(key,)]}: {key}: unknown key; a profile has {_quoted(known)}")
    model = values.get("model")
    kind = next((name for name in MODELS if isinstance(model, dict) and model.get("name") == name), None)
    percent = 100
    for section in (("all",), *([(kind,)] if kind else []), *(("experiments", name) for name in names)):
        part: Any = over
        for key in section:
            part = (part or {}).get(key)
        if part is None:
            continue
        percent = _positive(part, "epochs_percent", percent, over_places.get((*section, "epochs_percent")))
        # a value where a section is expected stays, so that the validation reports it
        part = {
            k: v
            for k, v in part.items()
            if k != "epochs_percent" and isinstance(values.get(k, {} if k in ("data", "train") else None), dict)
        }
        if "model" in part:
            defaults = MODELS[kind].model_fields if kind else {}
            part["model"] = {k: v for k, v in part["model"].items() if k not in defaults or model.get(k, defaults[k].default)}
        if "ema" in part and values["ema"].get("start") is None:  # a constant decay stays constant
            part["ema"] = {k: v for k, v in part["ema"].items() if k != "start"}
        n = len(section)
        _merge(values, part, places, {p[n:]: place for p, place in over_places.items() if p[:n] == section and p[n:]})
    train = values.get("train")
    if isinstance(train, dict) and type(train.get("epochs")) is int:
        train["epochs"] = max(min(1, train["epochs"]), round(train["epochs"] * percent / 100))
    _weaken(values, _positive(over, "regularisation", 1, over_places.get(("regularisation",))))


def _positive(section: dict[str, Any], key: str, default: float, place: Place | None) -> float:
    value = section.get(key, default)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise UserError(f"{place}: {key}: expected a number above 0, got {cut(json.dumps(value))}")
    return value


def _weaken(values: dict[str, Any], factor: float) -> None:
    """Multiply by `factor`: probabilities of mixing, erasing and TrivialAugment, rates of DropPath and dropout, label smoothing."""

    def scale(section: Any, key: str, default: float = 0.0) -> None:
        if isinstance(section, dict):
            value = section.get(key, default)
            if type(value) in (int, float) and value:  # anything else stays, so that the validation reports it
                section[key] = round(value * factor, 6)

    if factor == 1:
        return
    scale(values.get("model"), "dropout")
    scale(values.get("model"), "drop_path")
    phases = values.get("phases")
    for phase in phases if isinstance(phases, list) else ():
        if isinstance(phase, dict):
            scale(phase, "label_smoothing")
            scale(phase.get("augment"), "erase")
            scale(phase.get("augment"), "trivial_augment")
            scale(phase.get("mix"), "prob", Mix.model_fields["prob"].default)


def _check_kept(sets: tuple[str, ...]) -> None:
    """Raise UserError where one override discards an earlier one: a run's name has them sorted, and does not tell which came last."""
    keys = [tuple(assignment.partition("=")[0].strip().split(".")) for assignment in sets]
    for (i, earlier), (j, later) in itertools.combinations(enumerate(keys), 2):
        if earlier[: len(later)] == later:
            raise UserError(f"--set {cut(sets[j])}: sets anew what --set {cut(sets[i])} has set; leave one of them out")


def _set(values: dict[str, Any], places: dict[Keys, Place], assignment: str) -> None:
    key, eq, text = assignment.partition("=")
    keys = key.strip().split(".")
    place = Place(f"--set {cut(assignment)}")
    if not eq or not all(0 < len(k) <= MAX_KEY for k in keys) or len(keys) > MAX_DEPTH or UNPRINTABLE.search(key):
        raise UserError(f"{place}: expected KEY=VALUE, for example --set optim.lr=1e-3")
    if keys[0] == "extends":
        raise UserError(f"{place}: only a file can extend another; write one")
    value, inner = parse(text, lambda _: place)
    if keys[0] in OF_ONE:  # a run with them would be the experiment's own, under a variation's name
        raise UserError(f"{place}: {keys[0]} only describes the experiment; change its file, or write one that extends it")
    path = tuple(int(k) if re.fullmatch("[0-9]{1,4}", k) else k for k in keys)
    node: Any = values
    for i, (k, part) in enumerate(zip(keys, path, strict=True)):
        if isinstance(node, list):
            if not isinstance(part, int) or part >= len(node):
                raise UserError(f"{place}: {dotted(path[:i])} has {len(node)} entries, counted from 0; '{k}' is not one")
        elif not isinstance(node, dict):
            raise UserError(f"{place}: {dotted(path[:i])} is not a section, so it has no '{k}'")
        index = part if isinstance(node, list) else k
        if i + 1 < len(keys):
            if isinstance(node, dict) and node.get(k) is None:
                node[k] = {}
            node = node[index]
        else:
            node[index] = value
    places.update({path[: i + 1]: place for i in range(len(path))} | {(*path, *below): at for below, at in inner.items()})


# ------------------------------------------------------------------------------------------------------ resolving


@dataclass(frozen=True)
class Resolved:
    """One experiment under one profile, ready to run."""

    id: str  # the file's name without .yaml
    path: Path
    profile: str
    sets: tuple[str, ...]  # the --set overrides
    config: Experiment

    @property
    def variant(self) -> str:
        """Return the --set overrides, sorted and joined by a space; "" for the experiment as it stands."""
        return " ".join(sorted(s.replace(" ", "") for s in self.sets))

    @property
    def label(self) -> str:
        """Return the experiment's id, with its --set overrides in brackets where there are any."""
        return f"{self.id} [{self.variant}]" if self.variant else self.id

    def teacher(self, read: Callable[[Path, str, tuple[str, ...]], Resolved]) -> Resolved | None:
        """Return the experiment of the teacher, None where there is none. `read` is `load`, or does the same.

        Student and teacher have the same images, so that no teacher has learned what validates its student: overrides of `data` hold for
        both. Raises UserError as `load` does, and where the two files disagree.
        """
        if self.config.distill is None:
            return None
        shared = tuple(s for s in self.sets if re.split("[.=]", s)[0].strip() == "data")
        teacher = read(Path(self.config.distill.teacher), self.profile, shared)
        for key, ours in self.config.data:
            theirs = getattr(teacher.config.data, key)
            if ours != theirs:
                raise UserError(
                    f"{shown(self.path)}: data.{key}: expected {json.dumps(theirs)}, as in its teacher's file {shown(teacher.path)}, "
                    f"got {json.dumps(ours)}; a student and its teacher need the same images"
                )
        return teacher


def load(path: str | Path, profile: str = "full", sets: tuple[str, ...] = ()) -> Resolved:
    """Read, extend, scale, override and validate the experiment in the file `path`; return what comes out.

    `sets` are KEY=VALUE overrides. Raises UserError: `file:line: key: what is wrong and the remedy`.
    """
    path = Path(path)
    if profile not in PROFILES:
        raise UserError(f"profile '{profile}': expected one of {', '.join(PROFILES)}")
    values, places, names = _read_extended(path)
    if "claims" in values and "model" not in values:
        remedy = "name the experiments alone, or their folder, of which only claims.yaml is left out"
        raise UserError(f"{shown(path)}: expected an experiment, but this file declares claims; {remedy}")
    _overlay(values, places, profile, names)
    before = json.dumps(values)
    _check_kept(sets)
    for assignment in sets:
        _set(values, places, assignment)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", path.stem):
        raise UserError(f"{shown(path)}: rename the file: letters, digits, '.', '_' and '-' only (it names folders and runs)")
    try:
        config = Experiment.model_validate_json(json.dumps(values), strict=True)
    except ValidationError as e:
        found = e.errors()
        # pydantic also calls a list too short if one of its entries is wrong: report the entry alone
        found = [
            err for err in found if err["type"] != "too_short" or all(err is o or o["loc"][: len(err["loc"])] != err["loc"] for o in found)
        ]
        raise UserError("\n".join(_explain(err, values, places, shown(path)) for err in found[:10])) from None
    if config.distill is not None and not os.path.isabs(config.distill.teacher):  # from --set: relative to the experiment, as in its file
        teacher = str(file_of(config.distill.teacher, path.resolve().parent))
        config = config.model_copy(update={"distill": config.distill.model_copy(update={"teacher": teacher})})
    if config.distill is not None and not os.path.isfile(config.distill.teacher):
        place = places.get(("distill", "teacher"), shown(path))
        teacher = cut(shown(Path(config.distill.teacher)))
        near = "the experiment" if str(place).startswith("--set") else "the file that names it"
        raise UserError(f"{place}: distill.teacher: {teacher}: no such file; name it relative to {near}")
    if sets and _says(before, config):
        sets = ()  # the experiment has these values anyway: it is no variation
    return Resolved(path.stem, path.resolve(), profile, sets, config)


def _says(values: str, config: Experiment) -> bool:
    """Return whether the JSON `values` are an experiment, and this one."""
    try:
        return Experiment.model_validate_json(values, strict=True) == config
    except ValidationError:
        return False


def _explain(err: Any, values: Any, places: dict[Keys, Place], file: str) -> str:
    """Return one pydantic error as `file:line: key: what was expected`."""
    path: list[str | int] = []
    node = values
    loc = err["loc"]
    for i, part in enumerate(loc):
        here = (isinstance(node, dict) and part in node) or (isinstance(node, list) and isinstance(part, int) and part < len(node))
        if here:
            path.append(part)
            node = node[part]
        elif i == len(loc) - 1 and err["type"] == "missing":
            path.append(part)
        # else: the tag of a union ('vit', 'adamw'), which is not in the YAML
    key = tuple(path)
    place = next((places[key[:n]] for n in range(len(key), 0, -1) if key[:n] in places), Place(file))
    if err["type"] == "extra_forbidden":
        known = _known_keys(loc)
        close = settings_called(str(key[0])) if len(key) == 1 else []
        close = close or difflib.get_close_matches(str(key[-1]), known, n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"expected one of: {', '.join(known)}"
        return f"{place}: {dotted(key)}: unknown key, {hint}"
    if err["type"] == "missing":
        return f"{place}: {dotted(key)}: missing; add it"
    if err["type"] == "union_tag_not_found":
        return f"{place}: {dotted(key)}.name: missing; expected one of {_quoted(MODELS if key == ('model',) else OPTIMS)}"
    if err["type"] == "union_tag_invalid":
        return f"{place}: {dotted((*key, 'name'))}: '{err['ctx']['tag']}' is not one of {err['ctx']['expected_tags']}"
    if err["type"] in ("too_short", "too_long"):
        bound = f"at least {err['ctx']['min_length']}" if err["type"] == "too_short" else f"at most {err['ctx']['max_length']}"
        return f"{place}: {dotted(key)}: expected a length of {bound}, got {err['ctx']['actual_length']}"
    message = err["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    message = {"an object": "a section ('key: value' lines)", "a valid array": "a list"}.get(message, message)
    if not key:  # of the experiment as a whole: the message opens with the section that is at fault
        place = places.get((message.partition(":")[0],), place)
    got = "" if isinstance(err["input"], dict | list) else f", got {cut(json.dumps(err['input']))}"
    expected = "expected " if err["msg"].startswith("Input should be ") else ""
    return f"{place}: {dotted(key) + ': ' if key else ''}{expected}{message}{got}"


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _known_keys(loc: tuple[Any, ...]) -> list[str]:
    """Return the keys that are allowed in place of the unknown one, the last of `loc`. `loc` may contain union tags."""
    kinds: dict[str, type[Schema]] = {
        "data": Data, "claim": Claim, "ema_gain": ClaimedRange, "per_class": ClaimedClass, "phases": Phase, "augment": Augment,
        "color_jitter": ColorJitter, "mix": Mix, "warmup": Length, "train": Train, "ema": EMA, "distill": Distill, **MODELS, **OPTIMS,
    }  # fmt: skip
    for part in reversed(loc[:-1]):
        if part in kinds:
            return list(kinds[part].model_fields)
    return ["extends", *Experiment.model_fields]
