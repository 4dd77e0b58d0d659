"""`lnsim cite`: what is printed is BibTeX, and names what an experiment or a result rests on."""

import bibtex
import pytest

from lnsim.cli import main
from lnsim.references import credits
from lnsim.references.papers import PAPERS
from lnsim.run import experiment

pytestmark = pytest.mark.small

FIELDS = {
    "inproceedings": "booktitle", "article": "journal", "techreport": "institution", "misc": "note",
}  # fmt: skip
"""The types of entries, and the field that each must have beside author, title and year."""


def cite(capsys, *names):
    assert main.main(["cite", *names]) == 0
    return capsys.readouterr().out


def comments(text):
    lines = [line.removeprefix("%").strip() for line in text.splitlines() if line[:1] == "%"]
    return " ".join(" ".join(lines).split())


@pytest.mark.parametrize("name", [*experiment.names(), *credits.CREDITS, *PAPERS])
def test_every_name_gives_the_entries_of_its_papers_and_lnsim(name, capsys):
    text = cite(capsys, name)
    rests_on = experiment.load(name).rests_on if name in experiment.names() else (name,)
    entries = bibtex.read(text)
    assert list(entries) == [*credits.papers_of(*rests_on), "lnsim"]
    for key, entry in entries.items():
        for field in ("author", "title", "year", FIELDS[entry["type"]]):
            assert entry[field], (key, field)
        assert key == "lnsim" or f"{key} {PAPERS[key].gave}" in comments(text)
    assert all(len(line) <= 80 for line in text.splitlines() if line.startswith("%"))


def test_an_entry_is_what_the_table_says(capsys):
    entries = bibtex.read(cite(capsys, "linearised-twin", "damian2021"))
    assert entries["damian2021"] == {
        "type": "inproceedings",
        "author": "Damian, Alex and Ma, Tengyu and Lee, Jason D.",
        "title": "{Label Noise SGD Provably Prefers Flat Global Minimizers}",
        "booktitle": "Advances in Neural Information Processing Systems",
        "year": "2021",
        "volume": "34",
        "pages": "27449--27461",
        "eprint": "2106.06530",
        "archiveprefix": "arXiv",
    }
    assert entries["chizat2019"]["author"].startswith(r"Chizat, L{\'e}na{\"\i}c and ")


def test_several_names_share_their_entries(capsys):
    text = cite(capsys, "law-of-modes", "hessian_trace", "deep")
    assert list(bibtex.read(text)) == ["blanc2020", "damian2021", "li2021", "chen2023", "lnsim"]
    for name in ("law-of-modes: ", "hessian_trace: ", "deep: deep linear network"):
        assert name in comments(text)


def test_it_says_what_is_whose(capsys):
    text = comments(cite(capsys, "label-noise"))
    for name in ("law-of-modes", "stationary-state"):
        credit = credits.STATEMENTS[name]
        assert f"{name} {credit.theirs} {credit.ours}" in text
    assert credits.METHODS["reduction"].ours in text


def test_a_run_is_cited_with_the_options_that_it_uses(tmp_path, capsys):
    config = {
        "steps": 4,
        "record_every": 2,
        "samples": 5,
        "test_samples": 5,
        "dim": 3,
        "nonzeros": 1,
    }
    config |= {"form": "difference", "noise": "anticorrelated", "rho": 0.1}
    diagonal = experiment.load("diagonal")
    diagonal.run(diagonal.Config(**config)).save(tmp_path / "run@misc{a, b}")
    text = cite(capsys, str(tmp_path / "run@misc{a, b}"))
    options = ["orvieto2022", "foret2021", "woodworth2020"]
    assert list(bibtex.read(text)) == [*diagonal.rests_on, *options, "lnsim"]
    assert "run(at)misc{a, b}: a run of diagonal" in comments(text)
    assert main.main(["cite", str(tmp_path)]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_without_a_name_it_lists_every_name_within_80_columns(capsys):
    lines = cite(capsys).splitlines()
    assert all(len(line) <= 80 for line in lines)
    listed = [line.split()[0] for line in lines if line[:2] == "  " and line[2] != " "]
    assert listed == [*experiment.names(), *credits.CREDITS]
    assert [line for line in lines if line[0] != " "] == [
        "experiments", "statements", "methods", "measures",
    ]  # fmt: skip
    assert "  reduction             lnsim's own" in lines
    assert "  effective_rank        Roy and Vetterli 2007" in lines
    assert not any(line.endswith((" et", " et al.")) for line in lines)


def test_a_measure_of_no_paper_is_told_from_an_unknown_name(capsys):
    assert main.main(["cite", "gradient_noise"]) == 2
    assert capsys.readouterr().err == (
        "lnsim: gradient_noise is recorded, but rests on no paper that lnsim names\n"
    )


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("law-of-mode", "did you mean 'law-of-modes'?"),
        ("damian2020", "did you mean 'damian2021'?"),
        ("0", "`lnsim cite` lists what there is"),
    ],
)
def test_an_unknown_name_is_refused_in_a_sentence(name, hint, capsys):
    assert main.main(["cite", "sam", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        f"lnsim: nothing to cite is called {name!r}, nor a run folder: {hint}\n"
    )
