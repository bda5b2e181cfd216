"""The glossary says of sites, files and functions what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from interp.sites import SITES

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")


def test_the_table_of_sites_is_the_one_in_the_code() -> None:
    rows = [
        f"| `{site.template}` | {', '.join(site.axes)} | {site.meaning}{' (on demand)' if site.on_demand else ''} |"
        for site in SITES
    ]
    assert [line for line in TEXT.splitlines() if line.startswith("| `")] == rows


def test_what_the_glossary_names_exists() -> None:
    for path in re.findall(r"`((?:interp|analyses|docs)/[\w./]*)`", TEXT):
        assert (ROOT / path).exists(), path
    for path, names in re.findall(r"`((?:interp|analyses)/[\w/]+\.py)`\s+\(((?:`[^`]+`(?:,\s+)?)+)\)", TEXT):
        source = (ROOT / path).read_text(encoding="utf-8")
        for name in re.findall(r"`([\w.]+)`", names):
            assert name.split(".")[-1] in source, (path, name)


def test_links_lead_somewhere() -> None:
    heads = re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)
    anchors = {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}
    links = set(re.findall(r"\(#([^)]+)\)", TEXT))
    assert links <= anchors
    terms = {
        re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in re.findall(r"^### (.+)$", TEXT, re.MULTILINE)
    }
    assert terms <= links
