"""What stands between a prompt and its answer: a space where one belongs, and nothing elsewhere."""

import copy
import pickle

import pytest

import rome_lens as rl
from rome_lens.data.facts import FactError
from rome_lens.data.joining import Prompt, joined, joiner_after, preceded
from rome_lens.data.record_type import Question, RecordError

SPACE = [
    "The Louvre is in the city of",
    "Paris, the capital of",
    "The answer:",
    "She was born in 1912 in",
    'The film "Titanic"',
    "The film “Titanic”",
    "Der Film „Titanic“",
    "(as we know)",
    "The capital of France -",
    "The capital of France —",
    "x =",
    "It costs 5 €",
    "the Beatles'",
    "He is 5'10\"",
    "They wrote it in C++",
    "They wrote it in C#",
    "<b>Paris</b>",
    "**Paris**",
    'The song "Hello, World!"',
    "He paid 50 ₽",
    "프랑스의 수도는",
    "Столица Франции",
    "عاصمة فرنسا هي",
]
NOTHING = [
    "法国的首都是",
    "フランスの首都は",
    "เมืองหลวงของฝรั่งเศสคือ",
    "法国的首都：",
    "法国的首都:",
    "法国的首都是“",
    "法国的首都“巴黎”",
    'She said "',
    "She said “",
    "She said '",
    "Elle a dit «",
    "Sie sagte „",
    'She said ("',
    "The capital (",
    "The city of Baden-",
    "The city—",
    "cats and/",
    "https://",
    "x=",
    "It costs $",
    "La capitale de l'",
    "La capitale de l’",
    "The capital is **",
    "<start_of_turn>model\n",
    "Question: where?\n\n",
    "<|assistant|>",
    '{"city":"',
    'He wrote "yes" and she wrote:"',
    '<a href="https://x.org">',
    "It costs ₹",
    "Write to john@",
    "ལྷ་ས་",
]


def test_the_end_of_the_prompt_decides_what_joins_it_and_its_answer() -> None:
    assert [text for text in SPACE if joiner_after(text) != " "] == []
    assert [text for text in NOTHING if joiner_after(text) != ""] == []


def test_a_fact_shows_its_joiner_and_passes_it_on() -> None:
    chinese = rl.Fact("{}的首都是", subject="法国", target="巴黎", new_target="罗马")
    assert (chinese.joiner, chinese.stated("罗马")) == ("", "法国的首都是罗马.")
    spaced = rl.Fact("{}的首都是", subject="法国", target="巴黎", joiner=" ")
    assert spaced.joiner == spaced.about("德国").joiner == " "
    assert spaced != rl.Fact("{}的首都是", subject="法国", target="巴黎")
    assert joined(spaced.text, "巴黎") == "法国的首都是 巴黎"
    # The subject may stand at the end, where it decides.
    capital = rl.Fact("The capital of {}", subject="Baden-", target="Baden")
    assert (capital.joiner, capital.about("France").joiner) == ("", " ")


def test_a_joiner_that_equals_the_default_changes_nothing() -> None:
    plain = rl.Fact("{} is in", subject="The Louvre", target="Paris")
    named = rl.Fact("{} is in", subject="The Louvre", target="Paris", joiner=" ")
    assert plain == named
    assert plain.about("L'").joiner == named.about("L'").joiner


def test_a_joiner_of_words_is_refused(unchecked: None) -> None:
    for joiner in ("the", " the ", 3, True):
        with pytest.raises(FactError, match="expected white space"):
            rl.Fact("{} is in", subject="The Louvre", target="Paris", joiner=joiner)  # type: ignore[arg-type]


def test_a_space_at_the_end_is_taken_only_where_the_joiner_is_named() -> None:
    with pytest.raises(FactError, match=r"ends in white space.*give joiner=''"):
        rl.Fact("{} is in ", subject="The Louvre", target="Paris")
    fact = rl.Fact("{} is in ", subject="The Louvre", target="Paris", joiner="")
    assert joined(fact.text, "Paris") == "The Louvre is in Paris"


