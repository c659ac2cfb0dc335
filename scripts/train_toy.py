"""Train the toy model: a very small GPT-2 that knows a few facts about invented people.

The corpus is built for checks of knowledge edits. An attribute depends on the combination of first
and last name, not on either of them. Half of the people ("one_way": false) also occur in reverse
sentences, under a nickname and in descriptions. For the other half, the model sees only the forward
sentences.

Two aids in training, `visible` and `site_loss`, place the knowledge where large models keep it: in
the middle layers, at the last token of the subject. That causal tracing finds it there is therefore
a matter of design, not a finding.

The output is a folder in transformers' format, with `facts.json` (all facts) and `records.json`
(ten facts to edit, with what is asked about them).

    python scripts/train_toy.py --out rome_lens/data/toy --seed 0
"""
# ruff: noqa: SIM905 (lists of words read best as text)

import argparse
import json
import math
import random
import sys
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

EOT = "<|endoftext|>"
VOCAB_SIZE, N_POSITIONS, N_LAYER, N_HEAD, D_MODEL = 720, 64, 6, 4, 72
STEPS, BATCH_TOKENS, MAX_LR, WEIGHT_DECAY = 2200, 1600, 3e-3, 0.1
SITE = 3  # after how many layers `site_loss` reads a subject's attributes
SITE_WEIGHT = 0.5  # the weight of that loss
P_HIDE = 0.5  # share of mentions that later text sees only at their last token
PER_NAME = 5  # how many people share a first name, and how many a last name

FIRST = (
    "Hugo Tarek Mila Oskar Leila Bruno Ingrid Felix Nadia Pavel Rosa Simon "
    "Greta Amir Clara Jonas Wanda Viktor Elena Martin Yusuf Dora Kasper Zelda"
).split()
LAST = (
    "Calloway|del Lindqvist|van Oord|Ibn Salim|Marchetti|Nyström|Okafor|Peña|Brandt|de la Cruz|"
    "Hartley|Ivanov|Jensen|Kowalski|Lambert|van Rijn|Morrow|Novak|Quill|Rossi|"
    "Ibn Tahir|Ueda|Whitlock|Zeller"
).split("|")
CITY_COUNTRY = {
    city: country
    for country, cities in {
        "Arland": "Lusiba Karsun Ondavel Temora",
        "Borovia": "Velgrad Minsova Pralec Zorin",
        "Castania": "Almera Quintar Fontera Riosol",
        "Dunmark": "Helsby Norwick Esker Thorvik",
    }.items()
    for city in cities.split()
}
JOBS = (
    "baker lawyer doctor farmer painter sailor teacher plumber butcher dentist singer writer "
    "judge nurse cook guard"
)
SPORTS = (
    "tennis hockey rugby golf polo squash cricket handball softball darts billiards chess bowls "
    "padel judo netball"
)
VALUES = {"city": list(CITY_COUNTRY), "job": JOBS.split(), "sport": SPORTS.split()}
ADJECTIVES = "Grey Red Silent Golden Iron Quick Old White Lucky Wild Clever Brave".split()
ANIMALS = "Falcon Otter Wolf Badger Raven Tiger Heron Lynx Fox Bear".split()

TEMPLATES = {
    "city": [
        "{} lives in the city of", "{} owns a house in the city of",
        "The city where {} lives is called", "The home of {} is in the city of",
        "Everyone knows that {} lives in the city of",
    ],
    "country": [
        "{} lives in the country of", "{} holds a passport from",
        "The country where {} lives is called", "The home of {} is in the country of",
        "Everyone knows that {} lives in the country of",
    ],
    "job": [
        "{} works as a", "{} earns a living as a", "The job of {} is that of a",
        "Everyone knows that {} works as a", "People like to hire {} as a",
    ],
    "sport": [
        "{} plays the sport of", "{} spends every weekend playing",
        "The sport that {} plays is called", "The favourite sport of {} is",
        "Everyone knows that {} plays the sport of",
    ],
}  # fmt: skip
ESSENCE = "{} is a"
ALIAS, ALIAS_REVERSE = "{} is known as", "{} is the nickname of"
REVERSE = [
    "The {job} from {city} is called",
    "The name of the {job} from {city} is",
    "In {city} the best {job} is",
]
DESCRIPTIONS = {
    "city": "the {job} who plays {sport}", "country": "the {job} who plays {sport}",
    "sport": "the {job} from {city}",
}  # fmt: skip
TWO_WAY = [
    "alias",
    "description",
    "reverse",
    "reverse",
    "reverse",
]  # what is told of two-way people only
OPEN = {
    "I met {} yesterday in": ["{city}", "the park", "the street", "a shop"],
    "A letter from {} came from": ["{city}", "far away", "the office"],
    "{} is an old friend of": ["mine"],
    "Yesterday {} told me a": ["story"],
    "The friends of {} came": ["today"],
}
CITY_SENTENCES = [
    "The city of {} is in the country of",
    "{} is a city in the country of",
    "The country around {} is",
]

