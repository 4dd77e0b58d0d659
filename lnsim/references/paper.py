"""One paper: its BibTeX, its short name, and its entry in a list of references.

Names are kept as "Family, Given" with their accents.  BibTeX gets them in the spelling of LaTeX, so
that its entries are ASCII.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

ARXIV = "arXiv preprint"


@dataclass(frozen=True, kw_only=True)
class Paper:
    """One paper.

    authors: "Family, Given", in order.
    gave: what lnsim takes from it, in words that follow a colon.
    venue: the proceedings, the journal or the institution; `kind` is the type of its BibTeX entry.
    """

    authors: tuple[str, ...]
    title: str
    year: int
    venue: str
    gave: str
    kind: str = "inproceedings"
    volume: str = ""
    pages: str = ""
    arxiv: str = ""
    note: str = ""

    @property
    def short(self) -> str:
        """Its name in a sentence: "Damian et al. 2021", "Mulayoff and Michaeli 2020"."""
        families = [name.partition(",")[0] for name in self.authors]
        names = " and ".join(families) if len(families) < 3 else f"{families[0]} et al."
        return f"{names} {self.year}"

    @property
    def reference(self) -> str:
        """The entry of a list of references, in plain text."""
        *names, last = [" ".join(reversed(name.split(", "))) for name in self.authors]
        authors = f"{', '.join(names)} and {last}" if names else last
        place = " ".join(filter(None, (self.venue, self.volume)))
        pages = f"pp. {self.pages}" if self.pages else ""
        where = ", ".join(filter(None, (place, pages, str(self.year))))
        eprint = f"arXiv:{self.arxiv}" if self.arxiv else ""
        further = "".join(f" {text}." for text in (eprint, self.note) if text)
        return f"{authors}. {self.title}{'' if self.title.endswith('?') else '.'} {where}.{further}"

    def bibtex(self, key: str) -> str:
        """The BibTeX entry, ASCII."""
        where = {"article": "journal", "techreport": "institution"}.get(self.kind, "booktitle")
        fields = {
            "author": " and ".join(self.authors),
            "title": f"{{{self.title}}}",  # the inner braces keep its capitals
            where: f"{ARXIV} arXiv:{self.arxiv}" if self.venue == ARXIV else self.venue,
            "year": str(self.year),
            "volume": self.volume,
            "pages": self.pages.replace("-", "--"),
            "eprint": self.arxiv,
            "archiveprefix": "arXiv" if self.arxiv else "",
            "note": self.note,
        }
        return entry(self.kind, key, fields)


def entry(kind: str, key: str, fields: dict[str, str]) -> str:
    """A BibTeX entry of the fields that are not empty."""
    lines = [f"  {name} = {{{_latex(text)}}}," for name, text in fields.items() if text]
    return "\n".join([f"@{kind}{{{key},", *lines, "}"])


_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0308": '"'}
"""Combining accents, and their commands in LaTeX."""


def _latex(text: str) -> str:
    """`text` with its accented letters as LaTeX writes them: {\\'e}."""
    letters: list[str] = []
    for letter in unicodedata.normalize("NFD", text):
        if letter in _ACCENTS:
            letter_below = "\\i" if letters[-1] == "i" else letters[-1]  # without its dot
            letters[-1] = f"{{\\{_ACCENTS[letter]}{letter_below}}}"
        else:
            letters.append(letter.replace("&", r"\&").replace("%", r"\%"))
    return "".join(letters)
