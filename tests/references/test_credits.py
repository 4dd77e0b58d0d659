"""The papers and what rests on them: complete, each paper once, none that nothing rests on."""

import re
import unicodedata
from pathlib import Path

import pytest

from lnsim.cli import main
from lnsim.references import credits
from lnsim.references.paper import Paper
from lnsim.references.papers import PAPERS, short
from lnsim.run import experiment, quantities

pytestmark = pytest.mark.small

DOCS = Path(__file__).parents[2] / "docs" / "credits.md"


def test_keys_are_the_first_author_and_the_year_in_order():
    for key, paper in PAPERS.items():
        family = unicodedata.normalize("NFD", paper.authors[0].partition(",")[0])
        assert key == re.sub(r"[^a-z]", "", family.lower()) + str(paper.year)
    assert list(PAPERS) == sorted(PAPERS)


@pytest.mark.parametrize("key", PAPERS)
def test_a_paper_has_what_a_reader_needs_to_find_it(key):
    paper = PAPERS[key]
    assert all(re.fullmatch(r"[^,]+, [^,]+", name) for name in paper.authors)
    assert len(set(paper.authors)) == len(paper.authors)
    assert paper.venue and paper.gave and paper.title == paper.title.strip(". ")
    if paper.arxiv:  # its first four digits are the year and the month of its first version
        year, month = 2000 + int(paper.arxiv[:2]), int(paper.arxiv[2:4])
        assert re.fullmatch(r"\d{4}\.\d{5}", paper.arxiv) and 1 <= month <= 12
        assert year <= paper.year <= year + 2
        assert paper.year == year or "arXiv" not in paper.venue


def test_no_two_papers_have_the_same_number_or_title():
    numbers = [paper.arxiv for paper in PAPERS.values() if paper.arxiv]
    assert len(set(numbers)) == len(numbers)
    assert len({paper.title.lower() for paper in PAPERS.values()}) == len(PAPERS)


def test_no_paper_is_without_something_that_rests_on_it():
    experiments = [experiment.load(name).rests_on for name in experiment.names()]
    assert all(experiments)
    rests_on = {name for names in experiments for name in names}
    assert set(credits.papers_of(*rests_on, *credits.CREDITS)) == set(PAPERS)


def test_a_name_means_one_thing():
    names = [
        *experiment.names(), *credits.STATEMENTS, *credits.METHODS, *credits.MEASURES, *PAPERS,
    ]  # fmt: skip
    assert len(set(names)) == len(names)


def test_everything_rests_on_papers_or_is_ours():
    for name, credit in credits.CREDITS.items():
        assert credit.papers or credit.ours, name
        assert not credit.theirs or credit.ours, name


@pytest.mark.parametrize("name", experiment.names())
def test_every_experiment_rests_on_papers(name):
    assert credits.papers_of(*experiment.load(name).rests_on)


def test_a_measure_is_one_that_is_recorded_or_a_function_of_kernels():
    elsewhere = {"label_alignment"}  # in lnsim_torch.linearization
    assert all(name in quantities.TABLE for name in credits.MEASURES.keys() - elsewhere)


def test_those_before_us_are_named_where_our_results_repeat_theirs():
    assert {"blanc2020", "damian2021", "li2021"} <= {*credits.papers_of("law-of-modes")}
    assert {"blanc2020", "damian2021", "li2021", "wen2022", "ziyin2023", "ziyin2024"} <= {
        *credits.papers_of("stationary-state")
    }


def test_the_page_of_credits_is_that_of_the_tables():
    """To renew it, write what `credits.markdown()` returns below its last heading but one."""
    text = DOCS.read_text(encoding="utf-8")
    assert text.endswith("\n## What rests on what\n\n" + credits.markdown())


def test_short_names():
    assert short("krizhevsky2009", "roy2007") == "Krizhevsky 2009, Roy and Vetterli 2007"
    assert short("damian2021", "ziyin2023", "ziyin2024", "wen2022") == (
        "Damian et al. 2021, Ziyin et al. 2023, 2024, Wen et al. 2022"
    )
    assert short() == ""


def test_a_reference_has_the_names_in_their_order():
    paper = Paper(
        authors=("Doe, Zoë", "Roe, R. F."), title="Why?", year=2020, venue="Journal", gave="it",
        kind="article", volume="3", pages="4-5", arxiv="2001.00001", note="withdrawn",
    )  # fmt: skip
    assert paper.reference == (
        "Zoë Doe and R. F. Roe. Why? Journal 3, pp. 4-5, 2020. arXiv:2001.00001. withdrawn."
    )
    assert '{Doe, Zo{\\"e} and Roe, R. F.}' in paper.bibtex("doe2020")
    assert "  pages = {4--5},\n" in paper.bibtex("doe2020")


def test_each_keeps_to_its_option():
    assert not [*credits.used_by({})]
    assert not [*credits.used_by({"rho": 0.0, "noise": "label", "through": "both", "start": "ntk"})]
    assert [*credits.used_by({"rho": 0.1, "micro_batch": 1})] == [
        "sharpness-aware", "micro-batches",
    ]  # fmt: skip
    for name, method in credits.METHODS.items():
        if method.option is not None:
            key, values = method.option
            for value in values or (1,):
                assert name in [*credits.used_by({key: value})]


def test_the_table_of_theory_says_what_is_whose(capsys):
    assert main.main(["theory", "--set", "steps=100", "sigma=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    text = " ".join(lines)
    names = ("law-of-the-cloud", "law-of-modes", "stationary-state", "law-of-sam")
    assert all(share in text for share in credits.whose(*names).values())
    assert lines[-1] == f"BibTeX: lnsim cite {' '.join(names)}"
