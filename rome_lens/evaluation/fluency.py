"""Scores of generated text: the entropy of its n-grams, and its similarity to reference texts."""

import math
import re
from collections import Counter
from collections.abc import Sequence

from rome_lens.arguments import texts as several_texts
from rome_lens.data.joining import UNSPACED

_WORDS = re.compile(rf"{UNSPACED}|(?:(?!{UNSPACED})\w)+(?:['’]\w+)*|[^\w\s]")
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}


def words(text: str) -> list[str]:
    """Split a text into words and single punctuation marks.

    A word consists of letters, digits, underscores and inner apostrophes. In scripts without spaces
    between words, such as Chinese, each character counts as a word.
    """
    return _WORDS.findall(text)


def ngram_entropy(text: str) -> float:
    """Generation entropy (GE) in bits. It is low for a text that repeats itself.

        GE = 1/2 (2/3 H_2 + 4/3 H_3),   H_n = - sum_k f_n(k) log2 f_n(k)

    ``f_n(k)`` is the share of the n-gram ``k`` among the n-grams of the text, which :func:`words`
    splits. ``H_n`` of a text without n-grams is 0. A text of N words in which no bigram occurs
    twice reaches about log2 N.

    Source: Meng et al. 2022, section 3.3 and its appendix on metrics (after Zhang et al. 2018). The
    mean of the weighted entropies is that of the authors' code, which splits words with NLTK
    instead.
    """
    tokens = words(text)
    entropies = []
    for n, weight in _WEIGHTS.items():
        grams = Counter(zip(*(tokens[i:] for i in range(n)), strict=False))
        total = grams.total()
        entropies.append(
            weight * math.fsum(count / total * math.log2(total / count) for count in grams.values())
        )
    return math.fsum(entropies) / len(entropies)


def tfidf_similarity(texts: Sequence[str], references: Sequence[str]) -> float:
    """Consistency (RS): the cosine similarity of the texts and the references, from 0 to 1.

    Both sides are joined into one document each, and compared as tf-idf vectors of their lower-case
    words, without punctuation:

        tfidf(w, d) = count of w in d * (ln((1 + n) / (1 + df(w))) + 1),   n = 2 documents

    The similarity is 0 if one side has no words.

    Raises:
        ArgumentError: one side is a single text rather than several.

    Source: Meng et al. 2022, section 3.3 and its appendix on metrics. The authors take ``df`` from
    their whole collection of reference texts. Here it comes from the two documents, so that the
    score of a record depends on no other record.
    """
    documents = [
        Counter(w for w in words(" ".join(several_texts(name, part)).lower()) if w[0].isalnum())
        for name, part in (("texts", texts), ("references", references))
    ]
    weights = {
        w: math.log(3 / (1 + sum(w in d for d in documents))) + 1 for d in documents for w in d
    }
    one, other = ({w: count * weights[w] for w, count in d.items()} for d in documents)
    norms = [math.sqrt(math.fsum(x * x for x in vector.values())) for vector in (one, other)]
    if not all(norms):
        return 0.0
    return math.fsum(x * other.get(w, 0.0) for w, x in one.items()) / (norms[0] * norms[1])
