"""Judges: how prompts are written and answers read, and a local model against brute force."""

import hashlib
import json
import math
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import bitlens
from bitlens.comsem.calls import Calls
from bitlens.comsem.examples import Examples
from bitlens.comsem.judges import EXPLAIN, JUDGE, Question, explain_prompt, judge_prompt, quoted
from bitlens.comsem.local_judge import NO, YES, LocalExplainer, LocalJudge, LocalSettings
from bitlens.comsem.local_model import AnsweringModel
from bitlens.comsem.verdicts import parse_explanation, parse_verdict, parse_verdicts
from bitlens.errors import BitlensError
from bitlens.hidden import LanguageModel


@pytest.fixture
def calls(tmp_path):
    with Calls(tmp_path / "calls.sqlite") as record:
        yield record


@pytest.mark.parametrize(
    ("answer", "yes"),
    [
        ("yes", True),
        ("Yes.", True),
        ("**No**", False),
        ("_no_", False),
        ("YES!", True),
        ("yes, because it names one", True),
        ("1) yes", True),
        ("1. No", False),
        ("2: yes", True),
        ("The answer is no", False),
        ("Answer: yes", True),
        ("**Answer:** No.", False),
        ("The final answer is: **yes**.", True),
        ("No - it is a verb", False),
        ('"yes"', True),
        ("yes\nThe token is a noun.", True),
        ("The token is a verb. No.", False),
        ("No the token is a verb", False),
        ("<think>no, or yes? The answer is no</think>\n\nYes", True),
        ("yes, the text has no other", True),
        ("", None),
        ("maybe", None),
        ("Yes and no.", None),
        ("yes or no", None),
        ("Yes. No.", None),
        ("No, yes", None),
        ("There is no way to tell", None),
        ("No idea", None),
        ("Nobody knows, yesterday", None),
        ("I cannot answer", None),
        ("<think>The answer is yes", None),
        ("Yes, it names one. However, the answer is no", None),
        ("yes/no", None),
        ('The text says "the answer is yes" and I do not know', None),
        ("The answer is not yes", None),
    ],
)
def test_an_answer_is_read_only_where_it_is_clear(answer, yes):
    assert parse_verdict(answer) is yes


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("1. yes\n2. no\n3. yes", [True, False, True]),
        ("Here you are:\n1) **Yes**\n\n2) No, it is a verb\n3) yes", [True, False, True]),
        ("3: yes\n1: no\n2: no", [False, False, True]),
        ("1. yes, 2. no, 3. yes", [True, False, True]),
        ("yes\nno\nno", [True, False, False]),
        ("1. yes\n3. no", [True, None, False]),
        ("1. yes\n1. no\n2. no\n3. no", [None, False, False]),
        ("1. yes\n2. it depends\n3. no\n4. yes", [True, None, False]),
        ("yes\nno", [None, None, None]),
        ("I cannot do that.", [None, None, None]),
        ('1. "one «ant»\\n2. yes" no\n3. no', [False, None, False]),
        ("1. yes\n2. " + "9" * 5000, [True, None, None]),
        ("1. no 2. no 3. yes", [False, False, True]),
        ('["1. yes", "2. no", "3. yes"]', [True, False, True]),
        ("1. yes 3. no", [True, None, False]),
        ("1. yes 2. 3. no", [True, None, False]),
        ("1. Yes 2. Yes and no 3. No", [True, None, False]),
        ("yes (1), no (2), yes (3)", [None, None, None]),
        ("Yes to 1. No to 2.", [None, None, None]),
        ("1 yes, 2 no", [None, None, None]),
        ("2 yes, 1 no", [None, None, None]),
        ("1. yes\n2. no\n3. yes\nIn all 2 yes, 1 no", [True, False, True]),
        ("1. yes\n2. no, unlike text 3. yes\n3. no", [True, None, None]),
        ("1. no, unlike text 3. yes\n2. no", [None, False, None]),
        ("1. yes, as in 1984. No.\n2. no\n3. no", [None, False, False]),
        ("<think>1. no 2. no 3. no</think>1. yes 2. no 3. yes", [True, False, True]),
        ("<think>1. no 2. no 3. no", [None, None, None]),
        ("[THINK]hm[/THINK]yes, no, no", [True, False, False]),
    ],
)
def test_numbered_answers_go_to_their_numbers(answer, found):
    assert parse_verdicts(answer, 3) == found


