"""Subject spans and answers on tokenizers of several makes.

``decode`` is the judge, not the offsets that the code reads.
"""

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from models_for_tests import CLASSES
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, Unigram
from transformer_lens.model_bridge import TransformerBridge

import rome_lens as rl
from rome_lens.data.facts import Fact, FactError
from rome_lens.data.record_type import Record
from rome_lens.editing.prompts import ContextRows
from rome_lens.forward.tokens import FactTokens, continuation, encode, pad_right, token_ids
from rome_lens.models.convert import hooked_transformer
from rome_lens.models.lens import ModelError

ASCII = [chr(code) for code in range(33, 127)]
WORDS = ("_The", "_Eiffel", "_Tower", "_is", "_in", "_of", "_Paris", "_New", "_York", "The")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
CONTEXT = 64


def bpe(pieces: list[str], vocabulary: list[str], **options: Any) -> BPE:
    """A BPE that builds each piece from the left, earlier pieces first."""
    ids = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    merges: dict[tuple[str, str], None] = {}
    for piece in pieces:
        for end in range(1, len(piece)):
            merges[piece[:end], piece[end]] = None
            ids.setdefault(piece[: end + 1], len(ids))
    return BPE(vocab=ids, merges=list(merges), **options)


def byte_level() -> Tokenizer:
    """As GPT-2's: a piece may hold a space and the first bytes of the character after it."""
    pieces = [word.replace("_", "Ġ") for word in WORDS] + ["ĠðŁ"]
    tokenizer = Tokenizer(
        bpe(pieces, ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def llama_like() -> Tokenizer:
    """BPE with byte fallback on whole texts, which begin with an added space."""
    tokenizer = Tokenizer(_sentencepiece_bpe())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    return _with_bos(tokenizer, strip=True)


def gemma_like() -> Tokenizer:
    """BPE with byte fallback on whole texts, spaces as they are."""
    tokenizer = Tokenizer(_sentencepiece_bpe())
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return _with_bos(tokenizer, strip=False)


def unigram() -> Tokenizer:
    """Unigram with byte fallback; every word begins with a space, the first one too."""
    special = [(token, 0.0) for token in ("<unk>", "<s>", "</s>")]
    single = [(token, -20.0) for token in BYTES] + [(token, -10.0) for token in [*ASCII, "▁", "ü"]]
    pieces = [(word.replace("_", "▁"), -2.0) for word in WORDS]
    tokenizer = Tokenizer(Unigram([*special, *single, *pieces], unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return _with_bos(tokenizer, strip=True)


def without_fallback() -> Tokenizer:
    """Drops every character beyond ASCII."""
    tokenizer = Tokenizer(bpe([], ["<s>", "</s>", *ASCII, "▁"]))
    tokenizer.normalizer = normalizers.Replace(Regex(r"[^\x00-\x7f]"), "")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    return _with_bos(tokenizer, strip=False)


def _sentencepiece_bpe() -> BPE:
    reaches_over_a_space = "q▁w"
    pieces = [*(word.replace("_", "▁") for word in WORDS), "ü", reaches_over_a_space]
    special = ["<unk>", "<s>", "</s>"]
    return bpe(
        pieces,
        [*special, *BYTES, *ASCII, "▁", "ü"],
        byte_fallback=True,
        unk_token="<unk>",
        fuse_unk=True,
    )


def _with_bos(tokenizer: Tokenizer, *, strip: bool) -> Tokenizer:
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)
    bos = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bos)]
    )
    return tokenizer


def model_with(tokenizer: Tokenizer, model_class: str, directory: Path) -> Any:
    """A one-layer model with the tokenizer, read from files as a user's is."""
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(
        directory
    )
    words = transformers.AutoTokenizer.from_pretrained(directory)
    config = transformers.GPT2Config(
        vocab_size=len(words), n_positions=CONTEXT, n_embd=8, n_layer=1, n_head=1
    )
    config.update({"bos_token_id": words.bos_token_id, "eos_token_id": words.eos_token_id})
    config.architectures = ["GPT2LMHeadModel"]
    hf_model = transformers.AutoModelForCausalLM.from_config(config).eval()
    if model_class == "HookedTransformer":
        return hooked_transformer(hf_model, words)
    return TransformerBridge.boot_transformers(
        "tiny", hf_model=hf_model, tokenizer=words, device="cpu"
    )


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte_level": byte_level,
    "llama_like": llama_like,
    "gemma_like": gemma_like,
    "unigram": unigram,
}


