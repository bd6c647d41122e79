"""The command line: each verb is a settings dataclass and a function `run` in `spectro.verbs`.

Exit codes: 0 done; 1 done, but some clips failed; 2 nothing could be done, with one line that says what is wrong (or
with a traceback, which is a bug in spectro).
"""

import errno
import importlib
import json
import logging
import os
import sys
import traceback
from collections.abc import Collection, Iterator
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from spectro import __version__
from spectro.addresses import Address, Place, is_address, place
from spectro.errors import SpectroError
from spectro.files import MESSAGE, printable

VERBS = {
    "download": ("DownloadSettings", "fetch the freely downloadable corpora"),
    "weights": ("WeightsSettings", "list and fetch starting weights trained on audio"),
    "render": ("RenderSettings", "render clips, and augmented copies of them, as pictures"),
    "finetune": ("FinetuneSettings", "fine-tune a network, with whole speakers held out"),
    "evaluate": ("EvaluateSettings", "measure a checkpoint on speakers it was not trained on"),
    "predict": ("PredictSettings", "classify recordings, folders and lists, one row per recording"),
    "timeline": ("TimelineSettings", "follow emotion through long recordings"),
    "listen": ("ListenSettings", "follow a microphone or a stream"),
    "adapt": ("AdaptSettings", "adapt a checkpoint to your recordings, without labels"),
    "explain": ("ExplainSettings", "show which parts of a picture led to the prediction"),
    "export": ("ExportSettings", "write a checkpoint as ONNX and OpenVINO"),
    "serve": ("ServeSettings", "run the HTTP service and the web page"),
    "features": ("FeaturesSettings", "extract features of clips, hand-crafted or learnt"),
    "classical": ("ClassicalSettings", "train a scikit-learn classifier on features"),
    "speech": ("SpeechSettings", "fine-tune wav2vec 2.0, WavLM, HuBERT or AST"),
    "study": ("StudySettings", "run and compare many systems, folds and seeds"),
}
"""Settings class and purpose of each verb; its module in `spectro.verbs` is imported when it is used."""

RESUMED = ("download", "weights", "render", "finetune", "predict", "features", "speech", "study")
"""The verbs that resume a stopped run."""

POSITIONAL = {
    **dict.fromkeys(
        ("predict", "timeline", "adapt", "explain"), ("inputs", "+", "recordings, folders, or lists (.txt, .csv)")
    ),
    "weights": ("names", "*", "names of starting weights; omit to list them"),
}
"""The positional argument of a verb: its settings field, how many values it takes, and its help."""

TRAINING = ("albumentations", "librosa", "psutil", "pytorch_lightning", "sklearn", "torchmetrics")
"""Packages of the extra `train`, which prediction does not need."""

MODE = "spectro"
"""Parser mode for options and configurations: YAML in which names stay as written."""
NAMES = "valid_speakers"
"""The field whose values are names that can look like numbers, dates or booleans, and stay as written."""
SEVERAL = {"finetune": ("--index", "--sounds", "--unheard_sounds", "--teachers")}
"""The options of a verb that take several values, one after the other."""


def main(arguments: list[str] | None = None) -> int:
    """Run `spectro VERB ...`; returns the exit code.

    Args:
        arguments: the verb and its options; None takes the process's own.
    """
    _print_anything()
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] == "--version":
        print(f"spectro {__version__}")
        return 0
    if not given or given[0] not in VERBS:
        asked = bool(given) and given[0] in ("-h", "--help")
        verbs = "\n".join(f"  {verb:10} {purpose}" for verb, (_settings, purpose) in VERBS.items())
        print(
            f"usage: spectro VERB ...\n\n{verbs}\n\n`spectro VERB --help` explains each verb.",
            file=sys.stdout if asked else sys.stderr,
        )
        return 0 if asked else 2
    return run_verb(given[0], given[1:])


