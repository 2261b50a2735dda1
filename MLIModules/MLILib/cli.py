"""The command `mli`: every task of :mod:`MLILib.tasks` from a shell.

Flags are made from the requests' settings. Exit codes: 0 done, 1 a bug or a failed check, 2 bad input, 3 out of memory,
4 a missing package, 130 cancelled.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TextIO

from . import __version__, tasks
from .channel import claimed_stdout
from .errors import BadInput, Cancelled, MLIError
from .progress import Progress, TerminalBar
from .settings import Request, Setting


class _Parser(argparse.ArgumentParser):
    """Argparse whose complaints are :class:`BadInput`, so that ``--json`` holds for them too.

    A value such as -12.5,30,8 is a point and no flag.
    """

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._negative_number_matcher = re.compile(r"^-\.?\d[\d.,;eE+-]*$")

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{self.prog}: {message}.", "", f"Run `{self.prog} --help` to see what it takes.")


def build_parser() -> argparse.ArgumentParser:
    """The parser of `mli`, made from the tasks' requests."""
    parser = _Parser(prog="mli", description="Machine Learning for Imaging: segment, train, evaluate.")
    parser.add_argument("--version", action="version", version=f"mli {__version__}")
    groups: dict[tuple[str, ...], Any] = {(): parser.add_subparsers(metavar="TASK", required=True)}
    for cls in tasks.REQUESTS:
        *parents, last = cls.words
        path: tuple[str, ...] = ()
        for word in parents:
            if (*path, word) not in groups:
                child = groups[path].add_parser(word, help=_group_help(word))
                groups[(*path, word)] = child.add_subparsers(metavar="WHAT", required=True)
            path = (*path, word)
        sub = groups[path].add_parser(last, help=cls.summary, description=cls.__doc__)
        headings: dict[str, Any] = {"": sub}
        for setting in cls.settings():
            if setting.group not in headings:
                headings[setting.group] = sub.add_argument_group(setting.group)
            _add(headings[setting.group], setting)
        sub.add_argument("--json", action="store_true", help="One JSON result on standard output, nothing else there.")
        sub.set_defaults(request_class=cls)
    return parser


def _group_help(word: str) -> str:
    return ", ".join(c.words[-1] for c in tasks.REQUESTS if len(c.words) > 1 and c.words[0] == word)


def _add(parser: argparse._ActionsContainer, s: Setting) -> None:
    text = s.help
    if not s.required and s.type is not bool and s.default not in ("", ()):
        text += f" Default: {s.default}."
    if s.range_text():
        text += f" ({s.range_text()})"
    keywords: dict[str, Any] = {"help": text.replace("%", "%%")}
    if s.positional:
        keywords["metavar"] = s.metavar or s.name.upper()
        keywords["type"] = s.type
        if s.many:
            keywords["nargs"] = "+" if s.required else "*"
        elif not s.required:
            keywords["nargs"] = "?"
            keywords["default"] = s.default
        parser.add_argument(s.name, **keywords)
        return
    names = [f"--{s.flag}"] + ([f"-{s.short}"] if s.short else [])
    if s.type is bool and not s.many:
        parser.add_argument(*names, dest=s.name, action=argparse.BooleanOptionalAction, default=s.default, **keywords)
        return
    keywords |= {"dest": s.name, "type": s.type, "required": s.required}
    if not s.required:
        keywords["default"] = s.default
    if s.choices:
        keywords["choices"] = s.choices
    else:
        keywords["metavar"] = s.metavar or s.name.upper()
    if s.many:
        keywords["nargs"] = "+"
    parser.add_argument(*names, **keywords)


def parse(arguments: Sequence[str]) -> tuple[Request, bool]:
    """The request that a command line asks for, and whether JSON is wanted.

    Raises:
        BadInput: unknown words or flags, missing or wrong values.
    """
    values = vars(build_parser().parse_args(list(arguments)))
    cls: type[Request] = values.pop("request_class")
    as_json: bool = values.pop("json")
    return cls.from_json({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}), as_json


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of `mli`; the process's exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    as_json = "--json" in words
    try:
        request, as_json = parse(words)
    except MLIError as error:
        _say(error, as_json, sys.stdout)
        return error.exit_code
    stop = _Stop()
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as it is for a job in a shell's background
        signal.signal(signal.SIGINT, stop)
    with claimed_stdout() as out, stop.unheard():
        return _run(request, as_json, out, stop)


def _run(request: Request, as_json: bool, out: TextIO, stop: _Stop) -> int:
    bar = TerminalBar(sys.stderr)
    try:
        result = tasks.run(request, Progress(bar, cancelled=lambda: stop.asked))
    except KeyboardInterrupt:
        bar.close()
        _say(Cancelled(), as_json, out)
        return Cancelled.exit_code
    except MLIError as error:
        bar.close()
        _say(error, as_json, out)
        return error.exit_code
    except Exception as error:  # a bug: the reader gets a sentence, the log the traceback
        bar.close()
        log = _log(request)
        _say(
            MLIError(
                f"Something unexpected happened: {type(error).__name__}: {error}.",
                "This is a bug in mli.",
                f"Please report it with the file {log}.",
            ),
            as_json,
            out,
        )
        return 1
    bar.close()
    text = result.pop("text", "")
    if as_json:
        json.dump(result, out, allow_nan=False)
        out.write("\n")
    elif text:
        out.write(f"{str(text).rstrip()}\n")
    return 0 if result.get("ok", True) else 1


def _say(error: MLIError, as_json: bool, out: TextIO) -> None:
    sys.stderr.write(f"mli: {error}\n")
    if as_json:
        json.dump({"error": error.to_json()}, out)
        out.write("\n")
        out.flush()


def _log(request: Request) -> Path:
    handle, name = tempfile.mkstemp(prefix="mli-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(f"{request.command()}\n\n{traceback.format_exc()}")
    return Path(name)


class _Stop:
    """SIGTERM ends a job as Ctrl+C does, so that half-written files are removed.

    Python drops an exception that a signal raises in a destructor or a callback of a library, with a traceback on
    stderr; the job's next report then finds that it was asked to stop, and the traceback is of no use to the user.
    """

    def __init__(self) -> None:
        self.asked = False

    def __call__(self, number: int, frame: FrameType | None) -> NoReturn:
        self.asked = True
        raise KeyboardInterrupt

    @contextlib.contextmanager
    def unheard(self) -> Iterator[None]:
        """While the block runs such a traceback is not printed."""
        before = sys.unraisablehook

        def hook(dropped: sys.UnraisableHookArgs) -> None:
            if not issubclass(dropped.exc_type, KeyboardInterrupt):
                before(dropped)

        sys.unraisablehook = hook
        try:
            yield
        finally:
            sys.unraisablehook = before


if __name__ == "__main__":
    sys.exit(main())