@cache
def model_of_kind(kind: str, model_class: str) -> Any:
    """The toy model, or a model with a tokenizer built here; tests may not change it."""
    if kind == "toy":
        return rl.load_model("toy", model_class=model_class)
    with tempfile.TemporaryDirectory() as directory:
        return model_with(KINDS[kind](), model_class, Path(directory))


@pytest.fixture(params=["toy", *KINDS])
def model(request: pytest.FixtureRequest) -> Any:
    """The toy model and models with the tokenizers built here."""
    return model_of_kind(request.param, CLASSES[0])


@pytest.fixture(
    params=[(kind, model_class) for kind in ("toy", *KINDS) for model_class in CLASSES],
    ids="-".join,
)
def of_each_class(request: pytest.FixtureRequest) -> Any:
    """The same on every model class, because each class has its own ``to_tokens``."""
    return model_of_kind(*request.param)


@pytest.fixture(params=KINDS)
def built(request: pytest.FixtureRequest) -> Any:
    """Models with the tokenizers built here, whose pieces are known."""
    return model_of_kind(request.param, CLASSES[0])


@pytest.fixture(params=["llama_like", "gemma_like"])
def merging(request: pytest.FixtureRequest) -> Any:
    """Models whose tokenizer has a piece that reaches over a space."""
    return model_of_kind(request.param, CLASSES[0])


def is_smallest_span(model: Any, fact: Fact, encoded: FactTokens) -> bool:
    """Whether no token at either end of the span can be left out (with BOS first).

    The tokens up to the span's end hold the whole subject, and those before its last token do not.
    Likewise at the span's start.
    """
    bos, (start, end), decode = 1, encoded.subject, model.tokenizer.decode
    until = fact.text[: fact.subject_start + len(fact.subject)]
    rest = fact.text[fact.subject_start :]
    return (
        decode(encoded.tokens[bos:end]).startswith(until)
        and not decode(encoded.tokens[bos : end - 1]).startswith(until)
        and decode(encoded.tokens[start:]).endswith(rest)
        and not decode(encoded.tokens[start + 1 :]).endswith(rest)
    )


PLACES = {
    "start": ("{} is in", "The Eiffel Tower"),
    "middle": ("I think {} is in", "The Eiffel Tower"),
    "end": ("We all like {}", "New York"),
    "whole": ("{}", "The Eiffel Tower"),
    "inside a token at its end": ("in {}is is nice", "Par"),
    "inside a token at its start": ("in P{} is nice", "aris"),
    "inside one token": ("in P{}s is nice", "ari"),
    "twice, the second": ("Paris and {} is", "Paris"),
    "twice, the first": ("{} and Paris is", "The Paris"),
    "umlaut": ("We like {} is in", "Zürich"),
    "characters of three bytes": ("We like {} is in", "東京"),
    "characters of four bytes": ("We like {} a lot", "🗼"),
    "four bytes after a letter": ("We like x{} a lot", "🗼"),
    "mixed": ("We like {} a lot", "naïve 東京 café 🗼"),
}


def test_the_span_is_the_smallest_that_holds_the_subject(model: Any) -> None:
    wrong = []
    for place, (prompt, subject) in PLACES.items():
        fact = Fact(prompt, subject=subject, target="Paris")
        encoded = encode(model, fact, prepend_bos=True)
        held = subject in model.tokenizer.decode(encoded.tokens[slice(*encoded.subject)])
        last = encoded.subject_last == encoded.subject[1] - 1
        if not (held and last and is_smallest_span(model, fact, encoded)):
            wrong.append((place, encoded))
    assert wrong == []


