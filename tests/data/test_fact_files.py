"""Files of facts: three shapes are read, and wrong files are refused with what they lack."""

import json
from typing import Any

import pytest

import rome_lens as rl
from rome_lens.data.facts import FactError

SHAPES = {
    "ours": {"prompt": "{} is in", "subject": "Paris", "target": "France", "new_target": "Italy"},
    "known_1000": {
        "prompt": "Paris is in",
        "subject": "Paris",
        "attribute": "France",
        "known_id": 3,
    },
    "counterfact": {
        "case_id": 1,
        "requested_rewrite": {
            "prompt": "{} is in",
            "subject": "Paris",
            "target_true": {"str": "France"},
            "target_new": {"str": "Italy"},
        },
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_fact_files_are_read(tmp_path: Any, shape: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([SHAPES[shape]]))
    (fact,) = rl.read_facts(path)
    new_target = None if shape == "known_1000" else "Italy"
    assert fact == rl.Fact("{} is in", subject="Paris", target="France", new_target=new_target)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not JSON"),
        ("[]", "no facts"),
        ("{}", "no facts"),
        (
            '[{"prompt": "{} is in", "subject": "Paris", "target": "France"}, {"prompt": "{} is"}]',
            "Fact 1 .* lacks",
        ),
        ("[3]", "Fact 0 .* lacks"),
        (
            '[{"prompt": "Rome is in", "subject": "Paris", "attribute": "France"}]',
            "Fact 0 .*'Paris' is not in",
        ),
        ('[{"prompt": "{} is in", "subject": "", "target": "France"}]', "Fact 0 .*is empty"),
    ],
)
def test_a_wrong_fact_file_is_refused(tmp_path: Any, content: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(content)
    with pytest.raises(FactError, match=message):
        rl.read_facts(path)
