"""Strop beside `datasets.map` as its peers call it: from a file of rows to tokens, and what of them is learned.

    python benchmarks/data.py [--rows 30000] [--rounds 3] [--peers-venv FOLDER] [--json]

    strop            `prepare`, which reads, encodes, checks, splits and keeps; and once more, from what it kept
    strop, 1         the same in one process
    trl              TRL's own preparation (`SFTTrainer._prepare_dataset`), as it comes, and with num_proc=2
    llama-factory    the same two of what LLaMA-Factory does (`peers/prepare_data.py` says how)

Two data sets: GSM8K's questions and answers, each row numbered in its question so that none is like another, and
conversations made of two or three of them. Each side runs in a process of its own with an empty cache ("cold"), and
again with what it left ("warm"); Python, libraries and tokenizer are loaded before the clock starts, on all sides
alike. The sides run in turn, round after round, and medians stand in the table; ratios are made within a round. Peers
read the file with `load_dataset`, which is a part of their time, and is also told apart.

That all do the same work shows in the tokens: they must agree within 3 % (Strop refuses what is too long, TRL and
LLaMA-Factory cut it; TRL's masks differ by line breaks), or the script says so and ends with exit code 1.

Also written: how full packs of 4,096 tokens are on GSM8K and on lengths like MATH's, the whole data set packed at once,
and steps of 16, 64 and 256 samples; and the seconds that packing takes.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

from cpu_peers import GSM8K, HERE, machine, peers_python

RESULTS = HERE / "results" / "data.json"
SIDES = {
    "strop": ("strop", "all"),
    "strop, 1": ("strop", "0"),
    "trl": ("trl", "none"),
    "trl, 2": ("trl", "2"),
    "llama-factory": ("llama-factory", "none"),
    "llama-factory, 2": ("llama-factory", "2"),
}
MAX_TOKENS = 1024
PACK_TOKENS = 4096
TOLERANCE = 0.03


def write_rows(folder: Path, count: int, gsm8k: Path) -> dict[str, Path]:
    """The data sets: GSM8K where it lies beside, else the demo's problems, as often as it takes."""
    if gsm8k.is_file():
        rows = [json.loads(line) for line in gsm8k.read_text(encoding="utf-8").splitlines()]
    else:
        from strop.data.problems import write_problems

        files = sorted((write_problems(folder / "problems", learn=2500, held_out=0) / "train").rglob("*.json"))
        read = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        rows = [{"question": row["problem"], "answer": row["solution"]} for row in read]
    chosen = [
        {"question": f"{number}. {row['question']}", "answer": row["answer"]}
        for number, row in zip(range(count), (rows[index % len(rows)] for index in range(count)), strict=True)
    ]
    files = {"gsm8k": folder / "gsm8k.jsonl", "turns": folder / "turns.jsonl"}
    files["gsm8k"].write_text("".join(json.dumps(row) + "\n" for row in chosen), encoding="utf-8")
    source, at = random.Random(0), 0  # noqa: S311 - nothing secret
    with files["turns"].open("w", encoding="utf-8") as file:
        while at < count // 2:
            turns = source.randint(2, 3)
            messages = [
                {"role": role, "content": row[column]}
                for row in chosen[at : at + turns]
                for role, column in (("user", "question"), ("assistant", "answer"))
            ]
            file.write(json.dumps({"messages": messages}) + "\n")
            at += turns
    return files


def time_strop(file: Path, model: Path, cache: Path, workers: int | None) -> dict[str, Any]:
    """Strop's side, in the process that `main` starts for it."""
    from strop.data.examples import prepare
    from strop.data.tokenizer import Tokenizer
    from strop.recipe.schema import DataSection

    tokenizer = Tokenizer.from_folder(model)
    settings = DataSection(train=str(file), eval=0.0, max_tokens=MAX_TOKENS)
    began = time.perf_counter()
    dataset = prepare(settings, tokenizer, seed=0, cache=cache, workers=workers)
    seconds = time.perf_counter() - began
    return {
        "rows": dataset.read,
        "tokens": int(dataset.learned.lengths_S.sum()),
        "learned": int(dataset.learned.taught_S.sum()),
        "seconds": seconds,
    }