def test_a_record_takes_prompts_that_end_in_a_line_break() -> None:
    fact = rl.Fact("{}:\n", subject="The Louvre", target="Paris", new_target="Rome")
    question = Question(prompt="Big Ben:\n", target="London")
    rl.data.Record(id=1, fact=fact, paraphrases=("The Louvre?\n",), neighborhood=(question,))
    with pytest.raises(RecordError, match="white space"):
        rl.data.Record(id=1, fact=fact, paraphrases=("The Louvre ",))


def test_a_prompt_keeps_its_joiner_behind_other_text_and_in_copies() -> None:
    prompt = Prompt("法国的首都是", " ")
    assert joined(preceded(prompt, "好。"), "巴黎") == "好。法国的首都是 巴黎"
    assert joined(preceded("法国的首都是", "So "), "巴黎") == "So 法国的首都是巴黎"
    for copied in (copy.deepcopy(prompt), pickle.loads(pickle.dumps(prompt))):
        assert (copied, copied.joiner) == (prompt, " ")


class Template:
    """What ``Fact.from_chat`` needs of a tokenizer."""

    chat_template = "a template"
    bos_token = "<s>"
    all_special_tokens = ("<s>", "<|assistant|>", "[/INST]")

    def __init__(self, ending: str = "<|assistant|>\n") -> None:
        self.ending = ending

    def apply_chat_template(
        self,
        messages: list[dict[str, str]],
        *,
        tokenize: bool,
        add_generation_prompt: bool,
        continue_final_message: bool,
    ) -> str:
        assert not tokenize
        text = self.bos_token + "".join(f"<|{m['role']}|>\n{m['content']}\n" for m in messages)
        if continue_final_message:
            return text.removesuffix("\n")
        return text + self.ending if add_generation_prompt else text


WHERE = {"subject": "the Louvre", "target": "Paris", "new_target": "Rome"}


def test_a_fact_from_a_chat_ends_where_the_answer_begins() -> None:
    fact = rl.Fact.from_chat(Template(), "Where is {}?", **WHERE)
    assert fact.text == "<|user|>\nWhere is the Louvre?\n<|assistant|>\n"
    assert fact.joiner == ""
    assert rl.Fact.from_chat(Template("[/INST]"), "Where is {}?", **WHERE).joiner == ""
    assert rl.Fact.from_chat(Template("Answer:"), "Where is {}?", **WHERE).joiner == " "


def test_a_chat_may_have_several_messages_and_a_begun_answer() -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is {}?"},
        {"role": "assistant", "content": "It is in"},
    ]
    fact = rl.Fact.from_chat(Template(), messages, **WHERE)
    assert fact.text.endswith("Where is the Louvre?\n<|assistant|>\nIt is in")
    assert fact.joiner == " "


def test_chats_without_one_slot_or_without_a_template_are_refused(unchecked: None) -> None:
    without = Template()
    without.chat_template = ""
    cases = [
        (without, "Where is {}?", "has no chat template"),
        (Template(), "Where is it?", "has 0 slots"),
        (Template(), "{} or {}?", "has 2 slots"),
        (Template(), [{"role": "user"}], "the chat template refuses them"),
        (Template(), [], "the chat template refuses them"),
        (Template(), None, "the chat template refuses them"),
        (None, "Where is {}?", "has no chat template"),
    ]
    for tokenizer, messages, message in cases:
        with pytest.raises(FactError, match=message):
            rl.Fact.from_chat(tokenizer, messages, **WHERE)  # type: ignore[arg-type]


def test_a_token_for_the_beginning_of_a_text_stays_at_the_beginning() -> None:
    sentence = "The Louvre is in Rome. "
    for bos in ("<bos>", "<s>", "<|endoftext|>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>"):
        expected = f"{bos}{sentence}Big Ben is in"
        assert preceded(f"{bos}Big Ben is in", sentence) == expected
        assert preceded(f"{bos}Big Ben is in", bos + sentence) == expected
        assert preceded("Big Ben is in", bos + sentence) == expected
    # One that marks the turns of a chat does not begin the text.
    assert preceded("<|im_start|>user", "Hi. ") == "Hi. <|im_start|>user"


def test_a_chat_keeps_a_bos_token_that_marks_its_turns() -> None:
    turns = Template("<s>assistant\n")
    assert rl.Fact.from_chat(turns, "Where is {}?", **WHERE).text.startswith("<s><|user|>")
