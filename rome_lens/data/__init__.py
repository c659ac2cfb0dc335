"""Data: facts, the records of questions about them, and the texts that come with the package.

* ``facts.py``: ``Fact``. ``record_type.py``: ``Record``, one fact and all that is asked about it.
* ``fact_files.py``, ``records_file.py``, ``counterfact.py``: readers of files. ``shapes.py`` has
  the shapes of the entries; ``entries.py`` and ``fields.py`` open files and check what they hold.
* ``whole_words.py``: where a subject stands in a text.
* ``taught.py``: all that the toy model was taught.
* ``questions.py``: the parts of a record. ``deriving.py``: decoys from other records.
* ``bundled.py``: the bundled records and texts. ``completing.py``: what a relation's records share.
* ``published.py``: the measured numbers behind the documentation's tables and curves.
"""

from rome_lens.data.bundled import (
    FILES,
    held_texts,
    limits,
    name_texts,
    openings,
    record,
    records,
    texts,
)
from rome_lens.data.counterfact import CounterFactRecord, read_counterfact
from rome_lens.data.deriving import with_decoys
from rome_lens.data.entries import ReadList
from rome_lens.data.fact_files import read_facts
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.published import published_curve, published_limits
from rome_lens.data.record_type import (
    Decoys,
    Question,
    Record,
    RecordError,
    as_fact,
    as_facts,
    as_record,
    as_records,
)
from rome_lens.data.records_file import read_records
from rome_lens.data.taught import toy_people

__all__ = [
    "FILES",
    "CounterFactRecord",
    "Decoys",
    "Fact",
    "FactError",
    "Question",
    "ReadList",
    "Record",
    "RecordError",
    "as_fact",
    "as_facts",
    "as_record",
    "as_records",
    "held_texts",
    "limits",
    "name_texts",
    "openings",
    "published_curve",
    "published_limits",
    "read_counterfact",
    "read_facts",
    "read_records",
    "record",
    "records",
    "texts",
    "toy_people",
    "with_decoys",
]
