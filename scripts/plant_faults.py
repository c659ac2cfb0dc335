"""Does the test suite bite? Plants one fault at a time in a copy of the repository and runs tests.

    python scripts/plant_faults.py [--only NAME ...] [--list]

A fault is caught when a test fails. For each fault only the tests of the wings that the fault
concerns are run, with ``-x`` and without the real models and notebooks. The exit status is the
number of faults that no test caught.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Fault:
    """One planted fault: ``old`` becomes ``new`` in the one file of the package that holds it."""

    name: str
    tests: tuple[str, ...]
    old: str
    new: str


FAULTS = (
    Fault(
        "the window of restored layers ends one layer late",
        ("tracing",),
        "min(n_layers, layer - (-window // 2))",
        "min(n_layers, layer - (-window // 2) + 1)",
    ),
    Fault(
        "noise covers one position too many",
        ("tracing",),
        "embeddings[:, slice(*clean.encoded.subject)] += noise",
        "embeddings[:, slice(*clean.encoded.subject)] += noise; "
        "embeddings[:, clean.encoded.subject[1]] += noise[:, -1]",
    ),
    Fault(
        "cells at the subject's first token count as out of reach",
        ("tracing",),
        "(causal and pos < self.encoded.subject[0])",
        "(causal and pos <= self.encoded.subject[0])",
    ),
    Fault(
        "the noise ignores its seed",
        ("tracing",),
        "draws = self._draw((samples, *prompt.embeddings.shape), generator)",
        "draws = self._draw((samples, *prompt.embeddings.shape), generator.manual_seed(0))",
    ),
    Fault(
        "severed modules are held one position too early",
        ("tracing",),
        "value[:, pos] = held[name][:, pos]",
        "value[:, pos - 1] = held[name][:, pos - 1]",
    ),
    Fault(
        "the attribution trace leaves out the last layer of a window",
        ("tracing",),
        "by_layer[:, window.start : window.stop].sum(1)",
        "by_layer[:, window.start : max(window.start + 1, window.stop - 1)].sum(1)",
    ),
    Fault(
        "the bias of W_out is forgotten",
        ("editing", "models", "forward"),
        "return output if bias is None else output + bias.to(keys)",
        "return output",
    ),
    Fault(
        "a reverted edit stays in the weights",
        ("editing",),
        "with_edits(record.original, [entry.edit for entry in staying])",
        "with_edits(record.original, record.edits)",
    ),
    Fault(
        "v is divided by the norm of u twice",
        ("editing",),
        "v = (value - output) / (key @ u)",
        "v = (value - output) / (key @ u) / u.norm() ** 2 * 1.01",
    ),
    Fault(
        "r-rome takes the bare prompt's key",
        ("editing",),
        "key, output = state.keys[1:-1].mean(0), state.outputs[1:-1].mean(0)",
        "key, output = state.keys[0], state.outputs[0]",
    ),
    Fault(
        "the KL term is left out of the loss",
        ("editing",),
        "loss = nll + kl + decay",
        "loss = nll + decay",
    ),
    Fault(
        "weight decay divides by the norm, not by its square",
        ("editing",),
        "config.norm(delta) / config.norm(start) ** 2",
        "config.norm(delta) / config.norm(start)",
    ),
    Fault(
        "the clamp is half as wide",
        ("editing",),
        "bound = config.clamp * config.norm(start)",
        "bound = 0.5 * config.clamp * config.norm(start)",
    ),
    Fault(
        "edits act on the wrong rows of a batch",
        ("editing",),
        "added.index_put((rows,), firing",
        "added.index_put((rows.flip(0),), firing",
    ),
    Fault(
        "C is divided by one key too few",
        ("keys",),
        "(upper + upper.triu(1).T) / self.count",
        "(upper + upper.triu(1).T) / (self.count - 1)",
    ),
    Fault(
        "padding counts as keys",
        ("keys",),
        "torch.arange(tokens.shape[1])[None] < lengths[:, None]",
        "torch.arange(tokens.shape[1])[None] <= lengths[:, None]",
    ),
    Fault(
        "a neighbour's margin has the wrong sign",
        ("evaluation",),
        'return -gap if self.kind == "neighborhood" else gap',
        "return gap",
    ),
    Fault(
        "a 95 % interval is one of 90 %",
        ("house", "checks", "evaluation", "tracing"),
        "stats.t.ppf(0.975, count - 1)",
        "stats.t.ppf(0.95, count - 1)",
    ),
    Fault(
        "a score sums its tokens' log probabilities",
        ("evaluation",),
        "log_probs.double().mean().exp()",
        "log_probs.double().sum().exp()",
    ),
    Fault(
        "KL has its arguments swapped",
        ("checks",),
        "(p.exp() * (p - q)).sum()",
        "(q.exp() * (q - p)).sum()",
    ),
    Fault(
        "the control of direction asks about the new target",
        ("checks",),
        "answers.to(_reverse(record, record.fact.target))",
        "answers.to(_reverse(record, new_target(record)))",
    ),
    Fault(
        "a store forgets what made a result",
        ("house", "evaluation", "checks"),
        "map(repr, made_with)",
        "map(repr, made_with[:1])",
    ),
    Fault(
        "an answer is read one position late",
        ("forward", "evaluation"),
        "len(starts[question]) - 1 + j",
        "len(starts[question]) - 1 + max(0, j - 1)",
    ),
    Fault(
        "the Bridge's rotary angles are cut one position late",
        ("forward", "tracing"),
        "tuple(each.narrow(axis, start, length) for each in value)",
        "tuple(each.narrow(axis, start - 1, length) for each in value)",
    ),
    Fault(
        "the subject's span ends one token early",
        ("forward", "tracing"),
        "return self.subject[1] - 1",
        "return max(self.subject[0], self.subject[1] - 2)",
    ),
)


def plant(tree: Path, fault: Fault) -> Path:
    """Write the fault into the one file of ``tree`` that holds its old words, and return the
    file."""
    found = [
        path
        for path in sorted((tree / "rome_lens").rglob("*.py"))
        if fault.old in path.read_text(encoding="utf-8")
    ]
    if len(found) != 1:
        raise SystemExit(f"{fault.name!r}: {len(found)} files hold {fault.old!r}, expected one.")
    text = found[0].read_text(encoding="utf-8")
    if text.count(fault.old) != 1:
        raise SystemExit(f"{fault.name!r}: {found[0]} holds {fault.old!r} several times.")
    found[0].write_text(text.replace(fault.old, fault.new), encoding="utf-8")
    return found[0]


def is_caught(tree: Path, tests: list[str]) -> bool:
    """Whether a test fails in the tree."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    command += ["-m", "not real and not notebook", *tests]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(done.stdout.decode()[-2000:] + done.stderr.decode()[-2000:])
    return done.returncode == 1


def main() -> int:
    """Plant each fault in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="words that the names of the faults hold")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    args = parser.parse_args()
    chosen = [f for f in FAULTS if not args.only or any(word in f.name for word in args.only)]
    if args.list:
        print("\n".join(fault.name for fault in chosen))
        return 0
    missed = 0
    for fault in chosen:
        with tempfile.TemporaryDirectory() as scratch:
            tree = Path(scratch) / "tree"
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", "*.egg-info"))
            path = plant(tree, fault)
            start = time.perf_counter()
            caught = is_caught(tree, [f"tests/{wing}" for wing in fault.tests])
            missed += not caught
            seconds = time.perf_counter() - start
            where = path.relative_to(tree)
            print(f"{'caught' if caught else 'MISSED'}  {seconds:4.0f} s  {fault.name} ({where})")
            sys.stdout.flush()
    print(f"{len(chosen) - missed} of {len(chosen)} caught")
    return missed


if __name__ == "__main__":
    raise SystemExit(main())
