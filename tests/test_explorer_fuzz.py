"""The explorer's server, asked anything at all: every route with generated paths and bodies."""

import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from explored import LATENTS, TEXT, ask

POSTED = ("text", "hold", "near", "find")
GOOD = {
    "text": {"text": TEXT},
    "hold": {
        "text": TEXT,
        "holds": {"3": 1, "4": 0},
        "positions": [1, -1],
        "others": "searched",
        "continue": {"tokens": 2, "temperature": 0.5, "seed": 1},
    },
    "near": {"text": TEXT, "position": 2, "limit": 3},
    "find": {"on": [1], "off": [2], "limit": 3},
}
PATHS = ("/{}", "/api/{}", "/api/latents/{}.json", "/api/beside/{}.json", "/api/{}.json")
FIXED = (
    "/api/run.json",
    "/api/latents.json",
    "/api/compare.json",
    "/",
    *map("/api/{}".format, POSTED),
)
TIMED = ("milliseconds",)  # of an answer, which differ from one to the next

words = st.text(st.characters(), max_size=20)  # halves of surrogate pairs, too
numbers = st.one_of(
    st.integers(-3, LATENTS + 3),
    st.integers(),
    st.sampled_from([1 << 31, 1 << 62, 1 << 63, 1 << 64, 10**400, -(1 << 31), -(1 << 63)]),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words)
odd = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(words, st.integers().map(str)), inner, max_size=4),
    ),
    max_leaves=12,
)
near_right = st.one_of(
    st.lists(st.integers(-2, LATENTS + 1), max_size=300),
    st.dictionaries(
        st.integers(0, LATENTS).map(str), st.sampled_from([0, 1, 0.0, 1.0, 2]), max_size=9
    ),
    st.text(st.sampled_from("a Z\u0301\ud83d\U0001f642\n\0<"), max_size=40),
)


@st.composite
def bodies(draw) -> bytes:
    """Of a question: a good one with some of it replaced, dropped or added, or something else."""
    question = dict(GOOD[draw(st.sampled_from(POSTED))])
    for name in draw(st.lists(st.sampled_from(sorted(question)), max_size=3)):
        question[name] = draw(st.one_of(near_right, odd))
    for name in draw(st.lists(st.sampled_from(sorted(question)), max_size=1)):
        del question[name]
    if draw(st.integers(0, 9)) == 0:
        question[draw(words)] = draw(odd)
    if isinstance(inner := question.get("continue"), dict) and "tokens" in inner:
        question["continue"] = inner | {draw(st.sampled_from(sorted(inner))): draw(scalars)}
    body = draw(st.one_of(st.just(question), st.just(question), odd))
    sent = json.dumps(body)
    if draw(st.booleans()):
        sent = sent.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    depth = draw(st.sampled_from([0] * 8 + [50, 2000, 40_000]))
    if depth:
        opening, closing = draw(st.sampled_from([("[", "]"), ('{"text":', "}"), ("[", "")]))
        sent = opening * depth + sent + closing * depth
        if draw(st.booleans()):
            sent = '{"text": "a", "holds": ' + sent + "}"
    content = sent.encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8", "utf-16", "utf-8-sig"])))
    if draw(st.integers(0, 9)) == 0:
        content = content[: draw(st.integers(0, len(content)))] + draw(st.binary(max_size=9))
    return content


paths = st.one_of(
    st.sampled_from(FIXED),
    st.builds(
        lambda path, name: path.format(quote(str(name).encode("utf-8", "surrogatepass"), safe="")),
        st.sampled_from(PATHS),
        st.one_of(st.integers(-2, LATENTS + 2), scalars, st.just("9" * 5000)),
    ),
)
queries = st.one_of(
    st.just(""), st.builds(lambda text: "?" + quote(text.encode("utf-8", "replace")), words)
)


def sensible(answer, asked) -> None:
    """An answer, or one sentence; never a failure of the server's."""
    assert answer.status_code < 500, (asked, answer.text)
    assert "Traceback" not in answer.text
    if answer.status_code == 200:
        return
    assert set(answer.json()) == {"sentence"}, asked
    sentence = answer.json()["sentence"]
    assert sentence.endswith("."), asked
    assert 10 < len(sentence) < 400, asked
    assert "\n" not in sentence, asked
    assert "`" not in sentence, asked


def known(site) -> list:
    """The answers to good questions, without how long they took."""
    answers = [ask(site, name, **question).json() for name, question in GOOD.items()]
    return [{k: v for k, v in answer.items() if k not in TIMED} for answer in answers]


@pytest.mark.slow
@pytest.mark.parametrize("examples", [60, pytest.param(1000, marks=pytest.mark.slow)])
def test_whatever_is_asked_gets_an_answer_or_a_sentence(site, capfd, examples) -> None:
    before = known(site)
    assert all("sentence" not in answer for answer in before)
    profile = settings(
        max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck)
    )

    @given(paths, queries, bodies(), st.sampled_from(["GET", "POST", "POST", "POST", "POST"]))
    @profile
    def check(path, query, body, method) -> None:
        if method == "GET":
            sensible(site.get(path + query), path + query)
            return
        headers = {"content-type": "application/json"}
        asked = site.post(path + query, content=body, headers=headers)
        sensible(asked, (path, body[:500]))
        for question in POSTED:
            answer = site.post(f"/api/{question}", content=body, headers=headers)
            sensible(answer, (question, body[:500]))

    check()
    assert known(site) == before
    assert "Traceback" not in capfd.readouterr().err
