"""The relation of a fact, by which averages over facts are clustered."""

from rome_lens.data.facts import Fact
from rome_lens.data.record_type import Record


def relation_of(fact: Fact | Record) -> str:
    """The name of the relation; without a name its identifier, and without that the prompt.

    Facts of one relation resemble each other: a model knows them alike, and an edit changes them
    alike. So their number says less than as many facts of different relations would.

    Example:
        >>> import rome_lens as rl
        >>> from rome_lens.data.relations import relation_of
        >>> fact = rl.Fact("{} is located in the city of", subject="The Louvre", target="Paris")
        >>> relation_of(fact)
        '{} is located in the city of'
        >>> relation_of(rl.data.Record(id=1, fact=fact, relation="city"))
        'city'
    """
    if isinstance(fact, Fact):
        return fact.prompt
    return fact.relation or fact.relation_id or fact.fact.prompt