def run_side(name: str, file: Path, kind: str, model: Path, place: Path, python: Path) -> dict[str, Any]:
    """One side in a process of its own."""
    side, processes = SIDES[name]
    if side == "strop":
        command = [sys.executable, str(HERE / "data.py"), "--side", str(file), str(model), str(place), processes]
    else:
        command = [str(python), str(HERE / "peers" / "prepare_data.py"), str(file), str(model), str(place)]
        command += [side, processes, kind]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr.decode(errors='replace')[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(given: argparse.Namespace, files: dict[str, Path], model: Path, place: Path) -> dict[str, Any]:
    """All sides in turn, round after round: for each data set and side its runs, cold and warm."""
    python = given.peers_python or peers_python(given.peers_venv.absolute(), "peers")
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {kind: {name: [] for name in SIDES} for kind in files}
    for number in range(given.rounds):
        for kind, file in files.items():
            for name in SIDES:
                print(f"round {number + 1}: {kind}, {name}", file=sys.stderr, flush=True)
                cache = place / "cache"
                shutil.rmtree(cache, ignore_errors=True)
                cold = run_side(name, file, kind, model, cache, python)
                warm = run_side(name, file, kind, model, cache, python)
                runs[kind][name].append({**cold, "warm_s": warm["seconds"]})
    return {kind: {name: summary(each, found) for name, each in found.items()} for kind, found in runs.items()}


def summary(runs: list[dict[str, Any]], all_runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of a side's runs, and how many times faster Strop is in the same round."""
    pairs = list(zip(runs, all_runs["strop"], strict=True))
    figures = {
        "rows": runs[0]["rows"],
        "tokens": runs[0]["tokens"],
        "learned": runs[0]["learned"],
        "cold_s": statistics.median(run["seconds"] for run in runs),
        "warm_s": statistics.median(run["warm_s"] for run in runs),
        "rows_per_s": statistics.median(run["rows"] / run["seconds"] for run in runs),
        "strop_is_faster": statistics.median(run["seconds"] / other["seconds"] for run, other in pairs),
    }
    if "map_s" in runs[0]:
        figures["map_s"] = statistics.median(run["map_s"] for run in runs)
        figures["strop_is_faster_than_its_maps"] = statistics.median(
            run["map_s"] / own["seconds"] for run, own in pairs
        )
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in figures.items()}


def packing(file: Path, model: Path) -> dict[str, Any]:
    """How full packs are, and the seconds that packing takes."""
    import numpy as np

    from strop.data.examples import prepare
    from strop.data.order import step_samples
    from strop.data.packing import fill
    from strop.data.tokenizer import Tokenizer
    from strop.recipe.schema import DataSection

    section = DataSection(train=str(file), eval=0.0, max_tokens=MAX_TOKENS)
    # MATH's solutions with their problems: a log-normal of median 240 tokens, 2 % beyond 1,024 left out.
    made = np.exp(np.random.default_rng(0).normal(np.log(240), 0.68, 9000)).astype(np.int64) + 30
    lengths = {
        "gsm8k": prepare(section, Tokenizer.from_folder(model), seed=0).learned.lengths_S[:7500],
        "like MATH": made[made <= MAX_TOKENS][:7500],
    }
    found: dict[str, Any] = {}
    for name, lengths_S in lengths.items():
        count = len(lengths_S)
        shares = {"at once": share(fill(lengths_S.tolist(), PACK_TOKENS), lengths_S)}
        for samples in (16, 64, 256):
            steps = [lengths_S[step_samples(0, step, count, samples)] for step in range(count // samples)]
            packs = [len(fill(step.tolist(), PACK_TOKENS)) for step in steps]
            shares[f"{samples} a step"] = float(sum(step.sum() for step in steps) / (sum(packs) * PACK_TOKENS))
        found[name] = {key: round(value, 4) for key, value in shares.items()}
    million = np.tile(lengths["like MATH"], 140)[:1_000_000].tolist()
    began = time.perf_counter()
    fill(million, PACK_TOKENS)
    return {"pack_tokens": PACK_TOKENS, **found, "seconds_for_a_million": round(time.perf_counter() - began, 2)}


def share(packs: list[list[int]], lengths_S: Any) -> float:
    """Tokens of the samples for each position of the packs."""
    return float(lengths_S.sum() / (len(packs) * PACK_TOKENS))


def table(sides: dict[str, Any]) -> str:
    """A data set's table, in Markdown."""
    lines = ["| | rows/s, cold | seconds, cold | seconds, warm | Strop is faster |", "|---|---|---|---|---|"]
    for name, each in sides.items():
        factor = "" if name == "strop" else f"{each['strop_is_faster']:.1f} ×"
        lines.append(f"| {name} | {each['rows_per_s']:,.0f} | {each['cold_s']:.2f} | {each['warm_s']:.2f} | {factor} |")
    return "\n".join(lines)


def main() -> None:
    """Runs all sides and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gsm8k", type=Path, default=GSM8K, help="its train.jsonl")
    parser.add_argument("--peers-venv", type=Path, default=Path(".venv-peers"), help="folder of peers' environments")
    parser.add_argument("--peers-python", type=Path, help="an interpreter that has the peers, instead of making one")
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS, help=f"write the figures (to {RESULTS.name})")
    parser.add_argument("--side", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        file, model, cache, workers = given.side
        count = None if workers == "all" else int(workers)
        print(json.dumps(time_strop(Path(file), Path(model), Path(cache), count)))
        return
    from strop.model.starter import starter_folder

    with tempfile.TemporaryDirectory() as folder:
        place, model = Path(folder), starter_folder()
        files = write_rows(place, given.rows, given.gsm8k)
        sides = measure(given, files, model, place)
        figures = {
            "date": date.today().isoformat(),
            **machine(),
            "rounds": given.rounds,
            "sides": sides,
            "packing": packing(files["gsm8k"], model),
        }
    for kind, found in sides.items():
        print(f"\n{kind}: {found['strop']['rows']:,} rows, {found['strop']['tokens']:,} tokens\n\n{table(found)}")
    print(f"\npacking: {json.dumps(figures['packing'])}")
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    apart = [
        f"{kind}, {name}: {each['tokens']:,} tokens"
        for kind, found in sides.items()
        for name, each in found.items()
        if abs(each["tokens"] / found["strop"]["tokens"] - 1) > TOLERANCE
    ]
    if apart:
        raise SystemExit("NOT A COMPARISON:\n" + "\n".join(apart))


if __name__ == "__main__":
    main()