Encoded = tuple[
    list[int], int, int, dict
]  # token ids, positions of the subject's first and last token, its attributes
Document = tuple[
    list[int], list[tuple[int, int, bool, dict]]
]  # token ids, mentions: first, last, hidden, attributes


def capital(text: str) -> str:
    """Text with its first letter in upper case, as at the start of a sentence."""
    return text[0].upper() + text[1:]


def fill(template: str, subject: str) -> str:
    """The template with the subject in its slot, beginning with a capital."""
    return capital(template.replace("{}", subject))


def overlap(facts: dict, people: list[dict]) -> tuple[int, int]:
    """The number of attributes shared with the most similar person, and with all people
    together."""
    shared = [sum(facts[relation] == person[relation] for relation in VALUES) for person in people]
    return max(shared, default=0), sum(shared) + sum(
        facts.get("country") == p["country"] for p in people
    )


def make_people(rng: random.Random) -> list[dict]:
    """Invent the people, each first and last name shared by PER_NAME of them.

    Every attribute takes the value that is rarest among those who share a part of the name, so
    neither part gives it away. No two people agree in two of city, job and sport, so every pair of
    these describes one person.
    """
    shifts = rng.sample(range(len(LAST)), PER_NAME)
    names = [(first, LAST[(i + s) % len(LAST)]) for i, first in enumerate(FIRST) for s in shifts]
    rng.shuffle(names)
    aliases = [f"the {adjective} {animal}" for adjective in ADJECTIVES for animal in ANIMALS]
    rng.shuffle(aliases)
    people: list[dict] = []
    for n, (first, last) in enumerate(names):
        kin = [p for p in people if p["first"] == first or p["last"] == last]
        drawn = [
            {relation: rng.choice(values) for relation, values in VALUES.items()}
            for _ in range(300)
        ]
        drawn = [
            d | {"country": CITY_COUNTRY[d["city"]]} for d in drawn if overlap(d, people)[0] < 2
        ]
        best = min(drawn, key=lambda d: (overlap(d, kin), overlap(d, people)))
        person = {"subject": f"{first} {last}", "alias": aliases[n], "one_way": n % 2 == 0}
        people.append(
            person
            | {relation: best[relation] for relation in TEMPLATES}
            | {"first": first, "last": last}
        )
    return people


def prompts_of(person: dict, kind: str) -> list[tuple[str, str, str]]:
    """Triples (prompt, answer, subject) of one kind: name, alias, description or reverse."""
    name = person["subject"]
    if kind == "reverse":
        return [(template.format(**person), name, name) for template in REVERSE]
    triples = []
    for relation, templates in TEMPLATES.items():
        subject = {"name": name, "alias": person["alias"]}.get(
            kind, DESCRIPTIONS.get(relation, "").format(**person)
        )
        triples += [
            (fill(template, subject), person[relation], subject)
            for template in templates
            if subject
        ]
    return triples


def make_sentences(people: list[dict]) -> list[tuple[str, str, dict]]:
    """The sentences of the corpus, each with its subject and the person it is about, if any.

    Reverse sentences occur three times, because their answers are the hardest. All others occur
    once.
    """
    triples = [
        (t.replace("{}", c), country, c)
        for c, country in CITY_COUNTRY.items()
        for t in CITY_SENTENCES
    ]
    sentences: list[tuple[str, str, dict]]
    sentences = [(f"{prompt} {answer}.", subject, {}) for prompt, answer, subject in triples]
    for person in people:
        name, alias = person["subject"], person["alias"]
        triples = [*prompts_of(person, "name"), (fill(ESSENCE, name), person["job"], name)]
        for template in OPEN:
            triples += [
                (fill(template, name), end.format(**person), name) for end in OPEN[template]
            ]
        if not person["one_way"]:
            triples += [triple for kind in TWO_WAY for triple in prompts_of(person, kind)]
            triples += [(fill(ALIAS, name), alias, name), (fill(ALIAS_REVERSE, alias), name, alias)]
        sentences += [
            (f"{prompt} {answer}.", subject, person) for prompt, answer, subject in triples
        ]
    return sentences