def test_a_token_that_reaches_over_the_subjects_end_belongs_to_the_span(built: Any) -> None:
    encoded = encode(built, Fact("in {}is is nice", subject="Par", target="Rome"))
    assert [label.strip() for label in encoded.labels[slice(*encoded.subject)]] == ["Paris"]


def test_a_subject_of_several_tokens_has_them_all(built: Any) -> None:
    encoded = encode(built, Fact("of {} is", subject="New York", target="Rome"))
    assert [label.strip() for label in encoded.labels[slice(*encoded.subject)]] == ["New", "York"]


def test_an_emoji_is_found_whose_bytes_are_several_tokens(built: Any) -> None:
    encoded = encode(built, Fact("We like {} a lot", subject="🗼", target="Rome"))
    start, end = encoded.subject
    assert end - start > 1
    assert "🗼" not in "".join(encoded.labels)
    assert built.tokenizer.decode(encoded.tokens[start:end]).strip() == "🗼"


@pytest.mark.parametrize("kind", ["llama_like", "unigram"])
def test_a_bare_space_added_before_the_text_is_not_the_subjects(kind: str) -> None:
    model = model_of_kind(kind, CLASSES[0])
    fact = Fact("{} is in", subject="Zürich", target="Paris")
    assert is_smallest_span(model, fact, encode(model, fact, prepend_bos=True))


def test_a_subject_that_the_tokenizer_drops_is_refused(tmp_path: Path) -> None:
    model = model_with(without_fallback(), CLASSES[0], tmp_path)
    with pytest.raises(
        FactError, match=r"should hold the subject '東京'.*does not know some of its characters"
    ):
        encode(model, Fact("We like {} a lot", subject="東京", target="Paris"))


def test_bos_shifts_the_span_by_one_and_changes_nothing_else(of_each_class: Any) -> None:
    model = of_each_class
    fact = Fact("I think {} is in", subject="New York", target="Paris", new_target="New York")
    without, with_bos = (encode(model, fact, prepend_bos=bos) for bos in (False, True))
    assert with_bos.tokens.tolist() == [model.tokenizer.bos_token_id, *without.tokens.tolist()]
    assert with_bos.subject == (without.subject[0] + 1, without.subject[1] + 1)
    assert with_bos.labels[1:] == without.labels
    assert (with_bos.answer, with_bos.new_answer) == (without.answer, without.new_answer)


