"""Every code block of README, CONTRIBUTING and docs: run, or parsed with the reason why not."""

import ast
import contextlib
import gc
import io
import time
import tomllib

import pytest
import shell
import stand_ins
from blocks import PAGES, ROOT, Block, blocks_of, commands, inline_code, problem_with

from shardsieve.config import Config

BLOCKS = [block for page in PAGES for block in blocks_of(page)]
RUN_PAGES = [page for page in PAGES if any(b.kind == "run" for b in blocks_of(page))]


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.where)
def test_somebody_checks_the_block(block):
    assert problem_with(block) is None


def test_a_block_that_nobody_checks_is_found():
    def problem(language, kind="run", why=""):
        return problem_with(Block("docs/page.md", 1, language, "", kind, why))

    assert "ruby" in problem("ruby")
    assert "''" in problem("")
    assert "no reason" in problem("sh", "not run")
    assert "does not exist" in problem("python", "run by", "tests/docs/test_gone.py")
    assert "does not name" in problem("python", "run by", "tests/docs/test_reproduce.py")
    assert problem("sh") is None


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("shardsieve clean a.tar -o RUN --nope", "nope"),
        ("shardsieve wash a.tar", "no verb wash"),
        ("shardsieve clean a.tar -o RUN --set probe.nope=1", "probe.nope"),
        ("pip install 'shardsieve[moon]'", "no extra moon"),
        ("make coffee", "no coffee"),
        ("python -m bench run index --nope", "nope"),
        ("curl example.org", "nothing here knows"),
    ],
)
def test_a_command_that_is_none_is_found(command, why, tmp_path):
    with pytest.raises(Exception, match=why):
        shell.check_parses(command, tmp_path)


def test_output_that_nobody_printed_is_found():
    said = "kept   80 (83.3%)\nshards RUN/clean"
    assert shell.expected_in(said, "kept 75 (70.0%)\n") == []
    assert shell.expected_in(said, "lost 5\n") == ["lost 5"]


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.kind == "not run"], ids=lambda block: block.where
)
def test_what_is_not_run_is_well_formed(block, tmp_path):
    if block.language == "sh":
        for command in commands(block.text):
            shell.check_parses(command, tmp_path)
    elif block.language == "python":
        _check_names(ast.parse(block.text))
    else:
        Config.model_validate(tomllib.loads(block.text))


@pytest.mark.parametrize(
    "block", [b for b in BLOCKS if b.kind == "layout"], ids=lambda block: block.where
)
def test_what_a_layout_names_exists(block):
    for path in shell.paths_of(block.text):
        assert (ROOT / path).exists(), path


@pytest.mark.slow
@pytest.mark.timeout(300)
# webdataset leaves its files to the garbage collector, which is to come here and not later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_page_runs(page, tmp_path, monkeypatch):
    folder = tmp_path
    stand_ins.write_stand_ins(folder)
    monkeypatch.chdir(folder)
    names, said = stand_ins.names(), ""
    for block in blocks_of(page):
        if block.kind == "output":
            missing = shell.expected_in(said, block.text)
            assert not missing, f"{block.where}: {missing} is not in\n{said}"
        if block.kind != "run":
            continue
        start, text = time.perf_counter(), stand_ins.smaller(block.text)
        if block.language == "sh":
            said = "".join(_shell(block, command, folder) for command in commands(text))
        elif block.language == "python":
            said = _python(block, text, names)
        else:
            Config.model_validate(tomllib.loads(text))
        print(f"{block.where}: {time.perf_counter() - start:.1f} s")
    gc.collect()


def _shell(block, command, folder):
    try:
        return shell.run(command, folder)
    except AssertionError as error:
        raise AssertionError(f"{block.where}: {error}") from error


def _python(block, text, names):
    # Errors then name the line of the page.
    code = compile("\n" * block.line + text, str(ROOT / block.page), "exec")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(code, names)
    return said.getvalue()


def _check_names(tree):
    import shardsieve

    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "shardsieve":
            assert hasattr(shardsieve, node.attr), node.attr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_running_text_have_known_verbs_and_options(page):
    for code in inline_code(page):
        if code.startswith("shardsieve ") and "|" not in code and "..." not in code:
            shell.check_options(code)
