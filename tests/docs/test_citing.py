"""Who is cited: the package in the forms that programs read, and the paper of every study where it is described."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from analyses.cli import study_names
from interp.version import __version__

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"https://(?:arxiv\.org/abs/[0-9]{4}\.[0-9]{5}|[a-z.-]+/[\w./-]+[\w/])")
STUDIES = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
CITING = (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")


def test_the_citation_files_have_the_packages_name_version_and_licence() -> None:
    yaml = pytest.importorskip("yaml", reason="CITATION.cff is YAML, which needs PyYAML to be read")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["cff-version"] == "1.2.0" and cited["title"] == "interp" and cited["license"] == "MIT"
    assert str(cited["version"]) == __version__ and cited["authors"] and cited["message"]
    assert f"version = {{{__version__}}}" in CITING and CITING.count("{") == CITING.count("}")


@pytest.mark.parametrize("name", study_names())
def test_every_study_links_its_papers_in_its_docstring_and_on_its_page(name: str) -> None:
    doc = importlib.import_module(f"analyses.{name}").__doc__ or ""
    source = doc[doc.index("Source: ") :]
    links = LINK.findall(source)
    assert links, source
    rows = (line for line in STUDIES.splitlines() if line.startswith("|"))
    row = next(line for line in rows if name.replace("_", "-") in line.split("|")[1])
    for link in links:
        assert link in row and link in CITING, link