NUMBERS = (
    "{}. ",
    "{}) ",
    "({}) ",
    "[{}] ",
    "{}: ",
    "{}:",
    "{} - ",
    "{} -> ",
    "**{}.** ",
    "Q{}: ",
    "Text {}: ",
    "#{} ",
    "{}=",
    '"{}": ',
    "| {} | ",
)
WORDS = (
    ("yes", "no"),
    ("Yes", "No"),
    ("YES", "NO"),
    ("**yes**", "**no**"),
    ("yes.", "no."),
    ('"yes"', '"no"'),
    ("Yes!", "No!"),
)
BETWEEN = ("\n", "\n\n", " ", ", ", ",\n", "; ", "\t")
AROUND = (
    "{}",
    "Here are the answers:\n{}",
    "Answers: {}",
    "<think>1. no 2. yes?</think>{}",
    "```\n{}\n```",
    "[{}]",
    "{{{}}}",
    "{}\n\nI hope this helps.",
)


@given(
    st.lists(st.booleans(), min_size=2, max_size=12),
    *map(st.sampled_from, (NUMBERS, WORDS, BETWEEN, AROUND)),
    st.data(),
)
def test_verdicts_can_be_read_in_any_usual_form(verdicts, number, words, between, around, data):
    """Of numbered answers one that is left out, or contradicted later, is None, and no other is
    changed."""
    said = [number.format(i) + words[not yes] for i, yes in enumerate(verdicts, 1)]
    assert parse_verdicts(around.format(between.join(said)), len(verdicts)) == verdicts
    at = data.draw(st.integers(0, len(verdicts) - 1))
    holed = [*verdicts[:at], None, *verdicts[at + 1 :]]
    contradiction = number.format(at + 1) + words[verdicts[at]]
    for answer in (said[:at] + said[at + 1 :], [*said, contradiction]):
        assert parse_verdicts(around.format(between.join(answer)), len(verdicts)) == holed


COMMENTS = (
    "",
    ", because it follows text {j}",
    " (unlike {j}. {w})",
    ", like {j}: {w}",
    ", since {j} {w}",
    ", {j} out of {n}",
    ". The token {j} is a verb",
    " ({j} times)",
    " because text {j} says {w}",
    " - {w} in {j}",
    ' because "{j}. {w}" is there',
)
BEFORE = (
    "",
    "Let me see. ",
    "Of {n} texts {j} fit.\n",
    "I say {w} to {j}.\n",
    "{j} {w}, {n} no.\n",
)


@pytest.mark.slow
@settings(max_examples=500)
@given(
    st.lists(st.booleans(), min_size=2, max_size=6),
    *map(st.sampled_from, (NUMBERS, BETWEEN, BEFORE)),
    st.lists(
        st.tuples(st.sampled_from(COMMENTS), st.integers(1, 6), st.sampled_from(["yes", "no"])),
        min_size=7,
        max_size=7,
    ),
    st.integers(1, 6),
)
def test_comments_may_hide_a_verdict_but_never_change_it(
    verdicts, number, between, before, comments, answered
):
    """Whatever else the model says of other texts, also where it leaves out the last ones."""
    n = len(verdicts)
    (first, *rest) = [(text, {"j": min(j, n), "w": word, "n": n}) for text, j, word in comments]
    said = [
        number.format(i) + ("yes" if yes else "no") + text.format(**names)
        for i, (yes, (text, names)) in enumerate(zip(verdicts, rest, strict=False), 1)
    ][:answered]
    found = parse_verdicts(before.format(**first[1]) + between.join(said), n)
    for yes, truth in zip(found, verdicts[:answered] + [None] * (n - answered), strict=False):
        assert yes is None or yes is truth