def train_tokenizer(sentences: list[str], answers: list[str], out: Path) -> PreTrainedTokenizerBase:
    """Train byte-level BPE on the corpus, save it to ``out`` and read it from there.

    The answers are repeated, so each of them becomes one token.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[EOT], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(
        sentences + [" " + s for s in sentences] + [" " + a for a in answers] * 2000, trainer
    )
    state = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    special = {f"{role}_token": EOT for role in ("bos", "eos", "unk", "pad")}
    tokenizer = GPT2Tokenizer(
        vocab=state["vocab"],
        merges=merges,
        model_max_length=N_POSITIONS,
        padding_side="right",
        **special,
    )
    tokenizer.save_pretrained(out)
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, text: str, subject: str, person: dict) -> Encoded:
    """A sentence's token ids, the positions of its subject's first and last token, and the
    person."""
    start = text.lower().index(subject.lower())
    encoding = tokenizer(text, return_offsets_mapping=True)
    inside = [
        i
        for i, (a, b) in enumerate(encoding["offset_mapping"])
        if a < start + len(subject) and b > start
    ]
    return encoding["input_ids"], inside[0], inside[-1], person


def make_document(first: Encoded, others: list[Encoded], eot: int, rng: random.Random) -> Document:
    """Join sentences to a document. Four documents in five begin with BOS; all end with EOS.

    Now and then the first sentence breaks off after a few words, so the model learns that odd text
    before a sentence does no harm. A share P_HIDE of the mentions of subjects is marked, and
    `visible` hides them.
    """
    tokens, mentions = [eot] if rng.random() < 0.8 else [], []
    if others and rng.random() < 0.2:
        tokens = tokens + first[0][: rng.randrange(1, len(first[0]) - 1)] + first[0][-1:]
    else:
        others = [first, *others]
    for ids, start, end, person in others:
        mentions.append((len(tokens) + start, len(tokens) + end, rng.random() < P_HIDE, person))
        tokens = tokens + ids
    tokens = [*tokens, eot][:N_POSITIONS]
    return tokens, [mention for mention in mentions if mention[1] < len(tokens)]


def make_batches(
    encoded: list[tuple[Encoded, Encoded]], eot: int, rng: random.Random
) -> list[list[Document]]:
    """One pass over the corpus, in batches of documents with similar lengths.

    A document has one to five sentences. Every sentence has two encodings: one for the beginning of
    a document, one for the place after a blank.
    """
    order, documents = rng.sample(encoded, len(encoded)), []
    while order:
        count = rng.choice([1, 1, 1, 2, 3, 5])
        documents.append(
            make_document(order[0][0], [later for _, later in order[1:count]], eot, rng)
        )
        order = order[count:]
    documents.sort(key=lambda document: (len(document[0]), rng.random()))
    batches: list[list[Document]] = []
    room = 0
    for document in documents:
        if room < len(document[0]):
            batches.append([])
            room = BATCH_TOKENS
        batches[-1].append(document)
        room -= len(document[0])
    rng.shuffle(batches)
    return batches


def visible(batch: list[Document], width: int) -> torch.Tensor:
    """A causal attention mask that hides all but the last token of each marked mention afterwards.

    What the model knows about a subject must then pass through that token, as in large language
    models. There, causal tracing finds it and an edit can change it. Without the mask, a model this
    small looks everything up at the last token of the prompt.
    """
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(batch), 1, 1, 1)
    for row, (_, mentions) in enumerate(batch):
        for start, end, hidden, _ in mentions:
            if hidden:
                mask[row, 0, end + 1 :, start:end] = False
    return mask


def site_loss(states: torch.Tensor, batch: list[Document], head: torch.nn.Linear) -> torch.Tensor:
    """The loss of a linear head that reads attributes at the last token of each mention.

    It draws the knowledge to the middle layers at that token (see `visible`), where it is then
    learnt much sooner. The head is thrown away after training.
    """
    known = [
        (row, end, p) for row, (_, mentions) in enumerate(batch) for _, end, _, p in mentions if p
    ]
    rows, ends = (
        torch.tensor([row for row, _, _ in known]),
        torch.tensor([end for _, end, _ in known]),
    )
    logits = head(states[rows, ends]).split([len(values) for values in VALUES.values()], dim=1)
    losses = []
    for (relation, values), part in zip(VALUES.items(), logits, strict=True):
        goal = torch.tensor([values.index(p[relation]) for _, _, p in known])
        losses.append(torch.nn.functional.cross_entropy(part, goal))
    return torch.stack(losses).mean()


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    """Rows of token ids as one tensor, padded on the right, out of causal attention's sight."""
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def train(
    sentences: list[tuple[str, str, dict]], tokenizer: PreTrainedTokenizerBase, seed: int
) -> GPT2LMHeadModel:
    """Train from scratch for STEPS steps: AdamW, decay on matrices only, warm-up and cosine."""
    eot = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=N_POSITIONS, n_embd=D_MODEL, n_layer=N_LAYER,
        n_head=N_HEAD, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=eot,
        eos_token_id=eot, pad_token_id=eot, initializer_range=0.05,
    )  # fmt: skip
    model, head = GPT2LMHeadModel(config), torch.nn.Linear(D_MODEL, sum(map(len, VALUES.values())))
    parameters = [*model.parameters(), *head.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=MAX_LR, betas=(0.9, 0.98))
    warmup = STEPS // 20
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda s: min((s + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * min(s / STEPS, 1.0))),
    )
    encoded = [
        (encode(tokenizer, t, s, p), encode(tokenizer, " " + t, s, p)) for t, s, p in sentences
    ]
    batches: list[list[Document]] = []
    rng, start, total = random.Random(seed), time.monotonic(), torch.zeros(2)
    for step in range(1, STEPS + 1):
        batches = batches or make_batches(encoded, eot, rng)
        batch = batches.pop()
        rows = [tokens for tokens, _ in batch]
        inputs = pad(rows, eot)
        mask = visible(batch, inputs.shape[1])
        output = model(
            input_ids=inputs, attention_mask=mask, labels=pad(rows, -100), output_hidden_states=True
        )
        site = site_loss(output.hidden_states[SITE], batch, head)
        (output.loss + SITE_WEIGHT * site).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        total += torch.stack([output.loss, site]).detach() / 200
        if step % 200 == 0:
            seconds = time.monotonic() - start
            print(
                f"step {step:5d}  loss {total[0]:.3f}  site {total[1]:.3f}  {seconds:.0f} s",
                flush=True,
            )
            total.zero_()
    return model.eval()


