# SPDX-License-Identifier: Apache-2.0
"""Each bad input: one clear line, its documented exit code, nothing touched."""

import fcntl
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import NAMES, REPO, Project, git, make_sdist, message, one_line, other_git
from series.errors import Exit


def write(project: Project, name: str, data: str | bytes) -> None:
    """A file of the work tree, or of the base if it begins with `v1/`, or of build/."""
    above = {"v1": project.root / "patches", "build": project.root}
    folder = above.get(name.partition("/")[0], project.tree)
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())


def sub(project: Project, name: str, pattern: str, new: str) -> None:
    text = (project.base / name).read_text()
    (project.base / name).write_text(re.sub(pattern, new, text))


def in_tree(*commands: str) -> Callable[[Project], None]:
    """Commands of git in the work tree, of words without spaces."""

    def plant(project: Project) -> None:
        for command in commands:
            git(project.tree, *command.split())

    return plant


def new_commit(project: Project) -> None:
    project.commit("Mine", {"mine.py": b"mine\n"})


def edited_file(project: Project) -> None:
    write(project, "toy/model.py", "mine\n")
    project.series(*NAMES[:2])


def on_other_branch(project: Project) -> None:
    in_tree("checkout -q -b my-work")(project)
    new_commit(project)


def other_branch(project: Project) -> None:
    """A commit that only another branch has; the branch series is as applied."""
    on_other_branch(project)
    in_tree("checkout -q series")(project)


def stash(project: Project) -> None:
    write(project, "toy/model.py", "mine\n")
    in_tree("stash -q")(project)


def ignored_by_the_user(project: Project) -> None:
    write(project, ".git/info/exclude", "notes.txt\n")
    write(project, "notes.txt", "mine\n")


def commit_in_a_worktree_of_test_each(project: Project) -> None:
    folder = project.root / "build/v1/each/one"
    in_tree(f"worktree add -q --detach {folder}")(project)
    git(folder, "commit", "-q", "--allow-empty", "-m", message("Mine"))


def commits_on_series_and_elsewhere(project: Project) -> None:
    """HEAD is where the last apply left it, the branch has gone on."""
    applied = git(project.tree, "rev-parse", "HEAD")
    new_commit(project)
    in_tree(f"checkout -q --detach {applied}")(project)


def patch_that_brings_an_ignored_file(project: Project) -> None:
    """What the patch adds is already there, as a file of the user's that git ignores."""
    project.commit("Bring it", {"hidden/mine.py": b"theirs\n"})
    project.ok("export")
    project.ok("unapply")
    write(project, "hidden/mine.py", "mine\n")


def binary_lock(project: Project) -> None:
    write(project, "v1/series.lock", b"\xff\n")
    project.ok("clean")


def other_commits(project: Project) -> None:
    in_tree("checkout -q --orphan other")(project)
    git(project.tree, "commit", "-q", "-m", message("Not on the base"))
    in_tree("branch -q -f series", "checkout -q series")(project)


def corrupted(project: Project) -> None:
    data = project.patch(NAMES[1]).read_bytes()
    project.patch(NAMES[1]).write_bytes(data[: data.index(b"+line_40") + 4])


def twin(project: Project) -> None:
    project.patch("twin").write_bytes(project.patch(NAMES[0]).read_bytes())
    project.series(*NAMES, "twin")


def other_result(project: Project) -> None:
    """A patch that is exact, but no longer the one that was locked."""
    write(project, "toy/dos.txt", b"other\n")
    in_tree("commit -q -a --amend --no-edit")(project)
    project.ok("export")
    git(project.root, "checkout", "-q", "patches/v1/series.lock")
    project.ok("clean")


def lock_of_another_series(project: Project) -> None:
    sub(project, "series.lock", "add-the-second", "add-the-zweite")
    project.ok("clean")


def lock_of_another_base(project: Project) -> None:
    sub(project, "series.lock", "base - .{6}", "base - 000000")
    project.ok("clean")


def broken_lock(project: Project) -> None:
    write(project, "v1/series.lock", "<<<<<<< ours\n")
    project.ok("clean")


def other_pin(project: Project) -> None:
    sub(project, "base.toml", r'(name = "toy-1.0.tar.gz"\nsha256 = ")......', r"\g<1>000000")
    (project.root / "build/downloads/toy-1.0.tar.gz").unlink()