def test_bos_follows_the_models_default_where_nothing_is_said(
    of_each_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_each_class
    fact = Fact("I think {} is in", subject="New York", target="Paris")
    for default in (True, False):
        monkeypatch.setattr(model.cfg, "default_prepend_bos", default)
        ids = encode(model, fact).tokens.tolist()
        assert ids == encode(model, fact, prepend_bos=default).tokens.tolist()
        assert (ids[0] == model.tokenizer.bos_token_id) == default


def test_labels_read_as_the_text(model: Any) -> None:
    fact = Fact("I think {} is in", subject="The Eiffel Tower", target="Paris")
    labels = encode(model, fact, prepend_bos=False).labels
    assert "".join(labels).replace(" ", "") == fact.text.replace(" ", "")


def test_a_toy_fact_reads_as_its_text_with_its_answer(toy: Any, toy_record: Record) -> None:
    fact, decode = toy_record.fact, toy.tokenizer.decode
    encoded = encode(toy, fact, prepend_bos=True)
    assert is_smallest_span(toy, fact, encoded)
    prompt = encoded.tokens[1:].tolist()
    assert decode([*prompt, *encoded.answer]) == f"{fact.text} {fact.target}"
    assert decode([*prompt, *encoded.new_answer]) == f"{fact.text} {fact.new_target}"


def test_an_answer_is_the_tail_of_prompt_and_answer_tokenised_together(model: Any) -> None:
    for target in ("Paris", "New York", "The Eiffel Tower in Paris", "東京 🗼"):
        fact = Fact("{} is in", subject="The Eiffel Tower", target=target)
        plain = model.tokenizer(fact.text, add_special_tokens=False)["input_ids"]
        joint = model.tokenizer(f"{fact.text} {target}", add_special_tokens=False)["input_ids"]
        assert [*plain, *encode(model, fact).answer] == joint
        assert continuation(model, fact.text, target) == encode(model, fact).answer


def test_space_around_a_target_changes_no_token(model: Any) -> None:
    bare = Fact("{} is in", subject="The Louvre", target="Paris", new_target="New York")
    spaced = Fact("{} is in", subject="The Louvre", target=" Paris", new_target=" New York ")
    assert encode(model, bare).answer == encode(model, spaced).answer
    assert encode(model, bare).new_answer == encode(model, spaced).new_answer


def test_a_fact_without_new_target_has_no_new_answer(one_toy: Any) -> None:
    assert encode(one_toy, Fact("{} is in", subject="The Louvre", target="Paris")).new_answer == ()


def test_an_answer_of_several_words_has_the_tokens_of_each(built: Any) -> None:
    answer = encode(built, Fact("{} is in", subject="The Louvre", target="New York")).answer
    assert [built.tokenizer.decode([token]).strip() for token in answer] == ["New", "York"]


def test_an_answer_that_merges_with_the_prompt_is_refused(merging: Any) -> None:
    before = settings(merging)
    message = r"The answer 'web' shares a token with the end of the prompt '.*faq'.*'q w'"
    for words in ({"target": "web"}, {"target": "Paris", "new_target": "web"}):
        with pytest.raises(FactError, match=message):
            encode(merging, Fact("{} is a faq", subject="The Louvre", **words), prepend_bos=True)
    assert settings(merging) == before


def test_blank_words_and_white_space_before_an_answer_are_refused(one_toy: Any) -> None:
    for text, answer in (("", "Paris"), ("The ", "Paris"), ("The", ""), ("The", " ")):
        with pytest.raises(FactError, match="Both must contain words"):
            continuation(one_toy, text, answer)


def test_a_text_as_long_as_the_context_is_taken_and_one_token_more_refused(
    of_each_class: Any,
) -> None:
    model = of_each_class
    room = model.cfg.n_ctx - len(token_ids(model, "The"))
    fitting, longer = ("The" + " is" * count for count in (room, room + 1))
    assert len(token_ids(model, fitting)) == model.cfg.n_ctx
    n_ctx = model.cfg.n_ctx
    message = f"The text has {n_ctx + 1} tokens, the model's context only {n_ctx}: 'The is is"
    with pytest.raises(FactError, match=message):
        token_ids(model, longer)
    assert token_ids(model, longer, truncate=True) == token_ids(model, fitting)


def test_a_fact_longer_than_the_context_is_refused(one_toy: Any) -> None:
    n_ctx = one_toy.cfg.n_ctx
    with pytest.raises(FactError, match=f"the model's context only {n_ctx}"):
        encode(one_toy, Fact("{}" + " is" * n_ctx, subject="The Louvre", target="Paris"))


def test_an_empty_text_has_no_tokens(of_each_class: Any) -> None:
    assert token_ids(of_each_class, "", prepend_bos=True) == []


def test_a_model_without_tokenizer_is_refused(
    one_toy: Any, toy_record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_toy, "tokenizer", None)
    message = "The model has no tokenizer, which prompts and answers need"
    with pytest.raises(ModelError, match=message):
        encode(one_toy, toy_record.fact)


def test_a_tokenizer_without_offsets_is_refused(
    one_toy: Any, toy_record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(one_toy.tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match="gives no character offsets"):
        encode(one_toy, toy_record.fact)


def test_tokens_that_differ_by_more_than_leading_ones_are_refused(
    one_toy: Any, toy_record: Record, monkeypatch: pytest.MonkeyPatch
) -> None:
    to_tokens, eos = one_toy.to_tokens, torch.tensor([[one_toy.tokenizer.eos_token_id]])

    def with_eos(*args: Any, **options: Any) -> torch.Tensor:
        return torch.cat([to_tokens(*args, **options), eos], dim=1)

    monkeypatch.setattr(one_toy, "to_tokens", with_eos)
    with pytest.raises(ModelError, match="differ by more than leading special tokens"):
        encode(one_toy, toy_record.fact)


def settings(model: Any) -> dict[str, Any]:
    """What a call might leave changed."""
    tokenizer, cfg = model.tokenizer, model.cfg
    names = (
        "padding_side",
        "truncation_side",
        "model_max_length",
        "add_bos_token",
        "add_eos_token",
        "pad_token_id",
    )
    return {
        **{name: getattr(tokenizer, name, None) for name in names},
        "special": dict(tokenizer.special_tokens_map),
        "size": len(tokenizer),
        "default_prepend_bos": cfg.default_prepend_bos,
        "tokenizer_prepends_bos": cfg.tokenizer_prepends_bos,
        "n_ctx": cfg.n_ctx,
        "same": id(tokenizer),
    }


def test_no_setting_of_model_or_tokenizer_changes(
    of_each_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = of_each_class
    fact = Fact("{} is in", subject="New York", target="Paris", new_target="The")
    too_long = Fact("{}" + " is" * 70, subject="The", target="Paris")
    for padding_side in ("left", "right"):
        monkeypatch.setattr(model.tokenizer, "padding_side", padding_side)
        before = settings(model)
        for bos in (None, True, False):
            encode(model, fact, prepend_bos=bos)
            with pytest.raises(FactError):
                encode(model, too_long, prepend_bos=bos)
            token_ids(model, too_long.text, prepend_bos=bos, truncate=True)
        assert settings(model) == before


def test_rows_are_padded_on_the_right() -> None:
    padded = pad_right([[5], [6, 7, 8], [9, 9]], pad=4)
    assert padded.tolist() == [[5, 4, 4], [6, 7, 8], [9, 9, 4]]


def test_padding_on_the_right_changes_no_logit_before_it(toy: Any, toy_record: Record) -> None:
    rows = [
        encode(toy, toy_record.fact).tokens.tolist(),
        token_ids(toy, toy_record.neighborhood[0].prompt)[:4],
    ]
    with torch.no_grad():
        together = toy(pad_right(rows, pad=3))
        for row, logits in zip(rows, together, strict=True):
            torch.testing.assert_close(
                logits[: len(row)], toy(torch.tensor([row]))[0], atol=1e-5, rtol=1e-5
            )


JOINED = {  # a prompt, an answer, and the text that both make
    "words": ("The Louvre is in", "Paris", "The Louvre is in Paris"),
    "spaced answer": ("The Louvre is in", " Paris ", "The Louvre is in Paris"),
    "line break": ("The Louvre is in:\n", "Paris", "The Louvre is in:\nParis"),
    "no spaces": ("東京", "東", "東京東"),
    "open quote": ('It is "', "Paris", 'It is "Paris'),
    "hyphen": ("New-", "York", "New-York"),
}


def test_an_answer_continues_its_prompt_as_the_text_asks_for(model: Any) -> None:
    wrong = []
    for name, (prompt, answer, whole) in JOINED.items():
        start = token_ids(model, prompt, prepend_bos=False)
        if [*start, *continuation(model, prompt, answer)] != token_ids(
            model, whole, prepend_bos=False
        ):
            wrong.append(name)
    assert wrong == []


def test_every_function_joins_as_the_fact_says(one_toy: Any, toy_record: Record) -> None:
    """A trace, an edit, ``knows`` and the log probabilities read the same tokens."""
    fact = toy_record.fact
    glued = Fact(
        fact.prompt,
        subject=fact.subject,
        target=fact.target,
        new_target=fact.new_target,
        joiner="\n",
    )
    expected = token_ids(one_toy, f"{glued.text}\n{fact.target}", prepend_bos=False)
    encoded = encode(one_toy, glued)
    assert [*encoded.tokens.tolist()[1:], *encoded.answer] == expected
    log_p = rl.answer_log_probs(one_toy, [(glued.text, glued.target), (fact.text, fact.target)])
    assert log_p[0] < log_p[1] - 1
    assert rl.knows(one_toy, [glued, fact]) == [False, True]
    trace = rl.causal_trace(
        one_toy, glued, answer="whole", samples=1, layers=[0], require_correct=False
    )
    assert trace.clean == pytest.approx(float(log_p[0].exp()), rel=1e-4)
    rows = ContextRows.of(one_toy, glued, ["{}", "It rained. {}"], None)
    target = token_ids(one_toy, f"{glued.text}\n{fact.new_target}", prepend_bos=False)
    assert rows.target.tolist() == target[len(encoded.tokens) - 1 :]
    [evaluation] = rl.evaluate_all(one_toy, [None], [glued])
    assert evaluation.rows[0].target_before == pytest.approx(float(log_p[0].exp()), abs=1e-6)


def test_a_written_bos_is_used_once_with_a_warning(of_each_class: Any) -> None:
    model = of_each_class
    bos, text = model.tokenizer.bos_token, "The Louvre is in"
    plain = token_ids(model, text, prepend_bos=True)
    with pytest.warns(UserWarning, match="the model prepends this token itself"):
        assert token_ids(model, bos + text, prepend_bos=True) == plain
    assert token_ids(model, bos + text, prepend_bos=False).count(plain[0]) == 1
    fact = Fact(bos + "{} is in", subject="The Louvre", target="Paris")
    with pytest.warns(UserWarning, match="It is used once"):
        encoded = encode(model, fact, prepend_bos=True)
    expected = encode(model, Fact("{} is in", subject="The Louvre", target="Paris"))
    assert encoded.tokens.tolist() == expected.tokens.tolist()
    assert encoded.subject == expected.subject


def test_a_written_bos_does_not_stand_after_a_context(one_toy: Any, toy_record: Record) -> None:
    fact, bos = toy_record.fact, one_toy.tokenizer.bos_token
    written = Fact(bos + fact.prompt, subject=fact.subject, target="a", new_target="b")
    plain = Fact(fact.prompt, subject=fact.subject, target="a", new_target="b")
    contexts = ["{}", "It rained. {}"]
    with pytest.warns(UserWarning, match="It is used once"):
        rows = ContextRows.of(one_toy, written, contexts, True).rows
    assert rows == ContextRows.of(one_toy, plain, contexts, True).rows


def test_questions_that_are_no_pairs_of_texts_are_refused(one_toy: Any, unchecked: None) -> None:
    wrong: list[Any] = ["ab", ["ab"], [("a",)], [("a", "b", "c")], [("a", 3)], None, 3, {"a": "b"}]
    for questions in wrong:
        with pytest.raises(FactError, match="expected a list of pairs"):
            rl.answer_log_probs(one_toy, questions)
    with pytest.raises(FactError, match="There is no question"):
        rl.answer_log_probs(one_toy, [])


def test_half_a_character_is_refused_wherever_a_text_becomes_tokens(one_toy: Any) -> None:
    for call in (
        lambda: rl.answer_log_probs(one_toy, [("The Louvre is in", "\ud800")]),
        lambda: token_ids(one_toy, "\udfff"),
    ):
        with pytest.raises(FactError, match="half of a character"):
            call()


def test_a_text_of_bos_alone_is_one_token(one_toy: Any) -> None:
    bos = one_toy.tokenizer.bos_token
    for text in (bos, bos + bos):
        with pytest.warns(UserWarning, match="It is used once"):
            assert token_ids(one_toy, text) == [one_toy.tokenizer.bos_token_id]
    with pytest.warns(UserWarning, match="It is used once"):
        (best,) = rl.top_answers(one_toy, [bos], count=1)
    assert len(best.tokens) == 1


def test_a_bos_token_that_marks_turns_is_used_once_without_a_warning(one_toy: Any) -> None:
    bos = one_toy.tokenizer.bos_token
    text = f"{bos}user: Hi. {bos}model:"
    ids = token_ids(one_toy, text)  # a warning would be an error here
    assert ids == token_ids(one_toy, text, prepend_bos=False)
    assert ids.count(one_toy.tokenizer.bos_token_id) == 2
