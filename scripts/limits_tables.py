"""Write the tables of two pages from the published numbers (rl.data.published_limits).

    python scripts/limits_tables.py [--check]

The pages are docs/limits.md and docs/later-editors.md, with the second one's pictures. Each table
stands between `<!-- table: NAME MODEL -->` and `<!-- end -->`. With `--check`, nothing is written,
and the exit status says whether the tables in the files are those of the numbers.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rome_lens.checks import average_by_fact
from rome_lens.data import published_limits
from rome_lens.evaluation.scores import markdown
from rome_lens.viz import means_by_editor

DOCS = Path(__file__).parents[1] / "docs"
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


LATER = (
    "preset",
    "MEMIT",
    "EMMET",
    "AlphaEdit",
    "original",
    "MEMIT unstopped",
    "AlphaEdit unstopped",
    "in context",
)
LATER_TABLES: dict[str, Columns] = {
    "generalisation": TABLES["generalisation"],
    "direction": TABLES["direction"],
    "association": {
        head: TABLES["association"][head]
        for head in (
            "alias",
            "subject with the same answer",
            "invented name",
            "alias minus same answer",
            "alias, identified",
        )
    },
    "description": {
        head: TABLES["description"][head]
        for head in ("description", "of a subject with the same answer", "minus same answer")
    },
    "asked": TABLES["asked"],
    "loud": TABLES["loud"],
    "rest": TABLES["rest"],
}
DIFFERENCES: Columns = {
    "paraphrases": ("generalisation", "exact match, paraphrase"),
    "backward": ("direction", "change of p(subject), reverse"),
    "alias minus same answer": ("association", "share kept minus decoy with the same answer"),
    "asked": ("overfit", "effect"),
    "loud": ("overfit", "loud: difference"),
    "bleed-over": ("bleed-over", "effect"),
    "other relations": ("specificity", "effect"),
    "essence": ("essence", "effect"),
    "other text": ("fidelity", "effect"),
}
PANELS: Columns = {
    "new target written after paraphrases": ("generalisation", "exact match, paraphrase"),
    "change of p(subject), asked backwards": ("direction", "change of p(subject), reverse"),
    "share kept by an alias, minus a decoy's": DIFFERENCES["alias minus same answer"],
    "asked: p(new) after minus p(true) before": ("overfit", "effect"),
    "loud: the same after a mere mention": ("overfit", "loud: difference"),
    "other subjects: change of p(true answer)": ("bleed-over", "effect"),
    "other relations: change of p(right answer)": ("specificity", "effect"),
    "essence: KL after the subject's name, nats": ("essence", "effect"),
    "other text: change in nats per token": ("fidelity", "effect"),
}
MODELS = {"gemma-3-270m": "Gemma 3 270M", "smollm2-135m": "SmolLM2 135M"}
REFERENCES = {  # what each editor is compared with: ROME with the same stop
    "MEMIT": "preset",
    "EMMET": "preset",
    "AlphaEdit": "preset",
    "MEMIT unstopped": "original",
    "AlphaEdit unstopped": "original",
}


@dataclass(frozen=True)
class Page:
    """A page with tables."""

    path: Path
    editors: tuple[str, ...]
    """The rows of its tables."""
    tables: Mapping[str, Columns]
    """Their columns, by name."""
    facts_of: str = "preset"
    """The editor whose facts the tables are about."""

    def numbers(self, model: str) -> pd.DataFrame:
        """The published numbers of these facts."""
        frame = published_limits(model)
        return frame[frame["record"].isin(frame[frame["editor"] == self.facts_of]["record"])]


PAGES = (
    Page(DOCS / "limits.md", EDITORS, TABLES),
    Page(DOCS / "later-editors.md", LATER, LATER_TABLES, facts_of="MEMIT"),
)


def table(frame: pd.DataFrame, name: str, columns: Columns, editors: Sequence[str]) -> str:
    """One table: a row for each editor, a column for each number."""
    averages = average_by_fact(_only(frame, columns)).set_index(["editor", "check", "number"])
    means = averages["text"]
    if name in COUNTED:
        unsaid = ~means.str.contains("n = ")
        means = means.where(~unsaid, means + ", n = " + averages["facts"].astype(str))
    if name in WITHOUT_NULL_EDIT:
        editors = [each for each in editors if each != "null edit"]
    rows = {
        editor: {head: means.get((editor, *number), "") for head, number in columns.items()}
        for editor in editors
    }
    return _written(rows)


def differences(frame: pd.DataFrame) -> str:
    """Each later editor's paired difference from ROME with the same stop."""
    own = _only(frame, DIFFERENCES)
    rows = {}
    for reference in dict.fromkeys(REFERENCES.values()):
        paired = average_by_fact(own, minus=reference)
        texts = paired.set_index(["editor", "check", "number"])["text"]
        for editor in (each for each, its in REFERENCES.items() if its == reference):
            rows[f"{editor} minus {reference}"] = {
                head: texts.get((editor, *number), "") for head, number in DIFFERENCES.items()
            }
    return _written(rows)


def _only(frame: pd.DataFrame, columns: Columns) -> pd.DataFrame:
    return frame[frame.set_index(["check", "number"]).index.isin(list(columns.values()))]


def _written(rows: Mapping[str, Mapping[str, str]]) -> str:
    written = pd.DataFrame(rows).T
    written.index.name = "editor"
    return markdown(written[(written != "").any(axis=1)])


def made_again(page: Page) -> str:
    """The page with its tables made again."""
    frames: dict[str, pd.DataFrame] = {}

    def written(found: re.Match[str]) -> str:
        head, name, model, _, end = found.groups()
        frame = frames.setdefault(model, page.numbers(model))
        if name == "differences":
            own = differences(frame)
        else:
            own = table(frame, name, page.tables[name], page.editors)
        return f"{head}\n{own}\n\n{end}"

    return TABLE.sub(written, page.path.read_text(encoding="utf-8"))


def draw(page: Page) -> None:
    """The pictures of the editors of a page, one for each model."""
    for model, name in MODELS.items():
        frame = page.numbers(model)
        count = frame["record"].nunique()
        figure = means_by_editor(
            frame,
            PANELS,
            editors=page.editors,
            title=f"What edits of {len(page.editors)} editors do on the same {count} facts; {name}",
        )
        figure.savefig(DOCS / "images" / f"{page.path.stem}-{model}.png", dpi=110)


def main() -> None:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    for page in PAGES:
        text = made_again(page)
        if not args.check:
            page.path.write_text(text, encoding="utf-8")
            if page.path.stem == "later-editors":
                draw(page)
        elif text != page.path.read_text(encoding="utf-8"):
            sys.exit(f"The tables of {page.path.name} are not those of the published numbers.")


if __name__ == "__main__":
    main()
