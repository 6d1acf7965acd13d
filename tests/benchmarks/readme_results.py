"""The README's table of results, made from the study that is committed: `tests/test_readme.py` asks for it to be so.

python tests/benchmarks/readme_results.py       # writes it into README.md
"""

from __future__ import annotations

import re
from pathlib import Path

from pipeline_lib.store import read_json
from pipeline_lib.study.study_tables import headline_markdown

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
STUDY = ROOT / "deployments" / "results" / "tiny" / "tiny.json"
TABLE = re.compile(r"(?<=## Results\n\n)(.*?\n\n)(\|.*?\|)(?=\n\n)", re.DOTALL)  # the first table of that section


def with_results(page: str) -> str:
    """The page with the study's table in the place of the first one below "Results"."""
    return TABLE.sub(lambda found: found[1] + headline_markdown(read_json(STUDY)), page, count=1)


if __name__ == "__main__":
    README.write_text(with_results(README.read_text(encoding="utf-8")), encoding="utf-8")