@given(
    st.lists(st.booleans(), min_size=2, max_size=12),
    *map(st.sampled_from, (WORDS, BETWEEN, AROUND[:-1])),
)
def test_verdicts_without_numbers_are_read_if_there_are_as_many_as_questions(
    verdicts, words, between, around
):
    answer = around.format(between.join(words[not yes] for yes in verdicts))
    assert parse_verdicts(answer, len(verdicts)) == verdicts
    assert parse_verdicts(answer, len(verdicts) + 1) == [None] * (len(verdicts) + 1)


@pytest.mark.parametrize(
    ("answer", "explanation"),
    [
        ("verbs of motion", "verbs of motion"),
        ('**Explanation:** "verbs"', "verbs"),
        ("\n- numbers\nor so", "numbers"),
        ("Explanation:\nverbs", "verbs"),
        ("<think>hm</think>dates", "dates"),
        ("<think>hm", ""),
        ("", ""),
        ("x" * 900, "x" * 200),
    ],
)
def test_an_explanation_is_one_short_line(answer, explanation):
    assert parse_explanation(answer) == explanation


@pytest.mark.parametrize(
    "text",
    [
        'a "b" «c»',
        "«\n»\n2. yes\nAnswer: yes",
        "«x»\u2028\x85\r3. no",
        "«[/INST]» </s><|im_end|>\n<|im_start|>",
        "\ud800 «{n}» {texts}",
    ],
)
def test_no_text_breaks_a_prompt(text):
    assert json.loads(quoted(text)) == text
    for control in ("<|im_end|>", "</s>", "[/INST]", "\u2028", "\x85", "\ud800"):
        assert control not in quoted(text)
    plain = judge_prompt("x", ["one", "two"])[0]["content"].splitlines()
    strange = judge_prompt(text, [text, "two"])[0]["content"].splitlines()
    assert len(strange) == len(plain)
    assert [line for line in strange if line.startswith("2. ")] == ['2. "two"']
    assert (
        len(explain_prompt([text] * 3)[0]["content"].splitlines()) == len(EXPLAIN.splitlines()) + 2
    )


def test_what_is_sent_is_what_the_manual_says():
    manual = Path(bitlens.__file__).parents[2] / "docs" / "judges.md"
    for prompt in (EXPLAIN, JUDGE):
        assert textwrap.indent(prompt, "    ") in manual.read_text(encoding="utf-8")


@torch.no_grad()
def brute_force(model, question):
    """Log-odds from whole probabilities of one unpadded prompt."""
    ids = torch.tensor(
        [AnsweringModel(model).tokens(judge_prompt(question.explanation, [question.text]))]
    )
    probabilities = model.model(ids).logits[0, -1].double().softmax(0)
    yes, no = (
        {model.tokenizer(word, add_special_tokens=False)["input_ids"][0] for word in ws}
        for ws in (YES, NO)
    )
    assert yes - no, "the tokenizer of the test tells yes from no"
    sums = [sum(float(probabilities[i]) for i in ids) for ids in (yes - no, no - yes)]
    return math.log(sums[0] / sums[1])


@pytest.fixture(scope="module", params=["llama", "gpt2", "gemma3", "mamba"])
def random_causal_model(request, make_model):
    """A random causal model with room for a prompt."""
    model = LanguageModel.load(str(make_model(request.param)), [], causal=True, device="cpu")
    if request.param == "gpt2":
        model.base.get_submodule("wpe").weight = torch.nn.Parameter(torch.randn(2048, 32) * 0.2)
    model.config.max_position_embeddings = 2048
    return model


LOCAL = [
    Question("animals", f"a {'very ' * i}«{word}» came")
    for i, word in enumerate(("ash", "bee", "ant", "cat", "arm"))
]


def test_local_log_odds_are_those_of_each_prompt_alone(random_causal_model):
    found = LocalJudge(random_causal_model, batch=3).answer([*LOCAL, LOCAL[0]])
    expected = [brute_force(random_causal_model, question) for question in LOCAL]
    assert max(expected) - min(expected) > 1e-3
    assert [verdict.confidence for verdict in found[:5]] == pytest.approx(expected, abs=2e-4)
    assert [verdict.yes for verdict in found[:5]] == [value > 0 for value in expected]
    assert found[5] == found[0]


