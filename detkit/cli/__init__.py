"""The command line. ``main`` is the one place where errors become messages and exit codes.

0 done; 1 a bug; 2 wrong usage, or no input could be used; 3 some inputs failed; 4 the run stopped; 130 Ctrl-C;
143 SIGTERM. A closed pipe (``| head``) ends quietly.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from detkit.errors import DetkitError, InputNote, small_image_error
from detkit.registry import UntrustedPart, outside_line

_inputs: Counter[str] = Counter()  # what was put right or assumed of how many files, counted where warnings are shown


given: list[str] = []  # the words of the command line, for processes that repeat it


class Terminated(BaseException):
    """SIGTERM, raised where Ctrl-C would be; no KeyboardInterrupt, which typer turns into a bare exit code."""


def _on_terminate(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after ``detkit``; None: those of the process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    # Told here and not to every verb: --debug shows tracebacks, wherever it stands on the line.
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    # Waiting OpenMP threads spin by default, which starves loading processes; not at all makes each wait dear.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    signal.signal(signal.SIGTERM, _on_terminate)
    _inputs.clear()
    given[:] = words
    try:
        with warnings.catch_warnings():
            if not debug:
                warnings.simplefilter("always", InputNote)
                warnings.showwarning = _note  # type: ignore[assignment]
            code = _run(words)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _closed_pipe()
    except DetkitError as error:
        if debug:
            raise
        if isinstance(error, UntrustedPart):
            error.do = f"if you trust it: {shlex.join(['detkit', *_with_plugin(words, error.module)])}"
        _say(error)
        return error.code
    except (KeyboardInterrupt, Terminated) as stop:
        _say(DetkitError("stopped", do=str(stop)))
        return 143 if isinstance(stop, Terminated) else 130
    except Exception as error:
        if debug:
            raise
        return _unforeseen(error)
    finally:
        for text, count in _inputs.items():
            if count > 1:
                print(f"detkit: {count} files: {text}", file=sys.stderr)


def _run(words: list[str]) -> int:
    from detkit.cli.app import app_of

    try:
        code = app_of(words)(words, standalone_mode=False, prog_name="detkit")
    except Exception as error:
        # Typer's own usage errors: they know how to show themselves, whichever click they come from.
        if hasattr(error, "show") and hasattr(error, "exit_code"):
            error.show()
            if words[:1] == ["train"] and hasattr(error, "option_name"):
                print("Keys of a config have no dashes: train.epochs=20, say", file=sys.stderr)
            return int(error.exit_code)
        if type(error).__name__ == "Abort":
            raise (error.__cause__ or KeyboardInterrupt()) from None
        raise
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):
            return _closed_pipe()
        raise
    if code == 130:  # typer's answer to Ctrl-C
        raise KeyboardInterrupt
    return code if isinstance(code, int) else 0


def _with_plugin(words: list[str], module: str) -> list[str]:
    """The same command line with one more ``--plugin``, before a ``--`` that ends the options."""
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end], "--plugin", module, *words[end:]]


def _closed_pipe() -> int:
    # Python flushes stdout once more at exit; give it somewhere to go.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _say(error: DetkitError) -> None:
    if "RANK" in os.environ:  # torchrun ends the other processes of a run while one tells why
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    number = f" [{error.number}]" if error.number else ""
    lines = [error.what + number, *(line for line in (error.where, error.do) if line)]
    print("\n".join([f"detkit: {lines[0]}", *(f"  {line}" for line in lines[1:])]), file=sys.stderr)


def _note(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: object) -> None:
    """A warning of detkit's as a note, without the code's place; those of others as Python shows them."""
    if isinstance(message, InputNote):
        _inputs[str(message)] += 1
        if _inputs[str(message)] > 1:
            return
        message = f"{message.where}: {message}"
    text = f"detkit: {message}\n"
    if not filename.startswith(str(Path(__file__).parents[1])):
        text = warnings.formatwarning(message, category, filename, lineno)
    sys.stderr.write(text)


def _unforeseen(error: Exception) -> int:
    text = str(error).splitlines()[0] if str(error) else ""
    if isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text:
        do = "lower --size, --batch or train.batch, or close other programs"
        _say(DetkitError("not enough memory", text, do))
        return 4
    if (too_small := small_image_error(error)) is not None:
        _say(too_small)
        return 2
    if isinstance(error, OSError):
        where = str(error.filename or "")
        _say(DetkitError(error.strerror or text, where, "check the path, its permissions and the free space"))
        return 4 if error.errno in (28, 27) else 2
    if isinstance(error, ModuleNotFoundError) and error.name in ("torch", "torchvision"):
        _say(DetkitError(f"{error.name} is not installed", do="pip install torch torchvision, or name an .onnx file"))
        return 2
    line = outside_line(error)
    if line is not None:
        what = f"error in {line.filename}, line {line.lineno}, in {line.name}: {type(error).__name__}: {text}"
        _say(DetkitError(what, line.line or "", "mend that part (--debug shows all)"))
        return 2
    what = f"a bug in detkit: {type(error).__name__}: {text}"
    _say(DetkitError(what, do="run the same command with --debug and report what it prints"))
    return 1
