"""Check the documents: generated pages match the code, links lead somewhere, quoted messages exist."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.scripts import load_script

PROJECT = Path(__file__).parents[1]
DOCS = PROJECT / "docs"
LONGEST_README = 120
PAGES = sorted(path.relative_to(PROJECT).as_posix() for path in [*PROJECT.glob("*.md"), *DOCS.glob("*.md")])


def text(name: str) -> str:
    return (PROJECT / name).read_text(encoding="utf-8")


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    outside_code = re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", outside_code, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["commands.md", "settings.md", "targets.md"])
def test_a_generated_page_is_what_the_code_says(name: str) -> None:
    page = load_script(DOCS / "make.py").page(name)
    assert text(f"docs/{name}") == page, "run: python bootstrap.py python docs/make.py"


@pytest.mark.parametrize("name", ["settings.md", "targets.md"])
def test_each_setting_has_its_meaning(name: str) -> None:
    rows = [line for line in text(f"docs/{name}").splitlines() if line.startswith("| `")]
    assert len(rows) > 50
    assert [row for row in rows if row.split(" | ")[-1].strip(" |") == ""] == []


def test_each_change_begins_where_the_page_says() -> None:
    """A name is a definition, or a key or a value that the file sets or reads."""
    table = text("docs/architecture.md").partition("<!-- changes -->\n")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| (.+) \| `(.+)` \| `(.+)` \|$", table, re.MULTILINE)
    assert len(rows) == 28
    wrong = [
        f"{change}: {file} has no {name}"
        for change, name, file in rows
        if not re.search(rf"(?:def |class |^|[.\"']){re.escape(name)}(?:\b|[\"'])", text(file), re.MULTILINE)
    ]
    assert wrong == []


@pytest.mark.parametrize("name", PAGES)
def test_each_link_leads_to_a_file_and_a_heading(name: str) -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=PROJECT, capture_output=True, check=True
    )
    files = set(tracked.stdout.decode().splitlines())
    folders = {parent.as_posix() for file in files for parent in Path(file).parents}
    for link in re.findall(r"\]\(([^)\s]+)\)", text(name)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        leads_to = (PROJECT / name).parent.joinpath(path).resolve() if path else PROJECT / name
        place = leads_to.relative_to(PROJECT).as_posix()
        assert place in files | folders, f"{name} links to {link}"
        assert not anchor or anchor in anchors(text(place)), f"{name} links to {link}"
        # `mkdocs build --strict` fails at a link that leaves the folder of the site.
        assert not name.startswith("docs/") or place.startswith("docs/"), f"{name} links out of the site: {link}"


def test_the_site_has_every_page_once() -> None:
    listed = re.findall(r"[\w-]+\.md", str(yaml.safe_load(text("mkdocs.yml"))["nav"]))
    assert sorted(listed) == sorted(path.name for path in DOCS.glob("*.md"))


def test_the_readme_is_short_and_begins_with_a_picture() -> None:
    lines = text("README.md").splitlines()
    assert len(lines) <= LONGEST_README
    assert any(line.startswith("![") for line in lines[:10])


def test_the_messages_of_troubleshooting_are_in_the_code() -> None:
    """Each part of a heading between `...` stands in one source file."""
    code = [text(name) for name in source_files()]
    told = re.findall(r"^## `(.+)`$", text("docs/troubleshooting.md"), re.MULTILINE)
    assert len(told) >= 10
    for message in told:
        parts = [part.strip() for part in message.split("...") if part.strip()]
        assert any(all(part in file for part in parts) for file in code), message


def source_files() -> list[str]:
    found = subprocess.run(["git", "ls-files", "*.py"], cwd=PROJECT, capture_output=True, check=True)
    return [name for name in found.stdout.decode().splitlines() if not name.startswith(("tests/", "benchmarks/"))]


def test_the_recorded_terminal_runs_the_commands_of_the_readme() -> None:
    """docs/record.py draws it: small, for light and dark pages, without a path of the machine that recorded it."""
    recorded = (PROJECT / "docs/pictures/terminal.svg").read_text(encoding="utf-8")
    readme = (PROJECT / "README.md").read_text(encoding="utf-8")
    assert "(docs/pictures/terminal.svg)" in readme
    commands = re.findall(r"<title>A terminal: (.+?)</title>", recorded)[0].split(", then ")
    assert commands[0] in readme
    assert all(each.startswith("python bootstrap.py invoke ") for each in commands)
    assert len(recorded) <= 300_000
    assert "prefers-color-scheme:dark" in recorded
    assert not re.search(r"/(home|root|work|tmp|Users)/", recorded)
    lines = re.sub(r'</text><text id="\w+">', " ", recorded)
    assert "points above the untrained network" in lines  # the last line of train is the verdict


def test_each_picture_is_made_by_a_script_small_and_shown() -> None:
    """The pictures of pages are screenshots of real runs, and show no photograph of a person."""
    scripts = text("docs/screenshots.py") + text("docs/record.py")
    pages = text("README.md") + "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    for picture in (DOCS / "pictures").glob("*.png"):
        assert f'"{picture.stem}"' in scripts, picture
        assert f"pictures/{picture.name})" in pages, picture
        assert picture.stat().st_size <= 60_000, picture


def test_photographs_and_models_of_the_docs_are_no_code() -> None:
    """Anything that git does not ignore is uploaded with the code, to rented machines too."""
    pages = "".join(page.read_text(encoding="utf-8") for page in DOCS.glob("*.md"))
    pages += text("README.md")
    read = {f"{name}/anna/1.jpg" for name in re.findall(r"--(?:path|data) (?!machine|s3)([a-z][a-z./]*)", pages)}
    written = set(re.findall(r"(?:--out|--to|\bout=) ?([a-z][a-z_/]*\.[a-z]+|data/\w+)", pages))
    assert {"photos/anna/1.jpg", "photos/staff/anna/1.jpg"} <= read
    assert {"model.onnx", "model.pt", "backbone.pt", "embeddings.npy", "data/pairs", "data/mining"} <= written
    named = sorted({*read, *written, "model.json"})
    ignored = subprocess.run(["git", "check-ignore", *named], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert ignored.stdout.split() == named