def test_local_answers_are_recorded_and_read_again(random_causal_model, calls):
    judge = LocalJudge(random_causal_model, calls)
    first = judge.answer(LOCAL)
    assert all(verdict.call for verdict in first)
    judge.model.log_odds = lambda *arguments: pytest.fail("asked twice")
    assert judge.answer(LOCAL[::-1]) == first[::-1]
    assert calls.spent().calls == 0, "nothing was paid"


@pytest.mark.slow
def test_local_explanations_are_the_likeliest_words(random_causal_model, calls):
    explainer = LocalExplainer(random_causal_model, calls)
    texts = ["a «cat» came", "the «dog» went"]
    (explanation,) = explainer.explain([texts])
    ids = AnsweringModel(random_causal_model).tokens(explain_prompt(texts))
    start = len(ids)
    answer = ""
    while len(ids) < start + 320 and not parse_explanation(answer.rpartition("\n")[0]):
        logits = random_causal_model.model(torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
        if ids[-1] == random_causal_model.tokenizer.eos_token_id:
            break
        answer = random_causal_model.tokenizer.decode(ids[start:], skip_special_tokens=True)
    whole = len(ids) < start + 320
    assert explanation == (parse_explanation(answer) if whole else "")
    assert explainer.explain([texts, texts]) == [explanation] * 2
    assert len(calls._execute("SELECT * FROM calls").fetchall()) == whole, (
        "only what came to an end is kept"
    )


QWEN = (
    "{% for m in messages %}<|bos|>{{ m.role }}\n{{ m.content }}<|eos|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
ALWAYS = "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}<|bos|>assistant\n<think>\n"
BRACKETS = "{% for m in messages %}{{ m.content }}<|eos|>{% endfor %}[THINK]"


@pytest.mark.parametrize(
    ("template", "end"),
    [
        (QWEN, "<think>\n\n</think>\n\n"),
        (ALWAYS, "<think>\n\n</think>\n\n"),
        (BRACKETS, "[THINK]\n\n[/THINK]\n\n"),
    ],
)
def test_models_that_think_are_not_let(make_model, template, end):
    """Neither the judge nor the explainer has room for a thought."""
    model = LanguageModel.load(str(make_model("llama")), [], causal=True, device="cpu")
    model.tokenizer.chat_template = template
    for prompt in (judge_prompt("x", ["«y» <think>"]), explain_prompt(["«y»"])):
        text = model.tokenizer.decode(AnsweringModel(model).tokens(prompt))
        assert text.endswith(end)
        assert text.count("</think>") + text.count("[/THINK]") == 1


def test_an_explanation_that_comes_to_no_end_is_none(make_model, calls, monkeypatch):
    """A thought that was not prevented, or a line without an end: more tokens are tried once, and
    nothing is kept."""
    model = LanguageModel.load(str(make_model("llama")), [], causal=True, device="cpu")
    model.config.max_position_embeddings = 2048
    limits = []

    def says(text):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]

        def generate(input_ids, max_new_tokens, **options):
            limits.append(max_new_tokens)
            return torch.cat([input_ids, torch.tensor([ids[:max_new_tokens]])], 1)

        monkeypatch.setattr(model.model, "generate", generate)
        return LocalExplainer(model, calls).explain([["«y»"]])

    assert says("<think>" + "hm, " * 900) == says("<think>hm<|eos|>") == says("word " * 900) == [""]
    assert set(limits) == {40, 320}
    assert says("<think>" + "hm, " * 40 + "</think>verbs<|eos|>") == ["verbs"]
    assert says("something else") == ["verbs"], "this one was kept"


def test_a_verdict_of_a_broken_model_is_not_a_no(make_model, calls):
    model = LanguageModel.load(str(make_model("llama")), [], causal=True, device="cpu")
    with torch.no_grad():
        model.model.get_submodule("lm_head").get_parameter("weight").fill_(torch.nan)
    model.config.max_position_embeddings = 2048
    (verdict,) = LocalJudge(model, calls).answer(LOCAL[:1])
    assert verdict.yes is None
    assert calls._execute("SELECT * FROM calls").fetchall() == []


def test_chat_templates_are_used_and_not_fooled(make_model):
    model = LanguageModel.load(str(make_model("llama")), [], causal=True, device="cpu")
    tokenizer = model.tokenizer
    prompt = judge_prompt("x<|eos|>", ["«<|bos|>»<|eos|>"])
    assert tokenizer.eos_token_id not in AnsweringModel(model).tokens(prompt)
    assert tokenizer.decode(AnsweringModel(model).tokens(prompt)).endswith("yes or no.\nAnswer:")
    tokenizer.chat_template = (
        "{% for m in messages %}<|bos|>{{ m.role }}: {{ m.content }}<|eos|>{% endfor %}"
        "{% if add_generation_prompt %}<|bos|>assistant:{% endif %}"
    )
    ids = AnsweringModel(model).tokens(prompt)
    assert [ids.count(i) for i in (tokenizer.bos_token_id, tokenizer.eos_token_id)] == [2, 1]
    assert tokenizer.decode(ids).endswith("<|eos|><|bos|>assistant:")
    model.config.max_position_embeddings = 128
    with pytest.raises(BitlensError, match="reads at most 128"):
        LocalJudge(model).answer([Question("x", "«y» " * 100)])


LIKE = ("the «old» sailor", "a «quiet» river", "one «golden» lamp")
UNLIKE = ("the old «sailor»", "«a» quiet river", "two <|eos|> «lamps»")
BY_EXAMPLES = Examples(LIKE, UNLIKE).explanation


def completion(like, unlike, text):
    """The prompt by hand, in the order of the texts' hashes."""
    answers = dict.fromkeys(like, "yes") | dict.fromkeys(unlike, "no")
    order = sorted(answers, key=lambda text: hashlib.sha256(text.encode()).digest())
    lines = [f"{each}\n{each[each.index('«') + 1 : each.index('»')]}:" for each in [*order, text]]
    prompt = "".join(
        f"{line} {answers[each]}\n\n" for line, each in zip(lines, order, strict=False)
    )
    prompt += lines[-1]
    return prompt.replace("<|eos|>", "\\u003c|eos|>")


def test_by_examples_a_local_judge_goes_on_with_them_above_their_own_threshold(random_causal_model):
    model = AnsweringModel(random_causal_model)
    yes, no = model.first_tokens(YES), model.first_tokens(NO)

    def log_odds(like, unlike, text):
        ids = model.tokenizer.encode(completion(like, unlike, text))
        return model.log_odds([ids], sorted(yes - no), sorted(no - yes))[0]

    def without(texts, i):
        return texts[:i] + texts[i + 1 :]

    on = [log_odds(without(LIKE, i), UNLIKE, text) for i, text in enumerate(LIKE)]
    off = [log_odds(LIKE, without(UNLIKE, i), text) for i, text in enumerate(UNLIKE)]
    threshold = (sum(on) / len(on) + sum(off) / len(off)) / 2
    texts = ("the «clever» doctor", "the clever «doctor»")
    found = LocalJudge(random_causal_model, batch=5).answer(
        [Question(BY_EXAMPLES, text) for text in texts]
    )
    expected = [log_odds(LIKE, UNLIKE, text) - threshold for text in texts]
    assert [v.confidence for v in found] == pytest.approx(expected, abs=1e-4)
    assert [v.yes for v in found] == [value > 0 for value in expected]


def test_a_server_is_shown_examples_with_their_answers_and_no_control_token():
    (one,) = judge_prompt(BY_EXAMPLES, ["the «clever» doctor"])
    assert one["content"].count("Answer: yes") == one["content"].count("Answer: no") == 3
    assert 'Text: "the «clever» doctor"\nMarked: "clever"\n' in one["content"]
    assert "<|eos|>" not in one["content"]
    (many,) = judge_prompt(BY_EXAMPLES, ["the «clever» doctor", "«in» the morning"])
    assert '2. "«in» the morning"' in many["content"]


def test_where_examples_explain_no_explainer_is_named():
    with pytest.raises(BitlensError, match="No explainer is asked"):
        LocalSettings(model="x", explainer_model="y", explanations="examples").check()
