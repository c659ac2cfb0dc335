"""A reader of facts in files of any shape that the field uses."""

from pathlib import Path

from rome_lens.data.entries import OnError, ReadList, collect
from rome_lens.data.facts import Fact
from rome_lens.data.shapes import cases_of


def read_facts(path: str | Path, *, on_error: OnError = "raise") -> ReadList[Fact]:
    """Facts from a file that holds a JSON list of objects, or JSON lines.

    The shape of each object is told by its fields:

    * this project's: ``prompt`` with ``{}``, ``subject``, ``target``, and optionally
      ``new_target``; or a record with such a ``fact``;
    * known_1000's: ``prompt`` with the subject written out, ``subject``, ``attribute``, and a
      ``template`` that tells where the subject is;
    * CounterFact's: ``requested_rewrite`` with ``prompt``, ``subject``, ``target_true`` and
      ``target_new`` (an object with ``str`` each);
    * MQuAKE's: a list of such rewrites; each is read as a fact;
    * counterfact-tracing's: ``relation_prefix``, ``subject``, ``relation_suffix``, ``target_true``,
      ``target_false``;
    * EasyEdit's ``counterfact-edit`` and KnowEdit's: ``prompt``, ``subject``, ``ground_truth``,
      ``target_new``;
    * zsRE's: ``src``, ``subject``, ``answers``, ``alt``.

    In a prompt without ``{}`` the subject is found as by :meth:`Fact.from_text`. The first of
    several true answers is taken. Other fields are ignored.
    :func:`~rome_lens.data.read_records` reads paraphrases and neighbours as well.

    Args:
        path: the file, in UTF-8, or in UTF-16 with a byte order mark.
        on_error: ``"raise"`` stops at a fact that cannot be read. ``"skip"`` leaves such facts out
            with a warning; ``skipped`` of the returned list holds each one's index and reason.

    Raises:
        FactError: the file cannot be read, or holds no such list, or an empty one. If a fact has
            another form, the message gives its index and what is missing or wrong.

    Example:
        >>> import json, pathlib, tempfile, rome_lens as rl
        >>> path = pathlib.Path(tempfile.mkdtemp()) / "known.json"
        >>> known = {"subject": "Art", "attribute": "Paris", "template": "{} was born"}
        >>> _ = path.write_text(json.dumps([{**known, "prompt": "Art was born in"}]))
        >>> rl.read_facts(path)[0].prompt
        '{} was born in'
    """

    def read(index: int, entry: object) -> list[Fact]:
        return [case.fact for case in cases_of(entry, f"Fact {index} of {path}")]

    return collect(path, "facts", read, on_error=on_error)
