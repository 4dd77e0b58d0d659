"""Published results of the field, a module each; published.py says what one is made of.

To add one, write the module and its name here, and the paper in `lnsim.references.papers`.
"""

NAMES = (
    "andriushchenko_2022",
    "andriushchenko_2023",
    "haochen_2021",
    "vivien_2022",
    "pesme_2021",
    "even_2023",
    "orvieto_2022",
    "chen_2023",
    "lewkowycz_2020",
    "kunin_2024",
    "domine_2025",
    "marion_2024",
    "wen_2022",
)
"""In the order in which `lnsim papers` lists them."""