def edited_header(project: Project) -> None:
    project.edit(NAMES[0], "[Model] Add the first", "[Model] Add the very first")


def edited_and_dropped(project: Project) -> None:
    edited_header(project)
    dropped_commits(project)


def overlooked(option: str) -> Callable[[Project], None]:
    """An edit that git was told not to look at."""

    def plant(project: Project) -> None:
        git(project.tree, "update-index", option, "toy/model.py")
        write(project, "toy/model.py", "mine\n")

    return plant


def skipped_and_dropped(project: Project) -> None:
    overlooked("--skip-worktree")(project)
    project.series(*NAMES[:2])


def patches_after_unapply(project: Project) -> None:
    """The branch is put back by git to where the patches are."""
    applied = git(project.tree, "rev-parse", "HEAD")
    project.ok("unapply")
    git(project.tree, "reset", "-q", "--hard", applied)


def text_beside_byte_code(project: Project) -> None:
    write(project, ".git/info/exclude", "__pycache__/\n")
    (project.tree / "toy/__pycache__").mkdir(exist_ok=True)
    write(project, "toy/__pycache__/notes.txt", "mine\n")


def linked_tree(project: Project) -> None:
    project.tree.rename(project.root / "elsewhere")
    project.tree.symlink_to(project.root / "elsewhere")


def no_git(project: Project) -> None:
    """A folder of the user's in the place of the work tree, inside of another repository."""
    shutil.rmtree(project.tree)
    project.tree.mkdir()
    write(project, "mine.py", "mine\n")


dropped_commits = in_tree("reset -q --hard HEAD~2")
PLANTS: dict[str, Callable[[Project], object]] = {
    # No fault in the files; the command line is the fault.
    "plain": in_tree(),
    "dropped_commits": dropped_commits,
    "bisect": in_tree("bisect start HEAD base"),
    "new_file": lambda p: write(p, "mine.py", "mine\n"),
    "remote_and_note": in_tree("update-ref refs/remotes/mine/topic HEAD", "notes add -m remember"),
    # A file of the user's that upstream's .gitignore hides.
    "ignored_file": lambda p: write(p, "hidden/mine.py", "mine\n"),
    "own_worktree": lambda p: in_tree(f"worktree add -q --detach {p.root.parent / 'beside'}")(p),
    "detached": in_tree("checkout -q --detach HEAD~2"),
    # The branch series, and yet a bisect that was never ended.
    "bisect_on_series": in_tree("bisect start HEAD base", "checkout -q series"),
    "cherry_pick": lambda p: write(p, ".git/CHERRY_PICK_HEAD", git(p.tree, "rev-parse", "HEAD")),
    "sequence": lambda p: (p.tree / ".git/sequencer").mkdir(),
    "moved_base_tag": in_tree("tag --force base HEAD~2"),
    "binary_series": lambda p: write(p, "v1/series", b"# \xff\n"),
    "binary_pin": lambda p: write(p, "v1/base.toml", b"\xff\n"),
    "damaged_settings": lambda p: write(p, "build/config.mk", "SOURCE ?= ftp\n"),
    "unfinished_rebase": lambda p: (p.tree / ".git/rebase-merge").mkdir(),
    "emptied": lambda p: p.patch(NAMES[1]).write_bytes(b""),
    "missing": lambda p: p.patch(NAMES[1]).unlink(),
    "no_series": lambda p: (p.base / "series").unlink(),
    "listed_twice": lambda p: p.series(*NAMES, NAMES[0]),
    "offset": lambda p: p.edit(NAMES[1], "@@ -39,", "@@ -36,"),
    "offset_by_a_dropped_patch": lambda p: p.series(*NAMES[1:]),
    "fuzz": lambda p: p.edit(NAMES[1], " line_38 = 38\n", " line_38 = 'other'\n"),
    "no_lock": lambda p: (p.base / "series.lock").unlink(),
    "broken_pin": lambda p: sub(p, "base.toml", r"\[archive\]", "[archive"),
    "incomplete_pin": lambda p: sub(p, "base.toml", 'tag = "v1.0"\n', ""),
    "other_commit_id": lambda p: sub(p, "base.toml", 'commit = "......', 'commit = "000000'),
    "no_archive": lambda p: (p.root / "build/downloads/toy-1.0.tar.gz").unlink(),
    "changed_series": lambda p: p.series(NAMES[0], NAMES[2], NAMES[1]),
    "new_commit": new_commit,
    "edited_file": edited_file,
    "on_other_branch": on_other_branch,
    "other_branch": other_branch,
    "stash": stash,
    "ignored_by_the_user": ignored_by_the_user,
    "commit_in_a_worktree_of_test_each": commit_in_a_worktree_of_test_each,
    "commits_on_series_and_elsewhere": commits_on_series_and_elsewhere,
    "patch_that_brings_an_ignored_file": patch_that_brings_an_ignored_file,
    "binary_lock": binary_lock,
    "other_commits": other_commits,
    "corrupted": corrupted,
    "twin": twin,
    "other_result": other_result,
    "lock_of_another_series": lock_of_another_series,
    "lock_of_another_base": lock_of_another_base,
    "broken_lock": broken_lock,
    "other_pin": other_pin,
    "edited_header": edited_header,
    "edited_and_dropped": edited_and_dropped,
    "overlooked": overlooked("--assume-unchanged"),
    "skipped": overlooked("--skip-worktree"),
    "skipped_and_dropped": skipped_and_dropped,
    "patches_after_unapply": patches_after_unapply,
    "text_beside_byte_code": text_beside_byte_code,
    "linked_tree": linked_tree,
    "no_git": no_git,
    "own_file_in_build": lambda p: write(p, "build/notes.txt", "mine\n"),
    "foreign_folder": lambda p: (p.root / "build/CACHEDIR.TAG").unlink(),
}