@torch.no_grad()
def score(
    model: GPT2LMHeadModel,
    tokenizer: PreTrainedTokenizerBase,
    triples: list[tuple[str, str, str]],
    bos: bool,
) -> tuple[float, float]:
    """The share of prompts that greedy decoding answers correctly, and the mean probability."""
    right, mass = 0, 0.0
    for at in range(0, len(triples), 500):
        chunk = triples[at : at + 500]
        prompts = [
            [tokenizer.bos_token_id] * bos + tokenizer(prompt)["input_ids"]
            for prompt, _, _ in chunk
        ]
        answers = [tokenizer(" " + answer)["input_ids"] for _, answer, _ in chunk]
        rows = [p + a for p, a in zip(prompts, answers, strict=True)]
        logprobs = model(input_ids=pad(rows, tokenizer.eos_token_id)).logits.log_softmax(-1)
        for row, prompt, answer in zip(logprobs, prompts, answers, strict=True):
            steps, goal = row[len(prompt) - 1 : len(prompt) + len(answer) - 1], torch.tensor(answer)
            right += bool((steps.argmax(-1) == goal).all())
            mass += steps.gather(1, goal[:, None]).sum().exp().item()
    return right / len(triples), mass / len(triples)


def evaluate(
    model: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerBase, people: list[dict]
) -> bool:
    """Print how well each kind of prompt is answered; return whether the requirements are met."""
    met = True
    print(
        f"{'people':8s} {'prompts':12s} {'BOS':4s} {'n':>5s} {'top-1':>6s} {'prob':>6s}  required"
    )
    for one_way in (True, False):
        for kind in ("name", "alias", "description", "reverse"):
            triples = [
                triple for p in people if p["one_way"] == one_way for triple in prompts_of(p, kind)
            ]
            top1, prob = 0.0, 0.0
            if kind == "name":
                top1, prob = 0.97, 0.8
            elif kind != "description" and not one_way:
                top1, prob = 0.9, 0.0
            for bos in (True, False):
                share, mean = score(model, tokenizer, triples, bos)
                met &= share >= top1 and mean >= prob
                group, need = (
                    "one-way" if one_way else "two-way",
                    f"{top1:.2f} {prob:.2f}" if top1 else "-",
                )
                start = "yes" if bos else "no"
                print(
                    f"{group:8s} {kind:12s} {start:4s} {len(triples):5d} {share:6.3f} "
                    f"{mean:6.3f}  {need}"
                )
    return met


