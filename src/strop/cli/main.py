"""The command line's entry: build, parse, run, and end every failure in words and an exit code.

    0  done                                  4  does not fit the memory budget
    1  a fault of ours                       5  stopped; strop resume continues
    2  wrong command line or recipe        130  interrupted where there was nothing to save
    3  wrong data or model                 141  the reader of the output went away

A failure of the user's is told in four parts, without a traceback; with --json, as one JSON object on standard output.
Any other exception is a fault of Strop's and says so; STROP_TRACEBACK=1 shows where.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Sequence
from typing import Final

from strop import interrupts
from strop.errors import StropError, UsageError

INTERRUPTED: Final = interrupts.INTERRUPTED
BROKEN_PIPE: Final = 141

_OF_THE_PATH: Final = (errno.ENAMETOOLONG, errno.EACCES, errno.EPERM, errno.EROFS)
_SHOWN_PATH: Final = 200


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line.

    Args:
        argv: the arguments (default: those of the process).

    Returns:
        The exit code.
    """
    tokens = list(sys.argv[1:] if argv is None else argv)
    # Read by OpenMP when torch is first imported. Threads that spin while they wait steal time from whatever else runs:
    # with one of two cores busy, loading a model took 16 s spinning and 3 s waiting passively.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Read by cuBLAS at its first product: with a workspace of fixed size its sums have a fixed order.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    as_json = _asks_for_json(tokens)
    try:
        with interrupts.at_work():
            code = _run(tokens)
        sys.stdout.flush()
        return code
    except StropError as error:
        return _report(error, error.exit_code, as_json)
    except KeyboardInterrupt:
        return _report(StropError("interrupted", do="run it again"), INTERRUPTED, as_json)
    except SystemExit as leaving:  # what rich makes of a broken pipe
        if isinstance(leaving.__context__, BrokenPipeError):
            return BROKEN_PIPE
        raise
    except BrokenPipeError:
        # The interpreter flushes standard output once more as it leaves; without a place to go it would complain.
        with contextlib.suppress(OSError):  # a standard output without a file behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _OF_THE_PATH or error.filename is None:
            return _fault(error, as_json)
        return _report(_unusable(error), UsageError.exit_code, as_json)
    except Exception as error:  # noqa: BLE001 - the outermost frame: whatever is not ours to expect is our fault
        return _fault(error, as_json)


def _run(tokens: list[str]) -> int:
    from cyclopts import CycloptsError

    from strop.cli.app import build_app
    from strop.cli.overrides import split_overrides

    rest, overrides = split_overrides(tokens)
    app = build_app(rest)
    try:
        command, bound, ignored = app.parse_args(rest, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        from strop.cli.faults import usage_error

        raise usage_error(error) from None
    if "overrides" in ignored:
        bound.arguments["overrides"] = overrides
    elif overrides and not _asks_for_help(rest):
        flags = " ".join(f"--{path}" for path, _ in overrides)
        raise UsageError(
            f"strop {rest[0] if rest else ''} takes no recipe".replace("  ", " "),
            expected="flags without a dot",
            found=flags,
            do="a recipe's fields are given to strop train; a run keeps the recipe that it was started with",
        )
    result = command(*bound.args, **bound.kwargs)
    return result if isinstance(result, int) else 0


def _asks_for_json(tokens: Sequence[str]) -> bool:
    before_end = tokens[: tokens.index("--")] if "--" in tokens else tokens
    return "--json" in before_end


def _asks_for_help(tokens: Sequence[str]) -> bool:
    return any(token in ("--help", "-h", "--version") for token in tokens)


def _unusable(error: OSError) -> UsageError:
    """What the system says of a path that the user named, or that a file of theirs names."""
    path = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else str(error.filename)
    return UsageError(
        f"the path {path if len(path) <= _SHOWN_PATH else path[:_SHOWN_PATH] + '…'} cannot be used",
        expected="one that may be read and written here",
        found=error.strerror or str(error),
        do="name another one, or put its permissions right",
    )


def _fault(error: Exception, as_json: bool) -> int:
    """Reports a fault of ours, from inside the clause that caught it."""
    if os.environ.get("STROP_TRACEBACK", "") not in ("", "0"):
        import traceback

        traceback.print_exc()
    line = " ".join(str(error).split())[:300]
    said = f"{type(error).__name__}: {line}" if line else type(error).__name__
    do = "this is a fault in Strop; run again with STROP_TRACEBACK=1 to see where"
    return _report(StropError(said, do=do), StropError.exit_code, as_json)


def _report(error: StropError, code: int, as_json: bool) -> int:
    from strop.cli.console import print_error, print_json

    if as_json:
        print_json({**error.as_dict(), "exit": code})
    else:
        print_error(error)
    return code


if __name__ == "__main__":
    sys.exit(main())