FAULTS: list[tuple[str, str, Exit, str]] = [
    ("edited_file", "apply", Exit.DIRTY, "toy/model.py"),
    ("edited_file", "unapply", Exit.DIRTY, "toy/model.py"),
    ("edited_file", "clean", Exit.DIRTY, "toy/model.py"),
    ("edited_file", "export", Exit.DIRTY, "toy/model.py"),
    ("edited_file", "distclean", Exit.DIRTY, "toy/model.py"),
    ("new_file", "unapply", Exit.DIRTY, "mine.py"),
    ("new_file", "export", Exit.DIRTY, "mine.py"),
    ("new_commit", "unapply", Exit.DIRTY, "not exported"),
    ("new_commit", "clean", Exit.DIRTY, "not exported"),
    ("unfinished_rebase", "unapply", Exit.DIRTY, "rebase-merge"),
    ("unfinished_rebase", "export", Exit.DIRTY, "rebase-merge"),
    ("other_commits", "export", Exit.PATCH, "straight line"),
    *(
        (plant, command, Exit.DIRTY, says)
        for command in ("clean", "distclean")
        for plant, says in (
            ("other_branch", "the ref refs/heads/my-work"),
            ("remote_and_note", "the ref refs/notes/commits, and 1 more"),
            ("stash", "a stash"),
            ("ignored_file", "hidden/mine.py, which git ignores"),
            ("ignored_by_the_user", "notes.txt, which git ignores"),
            ("own_worktree", "/beside"),
            ("commit_in_a_worktree_of_test_each", "each/one"),
            ("bisect", "BISECT_LOG"),
            ("overlooked", "1 files that git was told to overlook, the first toy/model.py"),
            ("skipped", "1 files that git was told to overlook, the first toy/model.py"),
            ("text_beside_byte_code", "toy/__pycache__/notes.txt, which git ignores"),
            ("linked_tree", "is a link"),
            ("no_git", "something else than a git work tree"),
        )
    ),
    ("no_git", "export", Exit.DIRTY, "is no git work tree"),
    ("overlooked", "unapply", Exit.DIRTY, "overlook"),
    ("skipped", "unapply", Exit.DIRTY, "overlook"),
    ("skipped", "export", Exit.DIRTY, "overlook"),
    ("skipped_and_dropped", "apply", Exit.DIRTY, "overlook"),
    ("detached", "unapply", Exit.DIRTY, "an earlier commit of the series (HEAD is"),
    ("detached", "clean", Exit.DIRTY, "git checkout series"),
    ("patches_after_unapply", "unapply", Exit.DIRTY, "not exported"),
    ("own_file_in_build", "distclean", Exit.DIRTY, "notes.txt is not what a build makes"),
    ("commits_on_series_and_elsewhere", "clean", Exit.DIRTY, "refs/heads/series"),
    ("commits_on_series_and_elsewhere", "unapply", Exit.DIRTY, "refs/heads/series"),
    ("patch_that_brings_an_ignored_file", "apply", Exit.DIRTY, "hidden/mine.py"),
    ("on_other_branch", "export", Exit.DIRTY, "on refs/heads/my-work"),
    ("detached", "export", Exit.DIRTY, "on no branch"),
    ("bisect", "export", Exit.DIRTY, "BISECT_LOG"),
    ("bisect_on_series", "export", Exit.DIRTY, "BISECT_LOG"),
    ("cherry_pick", "export", Exit.DIRTY, "CHERRY_PICK_HEAD"),
    ("sequence", "export", Exit.DIRTY, "sequencer"),
    ("moved_base_tag", "export", Exit.DIRTY, "the tag base"),
    ("dropped_commits", "export", Exit.DIRTY, "add-the-second, add-dos-lines"),
    ("binary_series", "apply", Exit.PATCH, "series is not UTF-8"),
    ("binary_series", "check", Exit.PATCH, "series is not UTF-8"),
    ("binary_lock", "apply", Exit.PATCH, "series.lock is not UTF-8"),
    ("binary_pin", "apply", Exit.USAGE, "base.toml cannot be read"),
    ("damaged_settings", "apply", Exit.USAGE, "config.mk says SOURCE=ftp"),
    ("plain", "diff nosuch", Exit.USAGE, "nosuch"),
    ("corrupted", "apply", Exit.PATCH, "add-the-second.patch is corrupted"),
    ("corrupted", "check", Exit.PATCH, "add-the-second.patch is corrupted"),
    ("emptied", "apply", Exit.PATCH, "add-the-second.patch is corrupted"),
    ("missing", "apply", Exit.PATCH, "add-the-second.patch is missing"),
    ("missing", "check", Exit.FAILED, "1 rules"),
    ("no_series", "apply", Exit.PATCH, "series is missing"),
    ("no_series", "check", Exit.PATCH, "series is missing"),
    ("listed_twice", "apply", Exit.PATCH, "twice"),
    ("offset", "apply", Exit.PATCH, "add-the-second.patch applies only with an offset"),
    ("offset", "check", Exit.PATCH, "add-the-second.patch applies only with an offset"),
    ("offset_by_a_dropped_patch", "apply", Exit.PATCH, "add-the-second.patch applies only with"),
    ("fuzz", "apply", Exit.PATCH, "add-the-second.patch does not apply"),
    ("twin", "apply", Exit.PATCH, "twin.patch changes nothing"),
    ("other_result", "apply", Exit.LOCK, "the tree after add-dos-lines"),
    ("lock_of_another_series", "apply", Exit.LOCK, "lists other patches"),
    ("lock_of_another_base", "apply", Exit.LOCK, "the source's tree"),
    ("broken_lock", "apply", Exit.LOCK, "cannot be read"),
    ("no_lock", "check", Exit.LOCK, "is missing"),
    ("other_pin", "apply", Exit.SOURCE, "has sha256"),
    ("other_pin", "fetch", Exit.SOURCE, "has sha256"),
    ("broken_pin", "apply", Exit.USAGE, "base.toml cannot be read"),
    ("incomplete_pin", "apply", Exit.USAGE, "tag"),
    ("other_commit_id", "fetch --source git", Exit.SOURCE, "is commit"),
    ("no_archive", "fetch --sources /nonexistent", Exit.SOURCE, "is no folder"),
    ("edited_header", "export", Exit.DIRTY, "add-the-first.patch was edited"),
    ("edited_and_dropped", "export", Exit.DIRTY, "add-the-first.patch was edited"),
    ("changed_series", "export", Exit.DIRTY, "changed since the last apply"),
    ("foreign_folder", "distclean", Exit.USAGE, "does not belong to this tool"),
    ("plain", "apply --base v2", Exit.USAGE, "use BASE= with one of v1"),
    ("plain", "apply --nosuch", Exit.USAGE, "--nosuch"),
    ("plain", "nosuch", Exit.USAGE, "nosuch"),
    ("plain", "fetch --source ftp", Exit.USAGE, "ftp"),
]