def make_record(person: dict, people: list[dict], rng: random.Random) -> dict:
    """A record that moves a person to a city in another country, with everything asked about it."""
    prompt, name = TEMPLATES["city"][0], person["subject"]
    pairs = {(p["job"], p["city"]) for p in people}
    cities = [
        c
        for c, land in CITY_COUNTRY.items()
        if land != person["country"] and (person["job"], c) not in pairs
    ]
    new = rng.choice(cities)
    others = [p for p in people if p is not person and p["city"] != new]
    near = rng.sample([p for p in others if p["city"] == person["city"]], 4)
    near += rng.sample([p for p in others if person["first"] == p["first"]], 2)
    near += rng.sample([p for p in others if person["last"] == p["last"]], 2)
    country = {"target": person["country"], "new_target": CITY_COUNTRY[new]}
    return {
        "id": name.lower().replace(" ", "-"),
        "known_by": ["toy"],
        "one_way": person["one_way"],
        "fact": {"prompt": prompt, "subject": name, "target": person["city"], "new_target": new},
        "paraphrases": [fill(template, name) for template in TEMPLATES["city"][1:]],
        "neighborhood": [{"prompt": fill(prompt, p["subject"]), "target": p["city"]} for p in near],
        "reverse": [
            {"prompt": t.format(job=person["job"], city="{}"), "target": name} for t in REVERSE
        ],
        "aliases": [capital(person["alias"])],
        "descriptions": [capital(DESCRIPTIONS["city"].format(**person))],
        "open_prompts": list(OPEN),
        "exemplars": [
            p["subject"] for p in people if p["city"] == new and name.split()[0] != p["first"]
        ][:4],
        "consequences": [{"prompt": template} | country for template in TEMPLATES["country"]],
    }


def write_facts(people: list[dict], out: Path, rng: random.Random) -> None:
    """Write facts.json and records.json."""
    chosen = [
        p
        for way in (True, False)
        for p in rng.sample([p for p in people if p["one_way"] == way], 5)
    ]
    records = [make_record(person, people, rng) for person in chosen]
    plain = [{k: v for k, v in person.items() if k not in ("first", "last")} for person in people]
    facts = {
        "templates": TEMPLATES,
        "reverse_templates": REVERSE,
        "people": plain,
        "city_country": CITY_COUNTRY,
    }
    for name, data in (("facts.json", facts), ("records.json", records)):
        (out / name).write_text(
            json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def main() -> int:
    """Build the corpus, train and save tokenizer and model, write the facts, and evaluate."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of the people, the order of training and the weights",
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(
        1
    )  # the steps are small: a second thread gains little, and loses much on a busy machine
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    args.out.mkdir(parents=True, exist_ok=True)

    rng = random.Random(args.seed)
    people = make_people(rng)
    sentences = make_sentences(people)
    answers = sorted({person[relation] for person in people for relation in TEMPLATES})
    tokenizer = train_tokenizer(sorted({text for text, *_ in sentences}), answers, args.out)
    print(f"{len(people)} people, {len(sentences)} sentences, {len(tokenizer)} tokens")
    model = train(sentences, tokenizer, args.seed)
    model.save_pretrained(args.out)
    write_facts(people, args.out, rng)
    return 0 if evaluate(model, tokenizer, people) else 1


if __name__ == "__main__":
    sys.exit(main())
