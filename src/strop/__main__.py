"""The command ``strop``, and ``python -m strop``: Ctrl-C is taken first, then the rest is imported."""

import sys


def main() -> int:
    """Run the process's command line, and return its exit code."""
    from strop import interrupts

    tokens = sys.argv[1:]
    interrupts.install("--json" in (tokens[: tokens.index("--")] if "--" in tokens else tokens))

    from strop.cli.main import main as run

    code = run()
    interrupts.ignore()
    return code


if __name__ == "__main__":
    sys.exit(main())