@pytest.mark.parametrize(
    ("plant", "command", "code", "says"),
    [pytest.param(*fault, id=f"{fault[0]}-{fault[1]}") for fault in FAULTS],
)
def test_fault(plant: str, command: str, code: Exit, says: str, project: Project) -> None:
    PLANTS[plant](project)
    before = project.snapshot()
    done = project.run(*command.split(), sources="--sources" not in command)
    assert done.returncode == code, done.stderr
    assert says in one_line(done.stderr)
    assert project.snapshot() == before


def test_busy(project: Project) -> None:
    with (project.root / "build/v1/.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        done = project.run("apply", "--wait", "0")
    assert done.returncode == Exit.BUSY
    assert re.fullmatch(r"error: another command .*; .*\n", done.stderr)


@pytest.mark.parametrize("options", [[], ["--lint"]])
def test_check_does_not_wait_for_the_work_tree(options: list[str], project: Project) -> None:
    with (project.root / "build/v1/.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        project.ok("check", "--wait", "0", *options)


def test_two_checks_do_not_share_a_scratch_tree(project: Project) -> None:
    with (project.root / "build/v1/.check.lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert project.run("check", "--wait", "0").returncode == Exit.BUSY
        project.ok("check", "--wait", "0", "--lint")


def test_fast_import_says_itself_why_it_died(fresh: Project, tmp_path: Path) -> None:
    path = other_git(tmp_path, '*fast-import*) echo "fatal: no space left" >&2; exit 1')
    done = fresh.run("apply", env={"PATH": path})
    assert done.returncode == Exit.SOURCE
    assert "(fatal: no space left)" in one_line(done.stderr)


def test_edits_survive_an_apply_that_has_nothing_to_do(project: Project) -> None:
    edited_file(project)
    project.series(*NAMES)
    done = project.run("apply")
    assert done.returncode == 0
    assert "it also holds 1 changed or new files" in done.stdout
    assert (project.tree / "toy/model.py").read_text() == "mine\n"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_apply_says_how_many_patches_are_there(count: int, project: Project) -> None:
    git(project.tree, "checkout", "-q", "--detach", f"HEAD~{3 - count}")
    out = project.ok("apply")
    assert out.startswith(f"{count} of 3 patches are applied in {project.tree}\n")
    assert "it also holds an earlier commit of the series (HEAD is" in out
    assert project.ok("status").count("\n  applied ") == count


def test_unapply_says_what_the_tree_holds(project: Project) -> None:
    for says in ("no patch is applied in ", "nothing to do: no patch is applied in "):
        assert project.ok("unapply").startswith(says)
    new_commit(project)
    done = project.run("unapply")
    assert done.returncode == Exit.DIRTY and "commits that were not exported" in done.stderr
    in_tree("reset -q --hard HEAD~1")(project)
    edited_file(project)
    done = project.run("unapply")
    assert done.returncode == Exit.DIRTY and "toy/model.py" in done.stderr


def test_unsafe_paths_in_an_archive_are_refused(fresh: Project) -> None:
    from conftest import UPSTREAM, digest

    archive = fresh.sources / "unsafe" / "toy-1.0.tar.gz"
    archive.parent.mkdir(exist_ok=True)
    for path in ("../out.py", "a/../../out.py", ".git/config"):
        make_sdist(archive, {**UPSTREAM, path: b"bad\n"})
        toml = fresh.base / "base.toml"
        text = re.sub(r"(tar.gz\"\nsha256 = \")\w+", rf"\g<1>{digest(archive)}", toml.read_text())
        toml.write_text(text)
        done = fresh.run("apply", "--sources", str(archive.parent), sources=False)
        assert done.returncode == Exit.SOURCE
        assert "unsafe path" in done.stderr
        assert not fresh.tree.exists()


def test_every_exit_code_is_documented() -> None:
    text = (REPO / "docs/maintain/workflow.md").read_text()
    section = text.split("## Exit codes")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (\d+) \| ([A-Z]+) \|", section, re.M)
    assert rows == [(str(int(code)), code.name) for code in Exit]
