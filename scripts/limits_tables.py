"""Write the tables of docs/limits.md from the published numbers (rl.data.published_limits).

    python scripts/limits_tables.py [--check]

Each table stands between `<!-- table: NAME MODEL -->` and `<!-- end -->`. With `--check`, nothing
is written, and the exit status says whether the tables in the file are those of the numbers.
"""

import argparse
import re
import sys
from pathlib import Path

import pandas as pd

from rome_lens.checks import average_by_fact
from rome_lens.data import published_limits
from rome_lens.evaluation.scores import markdown

DOCS = Path(__file__).parents[1] / "docs"
PAGE = DOCS / "limits.md"
TABLE = re.compile(r"(<!-- table: (\w+) (\S+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
EDITORS = (
    "preset",
    "original",
    "matched",
    "null edit",
    "r-ROME",
    "C = I",
    "FT+L",
    "in context",
)
COUNTED = ("association", "description")  # only facts with a large enough effect have a share
WITHOUT_NULL_EDIT = ("generalisation", "direction")  # its numbers are zero by construction there
Columns = dict[str, tuple[str, str]]
TABLES: dict[str, Columns] = {
    "generalisation": {
        "own prompt": ("generalisation", "exact match, fact's own prompt"),
        "paraphrases": ("generalisation", "exact match, paraphrase"),
        "inside longer text": ("generalisation", "exact match, inside longer text"),
    },
    "direction": {
        "p(new target), forward": ("direction", "change of p(new target), forward"),
        "p(subject), backward": ("direction", "change of p(subject), reverse"),
        "backward, minus another target": (
            "direction",
            "change of p(subject), reverse, minus another target",
        ),
    },
    "association": {
        "alias": ("association", "effect"),
        "subject with the same answer": ("association", "share kept, decoy with the same answer"),
        "with another answer": ("association", "share kept, decoy with another answer"),
        "invented name": ("association", "share kept, invented decoy"),
        "alias minus same answer": ("association", "share kept minus decoy with the same answer"),
        "alias, identified": ("association", "share kept where identified"),
    },
    "description": {
        "description": ("description", "effect"),
        "of a subject with the same answer": (
            "description",
            "share kept, decoy with the same answer",
        ),
        "of one with another answer": ("description", "share kept, decoy with another answer"),
        "minus same answer": ("description", "share kept minus decoy with the same answer"),
        "identified": ("description", "share kept where identified"),
        "after the name": ("description", "share kept, description with the name"),
    },
    "asked": {
        "true target before": ("overfit", "asked: true target, before"),
        "new target after": ("overfit", "asked: new target, after"),
        "difference": ("overfit", "effect"),
        "over": ("overfit", "asked: over"),
        "under": ("overfit", "asked: under"),
        "size of the difference": ("overfit", "asked: |difference|"),
    },
    "loud": {
        "true target before": ("overfit", "loud: true target, before"),
        "new target after": ("overfit", "loud: new target, after"),
        "difference": ("overfit", "loud: difference"),
        "the right answer's change": ("overfit", "loud: change of p(right answer)"),
    },
    "written": {
        "true target before": ("overfit", "sampled: true target, before"),
        "new target after": ("overfit", "sampled: new target, after"),
        "difference": ("overfit", "sampled: difference"),
        "with related words": ("overfit", "sampled, family: difference"),
    },
    "rest": {
        "bleed-over": ("bleed-over", "effect"),
        "other relations": ("specificity", "effect"),
        "other relations, random push": ("specificity", "control"),
        "essence": ("essence", "effect"),
        "essence, random push": ("essence", "control"),
        "other text": ("fidelity", "effect"),
    },
    "consequence": {
        "p(new consequence)": ("consequence", "change of p(new consequence)"),
        "p(true consequence)": ("consequence", "change of p(true consequence)"),
        "p(false consequence)": ("consequence", "change of p(false consequence)"),
    },
}


def table(frame: pd.DataFrame, name: str) -> str:
    """One table: a row for each editor, a column for each number."""
    columns = TABLES[name]
    wanted = frame.set_index(["check", "number"]).index.isin(list(columns.values()))
    averages = average_by_fact(frame[wanted]).set_index(["editor", "check", "number"])
    means = averages["text"]
    if name in COUNTED:
        unsaid = ~means.str.contains("n = ")
        means = means.where(~unsaid, means + ", n = " + averages["facts"].astype(str))
    editors = [each for each in EDITORS if each != "null edit" or name not in WITHOUT_NULL_EDIT]
    rows = {
        editor: {head: means.get((editor, *number), "") for head, number in columns.items()}
        for editor in editors
    }
    written = pd.DataFrame(rows).T
    written.index.name = "editor"
    return markdown(written[(written != "").any(axis=1)])


def page() -> str:
    """The page with its tables made again."""
    frames: dict[str, pd.DataFrame] = {}

    def made_again(found: re.Match[str]) -> str:
        head, name, model, _, end = found.groups()
        frame = frames.setdefault(model, published_limits(model))
        return f"{head}\n{table(frame, name)}\n\n{end}"

    return TABLE.sub(made_again, PAGE.read_text(encoding="utf-8"))


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    written = page()
    if args.check:
        sys.exit(written != PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(written, encoding="utf-8")


if __name__ == "__main__":
    main()
