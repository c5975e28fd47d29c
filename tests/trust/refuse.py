"""Opens hostile files, each in a process of its own, and prints what became of each as a line of JSON.

    python tests/trust/refuse.py GOOD_MODEL FOLDER [NAME …]

Everything that could be needed is imported first; then each case is a fork, so that its memory above that baseline and
its time are its own. In each, an audit hook notes connections, processes and unpickled names.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from hostile import CASES, USES, Case

FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "os.system", "subprocess.Popen", "pickle.find_class", "os.exec")
WATCHDOG = 120


def main(model: Path, folder: Path, names: list[str]) -> None:
    warm_up(model, folder)
    for number, case in enumerate(CASES):
        if names and case.name not in names:
            continue
        place = folder / str(number) / case.use
        place.parent.mkdir(parents=True)
        if case.use in ("model", "adapter"):
            shutil.copytree(model, place)
        else:
            place.mkdir()
        case.make(place)
        print(json.dumps({"name": case.name, "use": case.use, **in_a_fork(case, place)}), flush=True)
        shutil.rmtree(place.parent)


def warm_up(model: Path, folder: Path) -> None:
    """Imports all that the cases use; a good model is opened, so that nothing of it counts."""
    import torch

    import strop.cli.main
    import strop.training.session  # noqa: F401
    from strop.run.report import write_report

    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    USES["model"](model)
    good = folder / "good"
    good.mkdir()
    (good / "hostile.jsonl").write_text('{"question": "q", "answer": "a"}\n')
    USES["data"](good)
    (good / "events.jsonl").write_text("")
    write_report(good)


def in_a_fork(case: Case, place: Path) -> dict[str, Any]:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, json.dumps(opened(case, place)).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    _, status, used = os.wait4(child, 0)
    if not answer:
        return {"ended": f"died: {os.waitstatus_to_exitcode(status)}", "seconds": used.ru_utime, "megabytes": 0}
    result: dict[str, Any] = json.loads(answer)
    return result


def opened(case: Case, place: Path) -> dict[str, Any]:
    from strop.errors import StropError

    forbidden: list[str] = []
    sys.addaudithook(lambda event, args: forbidden.append(event) if event.startswith(FORBIDDEN) else None)
    resource.setrlimit(resource.RLIMIT_CPU, (WATCHDOG, WATCHDOG))
    before = resident()
    began = time.process_time()
    try:
        USES[case.use](place)
        ended = "opened"
    except StropError as error:
        ended = "refused" if error.what and error.exit_code in (2, 3) else f"no cure: {error}"
        said = str(error)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is told
        ended = f"{type(error).__name__}: {str(error)[:200]}"
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "ended": ended,
        "said": said[:300] if ended == "refused" else "",
        "seconds": round(seconds, 3),
        "megabytes": round((peak - before) / 1e6, 1),
        "forbidden": forbidden,
    }


def resident() -> int:
    """Bytes in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