def run_verb(verb: str, arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code.

    Args:
        verb: a name in `VERBS`.
        arguments: its options; None takes the process's own.
    """
    _print_anything()
    _log_to_console()
    class_name, _purpose = VERBS[verb]
    try:
        module = importlib.import_module(f"spectro.verbs.{verb}")
        settings = parse(verb, getattr(module, class_name), sys.argv[1:] if arguments is None else arguments)
        return int(module.run(settings))
    except SpectroError as error:
        print(f"spectro {verb}: {printable(str(error), MESSAGE)}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in TRAINING:
            print(f"spectro {verb}: needs the package {package}: install spectro[train]", file=sys.stderr)
        else:
            traceback.print_exc()
        return 2
    except BrokenPipeError:
        return _give_up_output()
    except OSError as error:
        place = f"{printable(os.fsdecode(error.filename))}: " if error.filename else ""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        again = "; make room, and run the same command again to continue" if full and verb in RESUMED else ""
        print(f"spectro {verb}: {place}{printable(error.strerror or str(error))}{again}", file=sys.stderr)
        return 2
    except Exception:  # noqa: BLE001  Python would exit with 1, which means that only some clips failed
        traceback.print_exc()
        return 2
    except KeyboardInterrupt:
        again = "; run the same command again to continue" if verb in RESUMED else ""
        print(f"spectro {verb}: interrupted{again}", file=sys.stderr)
        return 130


def parse(verb: str, settings_class: type[Any], arguments: list[str]) -> Any:
    """Read a verb's settings from options and from `--config FILE.yaml`.

    Raises:
        SpectroError: a value contradicts another.
        SystemExit: an option is unknown or its value is invalid (2), or help was requested (0).
    """
    import docstring_parser
    import yaml
    from jsonargparse import ArgumentParser, get_loader, set_loader
    from jsonargparse.typing import register_type

    register_type(Address, str, _address, deserializer_exceptions=ValueError, fail_already_registered=False)
    read = get_loader("yaml")
    set_loader(MODE, lambda text: read(_quote_names(text)), (yaml.YAMLError,))
    summary = (settings_class.__doc__ or "").partition("\n    Args:")[0]
    parser = ArgumentParser(prog=f"spectro {verb}", description=" ".join(summary.split()), parser_mode=MODE)
    parser.add_argument("--config", action="config")
    positional, count, what = POSITIONAL.get(verb, ("", "", ""))
    if positional:
        without: dict[str, Any] = {"default": []} if count == "*" else {}
        parser.add_argument(positional, nargs=count, type=str, help=what, **without)
    reserved = [one for one in fields(settings_class) if one.name.endswith("_")]
    parser.add_class_arguments(settings_class, skip={positional, *(one.name for one in reserved)} - {""})
    hints, documented = get_type_hints(settings_class), docstring_parser.parse(settings_class.__doc__ or "").params
    for one in reserved:  # Python keywords, such as from
        text = " ".join(next(line.description or "" for line in documented if line.arg_name == one.name).split())
        parser.add_argument(f"--{one.name[:-1]}", type=hints[one.name], default=one.default, help=text)
    arguments = _gather(arguments, SEVERAL.get(verb, ()))
    arguments = _take_spec_file(parser, _keep_names(arguments), {one.name for one in fields(settings_class)})
    try:
        chosen = parser.instantiate(parser.parse_args(arguments))
    except ValueError as error:
        raise _root_cause(error) from error
    given = {one.name: chosen[one.name.rstrip("_")] for one in fields(settings_class)}
    return settings_class(**{name: value if name == NAMES else _at_home(value) for name, value in given.items()})


def _address(text: str) -> Place:
    """Return a text as an address; raises ValueError for a path."""
    if not is_address(text):
        raise ValueError(f"{text} is not an address")
    return place(text)


def _at_home(value: Any) -> Any:
    """Return a setting with a leading ~ in its paths expanded to the user's home, as a shell does if unquoted."""
    if isinstance(value, Path) and value.parts[:1] == ("~",):
        return Path.home().joinpath(*value.parts[1:])
    if isinstance(value, str) and (value == "~" or value.startswith("~/")):
        return str(Path.home() / value[2:])
    if isinstance(value, list | tuple):
        return type(value)(_at_home(one) for one in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{one.name: _at_home(getattr(value, one.name)) for one in fields(value)})
    return value


class _Console(logging.Handler):
    """Shows the messages of spectro's logger on the console."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a message to standard error, wherever that leads at the time."""
        print(self.format(record), file=sys.stderr)


def _log_to_console() -> None:
    log = logging.getLogger("spectro")
    if not any(isinstance(one, _Console) for one in log.handlers):
        log.addHandler(_Console())
        log.setLevel(logging.INFO)


def _print_anything() -> None:
    """Make the console show characters that it lacks as \\xNN or \\uNNNN instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _give_up_output() -> int:
    """Discard further output when its reader has gone (`| head`); returns exit code 2."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 2


def _keep_names(arguments: list[str]) -> list[str]:
    """Turn the value of `--valid_speakers` into a list of names as written; `3,6` is a list, too."""
    kept: list[str] = []
    for argument in arguments:
        option, given, value = argument.partition("=")
        if option == f"--{NAMES}" and given:
            kept.append(f"{option}={_list_of_names(value)}")
        else:
            kept.append(_list_of_names(argument) if kept and kept[-1] == f"--{NAMES}" else argument)
    return kept


def _gather(arguments: list[str], several: Collection[str]) -> list[str]:
    """Turn `--index A B` into a single value, a list, for options that take several values."""
    gathered: list[str] = []
    rest = list(arguments)
    while rest:
        gathered.append(rest.pop(0))
        if gathered[-1] in several:
            count = next((place for place, one in enumerate(rest) if one.startswith("--")), len(rest))
            values, rest = rest[:count], rest[count:]
            gathered += [json.dumps(values)] if values and not values[0].startswith("[") else values
    return gathered


def _list_of_names(text: str) -> str:
    if text.lstrip().startswith("["):
        return _quote_names(text, inside=True)
    return json.dumps([name.strip() for name in text.split(",")])


def _quote_names(text: str, inside: bool = False) -> str:
    """Quote names that YAML would read as something else: 010 as 8, 3.10 as 3.1, and no as false.

    Numbers in canonical form stay numbers.

    Args:
        text: YAML; anything else is returned unchanged.
        inside: whether `text` is itself the value of a field of names, rather than YAML with such fields.
    """
    import yaml

    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return text  # the parser will report what is wrong
    for node in reversed(list(_names(root, inside))):
        start, end = node.start_mark.index, node.end_mark.index
        text = text[:start] + json.dumps(node.value) + text[end:]
    return text


def _names(node: Any, inside: bool) -> Iterator[Any]:
    """Yield the plain scalars of a YAML tree that are names and not plain numbers, in text order."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield from _names(value, inside or key.value == NAMES)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _names(value, inside)
    elif inside and isinstance(node, yaml.ScalarNode) and node.style is None:
        plain = node.value.isdecimal() and str(int(node.value)) == node.value
        if not plain and node.value:
            yield node


def _take_spec_file(parser: Any, arguments: list[str], takes: set[str]) -> list[str]:
    """Make `--spec FILE` the default of all `--spec.FIELD`.

    FILE may also be a checkpoint's spectro.json, or the name of a spec that starting weights take.
    """
    from spectro.model.pretrained import SPECS
    from spectro.picture.spec import SpectrogramSpec

    kept: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        name, _, value = argument.partition("=")
        if name != "--spec" or "spec" not in takes:
            kept.append(argument)
            continue
        named = value or next(rest, "")
        spec = SPECS[named] if named in SPECS else SpectrogramSpec.from_file(_at_home(Path(named)))
        parser.set_defaults({f"spec.{key}": value for key, value in spec.to_dict().items()})
    return kept


def _root_cause(error: BaseException) -> Exception:
    """Return the SpectroError that made the parser fail, or the parser's own error as a SpectroError."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, SpectroError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return SpectroError(str(error))
